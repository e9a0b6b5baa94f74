"""Which pairs an annotator sees, and on which side each reply stands.

People favour a side (Wang et al., arXiv 2305.17926, show it of models too), so a coin decides who stands left. It falls
by the seed and the pair itself: the same pair always stands the same way, whatever else is chosen beside it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from random import Random

from rlhf_lab.data import load_demonstrations, load_preferences
from rlhf_lab.errors import UserError
from rlhf_lab.files import read_rows
from rlhf_lab.helpdesk.gold import gold_breakdown
from rlhf_lab.helpdesk.grammar import read_message
from rlhf_lab.layouts import At, Message, demonstration, kind_of
from rlhf_lab.profiles import DATA_DIR

HELPDESK = DATA_DIR / "helpdesk" / "preferences_train.jsonl"
REPLIES_COLUMNS = ("replies", "completions", "responses")
SMALL_GAP = 0.5  # gold points: below it the usual annotator (temperature 0.3) errs on one pair in six or more
TIE = 1e-9  # as in evaluate.py: float noise is no preference


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, as they are shown. `given` is the side that the file's own label prefers, if any."""

    prompt: list[Message]
    left: str
    right: str
    given: str | None = None

    @cached_property
    def id(self) -> str:
        """The same for the same prompt and replies, whichever stands left."""
        return _identity(self.prompt, self.left, self.right)

    @property
    def message(self) -> str:
        """The last turn of the prompt, the one that is answered."""
        return self.prompt[-1]["content"]

    @property
    def longer(self) -> str | None:
        """The side with more words; None when they have as many."""
        words = len(self.left.split()) - len(self.right.split())
        return None if not words else "left" if words > 0 else "right"


@dataclass(frozen=True)
class GoldView:
    """What gold says of a pair: `difference` is left minus right, attribute by attribute, in gold points."""

    difference: Mapping[str, float]

    @property
    def gap(self) -> float:
        return sum(self.difference.values())

    @property
    def choice(self) -> str:
        return "tie" if abs(self.gap) <= TIE else "left" if self.gap > 0 else "right"

    @property
    def small(self) -> bool:
        return abs(self.gap) < SMALL_GAP - TIE

    @property
    def decides(self) -> str | None:
        """The attribute that speaks most for gold's choice; None when the pair is a tie."""
        if self.choice == "tie":
            return None
        sign = 1 if self.choice == "left" else -1
        return max(self.difference, key=lambda name: sign * self.difference[name])


def gold_view(pair: Pair) -> GoldView:
    """Gold of the left reply minus gold of the right one."""
    left, right = (gold_breakdown(pair.message, reply) for reply in (pair.left, pair.right))
    return GoldView({name: left[name] - right[name] for name in left})


def gold_knows(pairs: Iterable[Pair]) -> bool:
    """Whether all pairs are of the help desk, so that gold means something: each a single message it can read."""
    tickets = [read_message(pair.message) if len(pair.prompt) == 1 else None for pair in pairs]
    return bool(tickets) and all(ticket and ticket.item and ticket.issue for ticket in tickets)


def helpdesk_pairs(n: int = 30, seed: int = 0) -> list[Pair]:
    """`n` pairs of the shipped training set, of every kind in turn.

    A kind is: the attribute that decides, a small or large gold gap, the better reply longer or shorter. Pairs that
    gold finds equal, or whose replies have as many words, are left out. So rare kinds are as frequent as common ones,
    about half of the pairs are hard, and agreement on them is not that on the whole set, where large gaps prevail.
    They come from the training set: a reward model trained on the answers can be tested on preferences_test.jsonl.
    """
    kinds = _helpdesk_kinds(seed)
    return spread([pair for pair, _ in kinds.values()], n, seed, lambda pair: kinds[pair.id][1])


@cache
def _helpdesk_kinds(seed: int) -> dict[str, tuple[Pair, tuple]]:
    """id -> (pair, its kind), for the pairs that helpdesk_pairs chooses from."""
    kinds = {}
    for pair in read_pairs(HELPDESK, seed):
        view = gold_view(pair)
        if view.decides and pair.longer:
            kinds[pair.id] = (pair, (view.decides, view.small, pair.longer == view.choice))
    return kinds


def spread(pairs: Sequence[Pair], n: int | None, seed: int, kind: Callable[[Pair], Hashable]) -> list[Pair]:
    """At most `n` pairs (None: all), one of each kind in turn, in a seeded order; more are the same and then others."""
    rng = Random(seed)
    groups: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(kind(pair), []).append(pair)
    for group in groups.values():
        rng.shuffle(group)
    waiting, chosen = list(groups.values()), []
    while waiting and (n is None or len(chosen) < n):
        rng.shuffle(waiting)
        chosen += [group.pop() for group in waiting]
        waiting = [group for group in waiting if group]
    return chosen[:n]


def spread_over_prompts(pairs: Sequence[Pair], n: int | None, seed: int) -> list[Pair]:
    """At most `n` pairs (None: all), a second of the same prompt only after every prompt has had one."""
    return spread(pairs, n, seed, lambda pair: json.dumps(pair.prompt))


def read_pairs(path: str | Path, seed: int = 0, columns: Mapping[str, str] | None = None) -> list[Pair]:
    """Every pair of a file, sides drawn, each once.

    Layouts: prompt with chosen and rejected, in all the forms that data.py reads, whose label is kept as `given`;
    prompt with a list of two or more replies in a column `replies`, `completions` or `responses`, strings or
    messages; or prompt and completion, where rows of one prompt belong together. K different replies to a prompt make
    K(K-1)/2 pairs. Raises UserError for what cannot be used, with file, row and column, and when no pair is left.
    """
    path, columns = Path(path), dict(columns or {})
    first = next((value for _, value in read_rows(path) if isinstance(value, dict)), {})
    if columns.get("chosen", "chosen") in first:
        rows = load_preferences(path, columns)
        pairs = [(r["prompt"], r["chosen"][0]["content"], r["rejected"][0]["content"], True) for r in rows]
    elif column := next((name for name in REPLIES_COLUMNS if name in first), None):
        pairs = list(_pairs_of_replies(path, column, columns))
    else:
        pairs = list(_pairs_of_completions(path, columns))
    shown = {pair.id: pair for pair in (_shown(*pair, seed=seed) for pair in pairs)}
    if not shown:
        raise UserError(
            "no prompt has two different replies, so there is nothing to compare",
            where=str(path),
            fix='A row looks like {"prompt": "...", "replies": ["...", "..."]}, or has chosen and rejected',
        )
    return list(shown.values())


def _identity(prompt: list[Message], *replies: str) -> str:
    turns = [[message["role"], message["content"]] for message in prompt]
    return hashlib.sha256(json.dumps([turns, sorted(replies)]).encode()).hexdigest()[:16]


def _shown(prompt: list[Message], first: str, second: str, first_is_chosen: bool, seed: int) -> Pair:
    stays = Random(f"{seed} {_identity(prompt, first, second)}").random() < 0.5
    # By the text, not by who stands first in the file: a row written the other way round is shown the same.
    left, right = (first, second) if (first < second) == stays else (second, first)
    given = ("left" if left == first else "right") if first_is_chosen else None
    return Pair(prompt, left, right, given)


def _pairs_of_replies(path: Path, column: str, columns: Mapping[str, str]):
    """From rows with a list of replies."""
    same = []
    prompt_column = columns.get("prompt", "prompt")
    for number, value in read_rows(path):
        at = At(str(path), number, {**columns, "completion": column})
        replies = value.get(column) if isinstance(value, dict) else None
        if not isinstance(replies, list) or len(replies) < 2:
            found = f"has {len(replies)}" if isinstance(replies, list) else f"is {kind_of(replies)}"
            raise UserError(
                f"{found} where a list of two or more replies is due",
                where=at.column("completion"),
                fix='A row looks like {"prompt": "...", "replies": ["...", "..."]}',
            )
        row = {name: value[name] for name in ("instruction", "input") if name in value}
        row |= {"prompt": value[prompt_column]} if prompt_column in value else {}
        # One message, {"role", "content"}, is a conversation of one turn.
        read = [demonstration(row | {"completion": [r] if isinstance(r, dict) else r}, at) for r in replies]
        if any(r["prompt"] != read[0]["prompt"] for r in read):
            raise UserError(
                "the replies do not answer one prompt: their earlier turns differ",
                where=at.column("completion"),
                fix="Give the replies alone",
            )
        pairs = list(_combined(read[0]["prompt"], [r["completion"][0]["content"] for r in read]))
        same += [] if pairs else [number]
        yield from pairs
    if same:
        numbers = ", ".join(map(str, same[:10])) + (", ..." if len(same) > 10 else "")
        print(f"{path}: {len(same)} rows set aside (rows {numbers}): all their replies are the same.", file=sys.stderr)


def _pairs_of_completions(path: Path, columns: Mapping[str, str]):
    """From rows with one reply each: those to the same prompt are held against each other."""
    by_prompt: dict[str, tuple[list[Message], list[str]]] = {}
    for row in load_demonstrations(path, columns):
        _, replies = by_prompt.setdefault(json.dumps(row["prompt"]), (row["prompt"], []))
        replies.append(row["completion"][0]["content"])
    for prompt, replies in by_prompt.values():
        yield from _combined(prompt, replies)


def _combined(prompt: list[Message], replies: list[str]):
    """Every pair of different replies; chat templates trim, so outer whitespace is no difference."""
    for first, second in combinations(dict.fromkeys(reply.strip() for reply in replies), 2):
        yield prompt, first, second, False
