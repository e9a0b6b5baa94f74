"""The annotator in a terminal: one key an answer, or one typed line where keys cannot be read singly."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import typer
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlhf_lab.annotate.agreement import EVERY_KIND, Report, compare
from rlhf_lab.annotate.pairs import HELPDESK, Pair, helpdesk_pairs, read_pairs, spread_over_prompts
from rlhf_lab.annotate.session import CHOICES, Session
from rlhf_lab.annotate.words import caution, habits
from rlhf_lab.data import parse_columns

LEFT, RIGHT = ("\x1b[D", "\x1bOD", "\x00K", "\xe0K"), ("\x1b[C", "\x1bOC", "\x00M", "\xe0M")  # Unix, Windows
KEYS = {"1": "left", "h": "left", "2": "right", "l": "right", "t": "tie", "u": "undo", "s": "skip", "q": "quit"}
KEYS |= {key.upper(): action for key, action in KEYS.items()}
KEYS |= dict.fromkeys(LEFT, "left") | dict.fromkeys(RIGHT, "right") | {"\x7f": "undo", "\x08": "undo", "\x04": "quit"}
HELP = "Left: 1, h, arrow   Right: 2, l, arrow   Tie: t   Undo: u   Skip: s   Keep and leave: q"
TYPED_HELP = "Type 1 for left, 2 for right, t tie, u undo, s skip, q to keep and leave"
UNFINISHED = re.compile(r"\x1b(\[[0-?]*|O)?$")
WIDE = 100  # columns from which the replies stand side by side
# Control characters of a reply would move the cursor or change the title of the window; they are shown instead.
SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
SHOWN |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def annotate_file(data: Path | None, labels: Path, n: int, seed: int, columns: str | None) -> None:
    """`rlhf-lab annotate`: choose the pairs, ask, keep, and say what the answers say.

    Raises UserError for unusable data or labels; typer.Exit with code 130 after Ctrl-C, everything kept.
    """
    every = read_pairs(data or HELPDESK, seed, parse_columns(columns))
    pairs = spread_over_prompts(every, n, seed) if data else helpdesk_pairs(n, seed)
    session = Session(pairs, labels, known=(pair.id for pair in every))
    console = Console(highlight=False)
    interrupted = False
    try:
        ask(session, console, typed_actions(console) if _is_plain(console) else keyed_actions())
    except KeyboardInterrupt:
        interrupted = True
        console.print()
    conclude(session, console, seed, note="" if data else EVERY_KIND)
    if interrupted:
        raise typer.Exit(130)


def ask(session: Session, console: Console, actions: Iterator[str]) -> None:
    """Show the current pair and do what the next action says, until all are answered or it says quit."""
    while (pair := session.current) is not None:
        console.clear()
        console.print(screen(session, pair, console.width))
        action = next(actions, "quit")
        while action not in (*CHOICES, "skip", "undo", "quit"):
            console.print(Text(f"That is no answer. {TYPED_HELP}."))
            action = next(actions, "quit")
        if action == "quit":
            return
        if action == "undo":
            session.undo()
        else:
            session.answer(action)


def screen(session: Session, pair: Pair, width: int) -> RenderableType:
    """One pair: progress, prompt, replies side by side or one below the other, keys, and the last answer."""
    left = Panel(_text(pair.left), title="1  LEFT", title_align="left", border_style="cyan")
    right = Panel(_text(pair.right), title="2  RIGHT", title_align="left", border_style="magenta")
    if width >= WIDE:
        replies: RenderableType = Table.grid(expand=True)
        replies.add_column(ratio=1)
        replies.add_column(ratio=1)
        replies.add_row(left, right)
    else:
        replies = Group(left, right)
    turns = [
        Text.assemble((f"{'prompt' if m is pair.prompt[-1] else m['role']}  ", "bold"), _text(m["content"]))
        for m in pair.prompt
    ]
    last = session.last
    before = f"The last answer was {last.choice}; u takes it back." if last else ""
    return Group(
        Rule(Text(f"{session.done + 1} of {session.total}"), align="left"),
        *turns,
        replies,
        Text("Which reply is better?", style="bold"),
        Text(HELP),
        Text(before),
    )


def conclude(session: Session, console: Console, seed: int = 0, note: str = "") -> None:
    """What was kept and where, and the agreement."""
    answers, rows = session.answers, session.preferences()
    ties = sum(answer.choice == "tie" for answer in answers)
    console.print(f"{session.done} of {session.total} done: {len(rows)} decided, {ties} tied.", markup=False)
    if not answers:
        console.print("Nothing is kept, because nothing was answered.")
        return
    if rows:
        path = session.labels_path
        console.print(f"{path}: {len(rows)} pairs. Next: rlhf-lab reward --data {path}", markup=False, soft_wrap=True)
    left_out = " A tie prefers nothing, so ties are only here." if ties else ""
    console.print(f"{session.path}: every answer.{left_out}", markup=False, soft_wrap=True)
    if session.current is not None:
        console.print("The same command goes on where you stopped.")
    for part in report_tables(compare(answers, seed=seed, note=note)):
        console.print(part)


def report_tables(report: Report) -> list[RenderableType]:
    """The report as tables, and the sentences that no table holds."""
    parts: list[RenderableType] = []
    if report.against:
        table = Table("you with", "kappa", "alike (ties half)", "pairs both decided", title="Agreement, 95 % intervals")
        for name, found in report.against.items():
            table.add_row(name, str(found.kappa or "undefined"), str(found.share), f"{found.decided} of {found.n}")
        parts.append(table)
    if report.kinds:
        table = Table("pairs", "kind", "alike (ties half)", "number", title="Agreement with gold by kind of pair")
        for question, by_kind in report.kinds.items():
            for kind, share in by_kind.items():
                table.add_row(question, kind, str(share), str(report.counts[question][kind]))
            table.add_section()
        parts.append(table)
    told = [*caution(report), *habits(report), report.note]
    return [*parts, *(Text(line) for line in told if line)]


def actions_in(keys: str) -> Iterator[str]:
    """The actions of what a terminal sent, which may be several keys at once; keys that mean nothing are left out.

    Raises KeyboardInterrupt at Ctrl-C, wherever it stands.
    """
    while keys:
        if keys[0] == "\x03":
            raise KeyboardInterrupt
        known = next((length for length in (3, 2, 1) if keys[:length] in KEYS), 0)
        if known:
            yield KEYS[keys[:known]]
            keys = keys[known:]
        elif keys[0] == "\x1b":  # some other key's sequence: it would be a pity to take its letters for answers
            keys = _after_sequence(keys)
        else:
            keys = keys[1:]


def _after_sequence(keys: str) -> str:
    """What follows an escape sequence: ESC O and one character, ESC [ up to a character from @ to ~, or ESC alone."""
    if keys[1:2] == "O":
        return keys[3:]
    if keys[1:2] != "[":
        return keys[1:]
    end = next((i for i, key in enumerate(keys[2:], start=2) if "@" <= key <= "~"), len(keys))
    return keys[end + 1 :]


def keyed_actions(read: Callable[[], str] = typer.getchar) -> Iterator[str]:
    """The actions of the keys that `read` gives, until the terminal is gone ("" or EOFError).

    A sequence that comes in two parts, over a slow line, is put together; Escape alone waits for the next key.
    """
    begun = ""
    while True:
        try:
            read_now = read()
        except EOFError:
            return
        if not read_now:
            return
        keys = begun + read_now
        begun = unfinished[0] if (unfinished := UNFINISHED.search(keys)) else ""
        yield from actions_in(keys.removesuffix(begun))


def typed_actions(console: Console) -> Iterator[str]:
    """The actions of typed lines, "" for one that means nothing, until the input ends."""
    words = {*CHOICES, "skip", "undo", "quit"}
    while True:
        try:
            typed = console.input("> ").strip().lower()
        except EOFError:
            return
        yield typed if typed in words else KEYS.get(typed, "")


def _is_plain(console: Console) -> bool:
    """Whether keys cannot be read one by one: a pipe or a file, or a terminal that says it is dumb."""
    return not sys.stdin.isatty() or not console.is_terminal or os.environ.get("TERM", "") in ("dumb", "unknown")


def _text(text: str) -> Text:
    return Text(text.translate(SHOWN))
