"""The annotator in a notebook: ipywidgets 7.7 and 8, JupyterLab and Colab, nothing else to install.

Keys. No core widget reports a key press, and what JupyterLab sees pressed on a button it may take for a command of its
own. Keys typed into a text field reach nobody else. So the field is the record of them: what is new at its end is
answered, what Backspace takes away is undone. It is never cleared while one types, so a key pressed before the kernel
has answered the last one is neither lost nor counted twice. The buttons do the same for the mouse, for Tab with Enter,
and for touch screens.
"""

from __future__ import annotations

import html
from itertools import takewhile

import ipywidgets

from rlhf_lab.annotate.session import CHOICES, Session, my_session
from rlhf_lab.errors import UserError

KEYS = {"1": "left", "2": "right", "t": "tie", "s": "skip", "u": "undo"}
BUTTONS = {
    "left": ("Left is better (1)", "The left reply is better"),
    "right": ("Right is better (2)", "The right reply is better"),
    "tie": ("Tie (t)", "Neither is better"),
    "skip": ("Skip (s)", "Put the pair off to the end; skipped twice, it stays out"),
    "undo": ("Undo (u)", "Take the last answer back"),
}


class AnnotationWidget(ipywidgets.VBox):
    """Shows one pair after the other and keeps each answer at once; run the cell again to go on.

    `session` is the learner's own of lesson 01 unless one is given. `act` is what each key and button does.
    """

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or my_session()
        self._typed: list[list] = []  # [key, whether it left an answer that Backspace would take back]
        self._progress, self._prompt, self._notice = (ipywidgets.HTML() for _ in range(3))
        self._left, self._right = (ipywidgets.HTML(layout={"flex": "1 1 20em", "margin": "0 8px 0 0"}) for _ in "12")
        self.key_field = ipywidgets.Text(
            description="Keys", placeholder="click here, then 1, 2, t", continuous_update=True, layout={"width": "24em"}
        )
        self.key_field.observe(self._on_keys, names="value")
        self.buttons = {}
        for action, (label, tooltip) in BUTTONS.items():
            button = ipywidgets.Button(description=label, tooltip=tooltip, layout={"width": "auto"})
            button.on_click(lambda _, action=action: self.act(action))
            self.buttons[action] = button
        replies = ipywidgets.HBox([self._left, self._right], layout={"flex_flow": "row wrap"})
        buttons = ipywidgets.HBox(list(self.buttons.values()), layout={"flex_flow": "row wrap"})
        super().__init__([self._progress, self._prompt, replies, buttons, self.key_field, self._notice])
        self._show()

    def act(self, action: str) -> bool:
        """Do "left", "right", "tie", "skip" or "undo", and show what comes next; returns whether anything changed."""
        if action not in BUTTONS:
            raise ValueError(f"an action is one of {', '.join(BUTTONS)}, got {action!r}")
        changed, fault = False, ""
        try:
            if action == "undo":
                changed = self.session.undo()
            elif self.session.current is not None:
                self.session.answer(action)
                changed = True
        except UserError as error:  # the disk is full, say: the pair stays, and can be answered again
            fault = str(error)
        self._show(fault)
        return changed

    def __repr__(self) -> str:
        return f"{self.session.total} pairs to compare, {self.session.done} of them done. Run the cell to answer."

    def _on_keys(self, change: dict) -> None:
        """What was typed since and taken away since, as actions. Keys that mean nothing stay in the field, unused."""
        old, new = (str(change[which]) for which in ("old", "new"))
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
        while len(self._typed) > kept:
            _, left_an_answer = self._typed.pop()
            if left_an_answer:
                self.act("undo")
        for key in new[kept:]:
            action = KEYS.get(key.lower())
            changed = self.act(action) if action else False
            if action == "undo" and changed:
                self._forget_last()
            self._typed.append([key, changed and action != "undo"])

    def _forget_last(self) -> None:
        """The last key whose answer stood is undone now, so Backspace over it has nothing left to do."""
        for entry in reversed(self._typed):
            if entry[1]:
                entry[1] = False
                return

    def _show(self, fault: str = "") -> None:
        session, pair = self.session, self.session.current
        ties = sum(answer.choice == "tie" for answer in session.answers)
        if pair is None:
            progress = f"<b>All {session.total} done.</b> {len(session.answers)} answered, {ties} of them tied. "
            progress += "Run the next cell to see how far you agree with others."
            self._prompt.value = self._left.value = self._right.value = ""
        else:
            progress = f"<b>{session.done + 1} of {session.total}</b>"
            turns = "".join(
                f"<p><b>{'Prompt' if message is pair.prompt[-1] else message['role'].capitalize()}</b><br>"
                f"{_escaped(message['content'])}</p>"
                for message in pair.prompt
            )
            self._prompt.value = f'<div role="group" aria-label="Prompt" style="line-height: 1.5">{turns}</div>'
            self._left.value, self._right.value = _reply("Left", 1, pair.left), _reply("Right", 2, pair.right)
        # A live region is read out when it changes, so who cannot see it hears that the answer was taken.
        self._progress.value = f'<div role="status" aria-live="polite">{progress}</div>'
        for action in (*CHOICES, "skip"):
            self.buttons[action].disabled = pair is None
        self.buttons["undo"].disabled = session.last is None
        told = fault or (f"The last answer was {session.last.choice}; undo takes it back." if session.last else "")
        self._notice.value = f'<div role="{"alert" if fault else "note"}">{html.escape(told)}</div>'


def _reply(side: str, key: int, text: str) -> str:
    return (
        f'<div role="group" aria-label="{side} reply" style="border: 1px solid; border-radius: 4px; padding: 4px 10px; '
        f'line-height: 1.5">'
        f"<b>{side} ({key})</b><p>{_escaped(text)}</p></div>"
    )


def _escaped(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
