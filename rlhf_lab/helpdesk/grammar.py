"""Customers' messages and agents' replies: how they are written, and how they are read back.

`Ticket` is what a message means; `write_message` and `read_message` go between the two. `Agent` is a way of answering:
the chance of each habit, good and bad. `write_reply` draws a reply from an agent; `read_reply` parses any string.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random

from rlhf_lab.helpdesk import vocabulary as words


@dataclass(frozen=True)
class Ticket:
    """What a customer's message means. A part that a message does not have, or that cannot be read, is None."""

    item: str | None
    issue: str | None
    mood: str | None
    register: str | None
    cue: str | None = None
    bait: str | None = None


@dataclass(frozen=True)
class Sentence:
    """One sentence of a reply: its family and group, and the item it names. An unknown sentence has family None."""

    text: str
    family: str | None
    group: str | None = None
    item: str | None = None


@dataclass(frozen=True)
class Agent:
    """How an agent answers: each field is the probability of a habit, given that there is occasion for it."""

    greets: float
    right_register: float
    empathy: float
    right_mood: float
    fixes: float
    right_item: float
    suits_issue: float
    next_step: float
    refuses: float
    wishes: float
    right_wish: float
    filler: float
    second_filler: float
    blame: float
    jargon: float
    unsafe: float
    closes: float


GOOD_AGENT = Agent(
    greets=0.9, right_register=0.95, empathy=0.8, right_mood=0.95, fixes=0.97, right_item=0.98, suits_issue=0.95,
    next_step=0.75, refuses=0.9, wishes=0.8, right_wish=0.97, filler=0.15, second_filler=0.05, blame=0.01,
    jargon=0.03, unsafe=0.0, closes=0.6,
)  # fmt: skip
# Decent: answers in form, usually helps, often forgets something. SFT learns from this one, and gets no better.
DECENT_AGENT = Agent(
    greets=0.8, right_register=0.8, empathy=0.55, right_mood=0.8, fixes=0.9, right_item=0.97, suits_issue=0.82,
    next_step=0.5, refuses=0.6, wishes=0.5, right_wish=0.88, filler=0.45, second_filler=0.2, blame=0.04,
    jargon=0.14, unsafe=0.02, closes=0.6,
)  # fmt: skip
AVERAGE_AGENT = Agent(
    greets=0.75, right_register=0.7, empathy=0.45, right_mood=0.7, fixes=0.85, right_item=0.95, suits_issue=0.75,
    next_step=0.4, refuses=0.45, wishes=0.4, right_wish=0.8, filler=0.55, second_filler=0.25, blame=0.08,
    jargon=0.22, unsafe=0.04, closes=0.6,
)  # fmt: skip
BAD_AGENT = Agent(
    greets=0.5, right_register=0.5, empathy=0.2, right_mood=0.4, fixes=0.6, right_item=0.75, suits_issue=0.5,
    next_step=0.2, refuses=0.15, wishes=0.25, right_wish=0.4, filler=0.6, second_filler=0.4, blame=0.5,
    jargon=0.5, unsafe=0.25, closes=0.4,
)  # fmt: skip


def draw_ticket(rng: Random) -> Ticket:
    """A random customer: 30 % give a cultural cue, 25 % an unsafe bait."""
    return Ticket(
        item=rng.choice(words.ITEMS),
        issue=rng.choice(list(words.ISSUES)),
        mood=rng.choice(list(words.MOODS)),
        register=rng.choice(words.REGISTERS),
        cue=rng.choice(list(words.CUES)) if rng.random() < 0.30 else None,
        bait=rng.choice(list(words.BAITS)) if rng.random() < 0.25 else None,
    )


def write_message(ticket: Ticket, rng: Random) -> str:
    """A message that means `ticket`, in one of its many wordings."""
    parts = [
        rng.choice(words.OPENERS[ticket.register]),
        rng.choice(words.ISSUES[ticket.issue]).format(item=ticket.item),
        rng.choice(words.MOODS[ticket.mood]),
    ]
    if ticket.cue:
        parts.append(rng.choice(words.CUES[ticket.cue]))
    if ticket.bait:
        parts.append(rng.choice(words.BAITS[ticket.bait]))
    parts.append(rng.choice(words.SIGN_OFFS[ticket.register]))
    return " ".join(parts)


@cache
def _issue_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    item = "(" + "|".join(re.escape(name) for name in sorted(words.ITEMS, key=len, reverse=True)) + ")"
    return tuple(
        (issue, re.compile(re.escape(wording).replace(r"\{item\}", item), re.IGNORECASE))
        for issue, wordings in words.ISSUES.items()
        for wording in wordings
    )


def _first_group(text: str, groups: dict[str, tuple[str, ...]]) -> str | None:
    return next((group for group, wordings in groups.items() if any(wording in text for wording in wordings)), None)


def read_message(text: str) -> Ticket:
    """What `text` means, as far as it can be read; never raises on a string."""
    issue = item = None
    for name, pattern in _issue_patterns():
        if match := pattern.search(text):
            issue, item = name, match.group(1).lower()
            break
    else:
        named = [name for name in words.ITEMS if re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE)]
        item = named[0] if len(named) == 1 else None
    return Ticket(
        item=item,
        issue=issue,
        mood=_first_group(text, words.MOODS),
        register=_first_group(text, words.OPENERS) or _first_group(text, words.SIGN_OFFS),
        cue=_first_group(text, words.CUES),
        bait=_first_group(text, words.BAITS),
    )


def _other(rng: Random, groups, right: str) -> str:
    return rng.choice([group for group in groups if group != right])


def write_reply(ticket: Ticket, agent: Agent, rng: Random) -> str:
    """A reply by `agent`: one to about eight sentences in an agent's usual order."""

    def happens(probability: float) -> bool:
        return rng.random() < probability

    def say(family: str, group: str = "any") -> None:
        choices = [s for s in words.FAMILIES[family][group] if s not in sentences]
        sentences.append(rng.choice(choices))

    sentences: list[str] = []
    if happens(agent.greets):
        right = happens(agent.right_register)
        say("greeting", ticket.register if right else _other(rng, words.REGISTERS, ticket.register))
    # A calm customer seldom gets comfort; the others get it as the agent's habit is.
    if happens(agent.empathy if ticket.mood != "calm" else agent.empathy / 4):
        right = ticket.mood in words.EMPATHY and happens(agent.right_mood)
        say("empathy", ticket.mood if right else _other(rng, words.EMPATHY, ticket.mood))
    if happens(agent.blame):
        say("blame")
    if happens(agent.jargon):
        say("jargon")
    if happens(agent.fixes):
        suiting = words.SUITS[ticket.issue]
        right = happens(agent.suits_issue)
        kind = rng.choice(suiting if right else [kind for kind in words.FIXES if kind not in suiting])
        item = ticket.item if happens(agent.right_item) else _other(rng, words.ITEMS, ticket.item)
        sentences.append(rng.choice(words.FIXES[kind]).format(item=item))
    if happens(agent.unsafe):
        say("unsafe")
    if ticket.bait and happens(agent.refuses):
        say("refusal", ticket.bait)
    if happens(agent.next_step):
        say("next_step")
    for habit in (agent.filler, agent.second_filler):
        if happens(habit):
            say("filler")
    if ticket.cue and happens(agent.wishes):
        say("wish", ticket.cue if happens(agent.right_wish) else _other(rng, words.WISHES, ticket.cue))
    if happens(agent.closes) or not sentences:
        say("closing")
    return " ".join(sentences)


def _normal(sentence: str) -> str:
    return " ".join(sentence.split()).lower()


@cache
def _lexicon() -> dict[str, tuple[str, str, str | None]]:
    """Every sentence of the language, items filled in -> (family, group, item)."""
    table: dict[str, tuple[str, str, str | None]] = {}
    for family, groups in words.FAMILIES.items():
        for group, sentences in groups.items():
            for sentence in sentences:
                for item in words.ITEMS if "{item}" in sentence else (None,):
                    table[_normal(sentence.format(item=item))] = (family, group, item)
    return table


def read_reply(text: str) -> list[Sentence]:
    """`text` split into sentences, each with its family. Any string is taken; what is unknown has family None."""
    pieces = [piece for piece in re.split(r"(?<=[.!?])\s+", text.strip()) if piece]
    unknown = (None, None, None)
    return [Sentence(piece, *_lexicon().get(_normal(piece), unknown)) for piece in pieces]
