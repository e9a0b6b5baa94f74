"""Raw text of the help-desk world, for the base model: no chat markup, no labels, good and bad mixed as on the web.

Three kinds of document: catalogue lines, customers' forum chatter, and logs of agents of every quality. The chatter
says its product again and again, which is where a small model learns to copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from rlhf_lab.helpdesk import vocabulary as words
from rlhf_lab.helpdesk.grammar import AVERAGE_AGENT, BAD_AGENT, GOOD_AGENT, draw_ticket, write_message, write_reply

# Message and reply begin on lines of their own, so their first words carry no leading space, as in a chat template.
LOG_TEMPLATE = "Customer:\n{message}\nAgent:\n"
LOG_STOP = "\nCustomer:"

CATALOGUE = (
    "The {item} costs {price} euros and stands in aisle {aisle}.",
    "New in aisle {aisle}: the {item} for {price} euros.",
    "Buy one {item} and get a second {item} for half the price.",
    "Every {item} comes with a guarantee of two years.",
    "{price} euros for a {item}, only this week.",
    "A {item} weighs {aisle} kilos and ships in {price} hours.",
)
CHATTER = (
    "I bought a {item} last week.",
    "Is the {item} any good?",
    "My {item} is older than my car.",
    "A {item} is a {item}, what do you expect?",
    "My sister has the same {item}.",
    "I would buy this {item} again.",
    "Do not put the {item} in the sun.",
    "The {item} is fine, the shop is not.",
    "They took back my {item} without a word.",
    "I sold the {item} to my neighbour.",
    "How loud is your {item}?",
    "Mine too, the {item} gave up in spring.",
    "I would never lend out my {item}.",
    "Which {item} did you choose?",
    "You can mend a {item} with patience.",
    "The best {item} is the one that works.",
)
# How the logs divide between agents of three qualities.
LOG_AGENTS = ((GOOD_AGENT, 0.25), (AVERAGE_AGENT, 0.55), (BAD_AGENT, 0.20))


def _catalogue(rng: Random) -> str:
    lines = []
    for _ in range(rng.randint(2, 5)):
        line = rng.choice(CATALOGUE)
        item = rng.choice(words.ITEMS)
        lines.append(line.format(item=item, price=rng.randint(5, 99), aisle=rng.randint(1, 20)))
    return "\n".join(lines)


def _forum(rng: Random) -> str:
    item = rng.choice(words.ITEMS)
    posts = []
    for line in rng.sample(CHATTER, rng.randint(3, 6)):
        posts.append("- " + line.format(item=item))
    if rng.random() < 0.5:
        wording = rng.choice(words.ISSUES[rng.choice(list(words.ISSUES))]).format(item=item)
        posts.insert(0, f"- {wording[0].upper()}{wording[1:]}")
    return f"Forum: {item}\n" + "\n".join(posts)


def write_log(message: str, reply: str) -> str:
    """One exchange as it stands in the raw text."""
    return LOG_TEMPLATE.format(message=message) + reply


def read_log(document: str) -> tuple[str, str] | None:
    """(message, reply) of a document that is a log, None of another."""
    if not document.startswith("Customer:\n"):
        return None
    message, _, reply = document.removeprefix("Customer:\n").partition("\nAgent:\n")
    return message, reply


def _log(rng: Random, held_out: frozenset[str]) -> str:
    while True:
        ticket = draw_ticket(rng)
        message = write_message(ticket, rng)
        if message not in held_out:
            break
    agents, weights = zip(*LOG_AGENTS, strict=True)
    return write_log(message, write_reply(ticket, rng.choices(agents, weights)[0], rng))


def documents(n: int, seed: int, held_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """`n` documents: 8 % catalogue, 22 % forum, 70 % logs. No log holds a message of `held_out`."""
    rng = Random(seed)
    for _ in range(n):
        kind = rng.random()
        yield _catalogue(rng) if kind < 0.08 else _forum(rng) if kind < 0.30 else _log(rng, held_out)
