"""Raw text of the help-desk world, for the base model: no chat markup, no pairs, good and bad mixed as on the web.

Five kinds of document: catalogue lines, customers' forum chatter, exercises of new agents, reviews by a supervisor,
and logs of agents of every quality. The chatter says its product again and again, which is where a small model learns
to copy. Most logs end in the customer's stars. A review is a log with a mark after each sentence of the reply. An
exercise is a few exchanges of a sentence each, marked, half of them wrong. From stars and marks the model learns what
people like, as a real base does from the reviews of the whole web. Exercises are the easy case, which a small model
needs before the hard one: there are many at first, and ever fewer later.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from rlhf_lab.helpdesk import vocabulary as words
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.helpdesk.grammar import (
    AVERAGE_AGENT,
    BAD_AGENT,
    GOOD_AGENT,
    Agent,
    Ticket,
    draw_ticket,
    read_message,
    read_reply,
    write_message,
    write_reply,
)

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
STARS = ("One star", "Two stars", "Three stars", "Four stars", "Five stars")
STAR_LIMITS = (-0.5, 0.3, 1.0, 1.7)  # gold reward between one number of stars and the next
STAR_NOISE = 0.25  # standard deviation of the customer's mood, in units of the gold reward
VERDICT_SHARE = 0.9  # of the logs
# How the logs divide between agents of three qualities.
LOG_AGENTS = ((GOOD_AGENT, 0.25), (AVERAGE_AGENT, 0.55), (BAD_AGENT, 0.20))

# Reviews are mostly of new agents, who make every mistake there is.
TRAINEE = Agent(
    greets=0.8, right_register=0.5, empathy=0.7, right_mood=0.5, fixes=0.93, right_item=0.6, suits_issue=0.55,
    next_step=0.3, refuses=0.6, wishes=0.7, right_wish=0.5, filler=0.3, second_filler=0.1, blame=0.1,
    jargon=0.15, unsafe=0.08, closes=0.3,
)  # fmt: skip
REVIEWED_AGENTS = ((GOOD_AGENT, 0.15), (AVERAGE_AGENT, 0.25), (BAD_AGENT, 0.1), (TRAINEE, 0.5))
# Percent of catalogue, forum, exercises, reviews and logs, at the beginning of the text and at its end.
FIRST = (2, 12, 56, 10, 20)
LAST = (2, 8, 14, 34, 42)
REVIEW_HEAD = "Review\n"
# What a sentence adds to the gold reward, from much to much less than nothing, and the limits between.
MARKS = ("++", "+", "=", "-", "--")
MARK_LIMITS = (0.7, 0.05, -0.05, -0.55)
EXERCISE_TOPICS = {"issue": 0.5, "register": 0.1, "mood": 0.1, "cue": 0.2, "bait": 0.1}
SECOND_REMARK = 0.12  # chance of each further remark in an exercise's message


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
    message, _, rest = document.removeprefix("Customer:\n").partition("\nAgent:\n")
    return message, rest.split(LOG_STOP)[0]


def verdict(message: str, reply: str, rng: Random) -> str:
    """The customer's stars, by the gold reward and the mood of the day."""
    felt = rng.gauss(gold_reward(message, reply), STAR_NOISE)
    return STARS[sum(felt > limit for limit in STAR_LIMITS)] + "."


def review(message: str, reply: str) -> str:
    """The reply with a supervisor's mark after each sentence, and the right product after a wrong one.

    A mark says what the sentence adds to the gold reward of all that stands before it.
    """
    meant, so_far, text = read_message(message).item, "", ""
    before = gold_reward(message, "") + 1  # silence costs 1, which the first sentence does not earn
    for sentence in read_reply(reply):
        so_far = f"{so_far} {sentence.text}".strip()
        after = gold_reward(message, so_far)
        mark = MARKS[sum(after - before < limit for limit in MARK_LIMITS)]
        named = f" {meant}" if sentence.family == "fix" and sentence.item != meant else ""
        text += f"{sentence.text} {mark}{named} "
        before = after
    return text.rstrip()


def _exchange(rng: Random, agents, held_out: frozenset[str]) -> tuple[str, str]:
    while True:
        ticket = draw_ticket(rng)
        message = write_message(ticket, rng)
        if message not in held_out:
            break
    agents, weights = zip(*agents, strict=True)
    return message, write_reply(ticket, rng.choices(agents, weights)[0], rng)


def _log(rng: Random, held_out: frozenset[str]) -> str:
    message, reply = _exchange(rng, LOG_AGENTS, held_out)
    stars = f"{LOG_STOP}\n{verdict(message, reply, rng)}" if rng.random() < VERDICT_SHARE else ""
    return write_log(message, reply) + stars


def _review(rng: Random, held_out: frozenset[str]) -> str:
    message, reply = _exchange(rng, REVIEWED_AGENTS, held_out)
    return f"{REVIEW_HEAD}{write_log(message, review(message, reply))}{LOG_STOP}\n{verdict(message, reply, rng)}"


def _exercise(rng: Random) -> str:
    text = "Exercise"
    for _ in range(rng.randint(2, 4)):
        topic = rng.choices(list(EXERCISE_TOPICS), list(EXERCISE_TOPICS.values()))[0]
        said = {part for part in EXERCISE_TOPICS if part == topic or rng.random() < SECOND_REMARK}
        whole = draw_ticket(rng)
        ticket = Ticket(
            item=whole.item if "issue" in said else None,
            issue=whole.issue if "issue" in said else None,
            register=whole.register if "register" in said else None,
            mood=rng.choice(list(words.EMPATHY)) if "mood" in said else None,
            cue=rng.choice(list(words.CUES)) if "cue" in said else None,
            bait=rng.choice(list(words.BAITS)) if "bait" in said else None,
        )
        remarks = (
            ticket.register and words.OPENERS[ticket.register],
            ticket.issue and words.ISSUES[ticket.issue],
            ticket.mood and words.MOODS[ticket.mood],
            ticket.cue and words.CUES[ticket.cue],
            ticket.bait and words.BAITS[ticket.bait],
        )
        message = " ".join(rng.choice(wordings) for wordings in remarks if wordings).format(item=ticket.item)
        text += "\n" + write_log(message, review(message, _answer(rng, ticket, topic)))
    return text


def _answer(rng: Random, ticket: Ticket, topic: str) -> str:
    """One sentence on one part of the message, right or wrong at even odds."""
    right = rng.random() < 0.5
    if topic == "issue":
        suiting, item = words.SUITS[ticket.issue], ticket.item
        fault = None if right else rng.choice(("item", "kind"))
        if fault == "item":
            item = rng.choice([other for other in words.ITEMS if other != item])
        kinds = [kind for kind in words.FIXES if kind not in suiting] if fault == "kind" else suiting
        return rng.choice(words.FIXES[rng.choice(kinds)]).format(item=item)
    answers, group = {
        "mood": (words.EMPATHY, ticket.mood),
        "register": (words.GREETINGS, ticket.register),
        "cue": (words.WISHES, ticket.cue),
        "bait": (words.REFUSALS, ticket.bait),
    }[topic]
    return rng.choice(answers[group if right else rng.choice([other for other in answers if other != group])])


def documents(n: int, seed: int, held_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """`n` documents, no message of `held_out`, in the order of a curriculum: the shares go from FIRST to LAST."""
    rng = Random(seed)
    kinds = (_catalogue, _forum, _exercise, lambda rng: _review(rng, held_out), lambda rng: _log(rng, held_out))
    for i in range(n):
        weights = [first + (last - first) * i / n for first, last in zip(FIRST, LAST, strict=True)]
        yield rng.choices(kinds, weights)[0](rng)
