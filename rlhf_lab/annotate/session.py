"""What was answered, kept the moment it is answered.

A session is a journal beside the labels: one JSON object a line, appended and synced to the disk after each key. Undo
is a line too. So a crash loses nothing, a line cut short by a full disk or a power cut is dropped, and the state is
what the lines say. Each line holds the whole pair: the journal can be read without the file the pairs came from.
The labels file beside it is in the layout that the stages take, written again, whole, after each answer.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lab.annotate.pairs import Pair, helpdesk_pairs
from rlhf_lab.errors import UserError
from rlhf_lab.files import data_dir, write_jsonl

CHOICES = ("left", "right", "tie")
HEADER = {"format": "rlhf_lab annotation session", "version": 1}
SKIPS_ALLOWED = 2  # a pair that was skipped comes again after the others; skipped again, it stays out
MY_LABELS = "my_labels.jsonl"


@dataclass(frozen=True)
class Answer:
    """One line of the journal: the pair as it was shown, and "left", "right", "tie" or "skip"."""

    pair: Pair
    choice: str

    def as_row(self) -> dict:
        pair = self.pair
        row = {"id": pair.id, "choice": self.choice, "prompt": pair.prompt, "left": pair.left, "right": pair.right}
        return row if pair.given is None else row | {"given": pair.given}

    def as_preference(self) -> dict | None:
        """The row that a stage trains on; None for a tie or a skip, which prefer nothing."""
        if self.choice not in ("left", "right"):
            return None
        replies = (self.pair.left, self.pair.right)
        chosen, rejected = replies if self.choice == "left" else replies[::-1]
        return {"prompt": self.pair.prompt, "chosen": _assistant(chosen), "rejected": _assistant(rejected)}


class Session:
    """Pairs, and the answers to them so far; opening it again goes on where it stopped.

    Args:
        pairs: what is to be answered, in order.
        labels: the .jsonl to write; the journal stands beside it as <name>.session.jsonl.
        known: ids of every pair of the file that `pairs` were chosen from. A journal with an answer to another pair
            is of another file and is refused. None: any answer is welcome.

    Raises UserError for a labels file that no session wrote, and for a journal that is broken or of another file.
    """

    def __init__(self, pairs: Sequence[Pair], labels: str | Path, known: Iterable[str] | None = None) -> None:
        self.labels_path = Path(labels)
        if self.labels_path.suffix != ".jsonl":
            raise UserError(
                "the labels are JSON lines", where=str(labels), fix=f"Call it {self.labels_path.stem or 'labels'}.jsonl"
            )
        self.path = self.labels_path.with_suffix(".session.jsonl")
        if self.labels_path.exists() and not self.path.exists():
            raise UserError(
                "the file exists and was not written by an annotation session",
                where=str(self.labels_path),
                fix="Choose another file, or move this one away",
            )
        self._events = _replayed(self.path)
        ids = None if known is None else set(known)
        if ids is not None and (strange := [answer for answer in self._events if answer.pair.id not in ids]):
            raise UserError(
                f"{len(strange)} of its {len(self._events)} answers are to pairs that the data does not hold",
                where=str(self.path),
                fix="Choose another labels file for other data",
            )
        self._pairs = {pair.id: pair for pair in [*pairs, *(answer.pair for answer in self._events)]}
        self._write_labels()  # after a crash between journal and labels, the journal is right

    @property
    def pairs(self) -> list[Pair]:
        """All pairs of the session, in the order in which they come; last those of an earlier choice of pairs."""
        return list(self._pairs.values())

    @property
    def answers(self) -> list[Answer]:
        """Left, right or tie, in the order in which they were given; what was skipped is not among them."""
        return [answer for answer in self._events if answer.choice in CHOICES]

    @property
    def current(self) -> Pair | None:
        """The pair to answer now; None when all are answered, or skipped for good."""
        answered, skips = {answer.pair.id for answer in self.answers}, self._skips()
        waiting = [p for i, p in self._pairs.items() if i not in answered and skips[i] < SKIPS_ALLOWED]
        return min(waiting, key=lambda pair: skips[pair.id], default=None)

    @property
    def done(self) -> int:
        """How many pairs are answered or skipped for good."""
        return len(self.answers) + sum(count >= SKIPS_ALLOWED for count in self._skips().values())

    @property
    def total(self) -> int:
        return len(self._pairs)

    @property
    def last(self) -> Answer | None:
        """What `undo` would take back."""
        return self._events[-1] if self._events else None

    def answer(self, choice: str) -> None:
        """Keep "left", "right", "tie" or "skip" for the current pair. Raises ValueError when there is none."""
        if choice not in (*CHOICES, "skip"):
            raise ValueError(f"a choice is one of {', '.join(CHOICES)} or skip, got {choice!r}")
        if (pair := self.current) is None:
            raise ValueError("every pair is answered")
        answer = Answer(pair, choice)
        self._append(answer.as_row())
        self._events.append(answer)
        self._write_labels()

    def undo(self) -> bool:
        """Take back the last answer or skip, of an earlier sitting too; its pair is the current one again.

        Returns whether there was one.
        """
        if not self._events:
            return False
        self._append({"undo": self._events[-1].pair.id})
        self._events.pop()
        self._write_labels()
        return True

    def preferences(self) -> list[dict]:
        """{"prompt", "chosen", "rejected"} for each pair that was decided; ties are left out."""
        return [row for answer in self.answers if (row := answer.as_preference())]

    def _skips(self) -> Counter[str]:
        return Counter(answer.pair.id for answer in self._events if answer.choice == "skip")

    def _append(self, row: dict) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                whole = file.tell()
                rows = [row] if whole else [HEADER, row]
                try:
                    file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode())
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, whole)  # half a line would spoil the next one
                    raise
        except OSError as error:
            raise UserError(
                f"the answer cannot be written ({error.strerror or error}); the ones before it are kept",
                where=str(self.path),
                fix="Free some space or choose another folder, and go on",
            ) from error

    def _write_labels(self) -> None:
        if rows := self.preferences():
            write_jsonl(self.labels_path, rows)
        else:
            self.labels_path.unlink(missing_ok=True)  # a file without rows is no training data


def my_labels() -> Path:
    """The labels that the learner gave in lesson 01: `load_preferences` reads them once one pair is decided."""
    return data_dir() / MY_LABELS


def my_session(n: int = 30, seed: int = 0) -> Session:
    """The learner's session of lesson 01, on `n` help-desk pairs."""
    return Session(helpdesk_pairs(n, seed), my_labels())


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _replayed(path: Path) -> list[Answer]:
    """The answers that stand once every undo has been done. A last line cut short is cut off the file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot be opened ({error.strerror})", where=str(path), fix="Check its permissions") from error
    *lines, torn = data.split(b"\n")
    if not lines and not json.dumps(HEADER).encode().startswith(torn):
        lines = [torn]  # not even the beginning of a header: somebody else's file, to be refused below
    events: list[Answer] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if number == 1:
                if row != HEADER:
                    raise ValueError("not the header of a session")
            elif "undo" in row:
                if events.pop().pair.id != row["undo"]:
                    raise ValueError("undoes an answer that is not the last")
            else:
                events.append(_answer(row))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = "broken JSON" if isinstance(error, json.JSONDecodeError) else str(error) or "unreadable"
            raise UserError(
                f"is no annotation session ({reason})",
                where=f"{path}, row {number}",
                fix="Move the file away, or mend or remove the row",
            ) from None
    if torn:
        os.truncate(path, len(data) - len(torn))
    return events


def _answer(row: dict) -> Answer:
    pair = Pair(row["prompt"], row["left"], row["right"], row.get("given"))
    if pair.id != row["id"] or row["choice"] not in (*CHOICES, "skip"):
        raise ValueError("its id or choice is not one that a session writes")
    return Answer(pair, row["choice"])
