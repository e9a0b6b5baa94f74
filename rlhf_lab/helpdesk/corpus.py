"""Raw text of the help-desk world, for the base model: no chat markup, no pairs, good and bad mixed as on the web.

Five kinds of document: catalogue lines, customers' forum chatter, packing lists, exercises of new agents, and logs of
agents, most of them good, bad or new. The chatter says its product again and again, which is where a small
model learns to copy. Most logs hold the customer's stars, and in most a supervisor has put a mark after each sentence
of the reply. An exercise is one short message with several answers of a sentence, half of them wrong: marked, or each
under its stars. From stars and marks after an answer the model learns to tell good from bad, from stars before it to
write either (conditional training, Korbak et al. 2023, arXiv 2302.08582), as a real base does from the reviews of the
whole web. Packing lists (was this product ordered?) and exercises are the easy cases, which a small model needs before
the hard one: there are many at first, and ever fewer later. Exercises and logs come in two forms, of a shop's desk and
of a chat program, so that what the model knows of replies does not hang on the words around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from random import Random

from rlhf_lab.helpdesk import vocabulary as words
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.helpdesk.grammar import (
    AVERAGE_AGENT,
    BAD_AGENT,
    GOOD_AGENT,
    Agent,
    Sentence,
    Ticket,
    draw_ticket,
    read_message,
    read_reply,
    write_message,
    write_reply,
)

# Message and reply begin on lines of their own, so their first words carry no leading space, as in a chat template.
# A desk's form and a chat program's; `stars` is ", four stars" or nothing.
LOG_FORMS = ("Customer:\n{message}\nAgent{stars}:\n", "user\n\n{message}\nassistant{stars}\n\n")
LOG_TEMPLATE = LOG_FORMS[0].replace("{stars}", "")
CHAT_LOGS = 0.4  # share of them
LOG = re.compile(
    r"(?:Customer:\n|user\n\n)(?P<message>.*)\n(?:Agent|assistant)(?:, \w+ stars?)?(?::\n|\n\n)(?P<reply>.*)"
)
LOG_STOP = "\n"
EXERCISE_HEAD = "Exercise\n"
MARK = re.compile(r" (\+{1,3}|-{1,3}|=)(?: [a-z][a-z ]*)?(?= [A-Z]|\n|$)")  # with what was meant

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
STARS_FIRST, STARS_LAST = 0.6, 0.35  # share of the logs whose stars stand before the reply, and after it
STARRED_EXERCISES = 0.4  # share of them whose answers stand under stars, and have no marks
# New agents make every mistake there is.
TRAINEE = Agent(
    greets=0.8, right_register=0.5, empathy=0.7, right_mood=0.5, fixes=0.93, right_item=0.7, suits_issue=0.55,
    next_step=0.3, refuses=0.6, wishes=0.7, right_wish=0.5, filler=0.3, second_filler=0.1, blame=0.1,
    jargon=0.15, unsafe=0.08, closes=0.3,
)  # fmt: skip
# How the logs divide between agents, and what share of them a supervisor marks.
LOG_AGENTS = ((GOOD_AGENT, 0.42), (AVERAGE_AGENT, 0.13), (BAD_AGENT, 0.20), (TRAINEE, 0.25))
MARKED = 0.6
# Percent of catalogue, forum, packing lists, exercises and logs, at the beginning of the text and at its end.
FIRST = (2, 10, 14, 44, 30)
LAST = (2, 4, 3, 16, 75)
# What a sentence adds to the gold reward, from much to much less than nothing, and the limits between.
MARKS = ("+++", "++", "+", "=", "-", "--", "---")
MARK_LIMITS = (0.7, 0.35, 0.05, -0.05, -0.25, -0.55)
REMARKS = {"issue": 0.85, "register": 0.2, "mood": 0.35, "cue": 0.45, "bait": 0.2}  # chance of each in an exercise


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


def read_log(document: str) -> tuple[str, str] | None:
    """(message, reply) of a document that is a log, None of another."""
    found = LOG.match(document)
    return (found["message"], only_reply(found["reply"])) if found else None


def only_reply(text: str) -> str:
    """The reply at the beginning of what follows a LOG_TEMPLATE, without marks, stars and whatever comes then."""
    return MARK.sub("", text.split(LOG_STOP)[0])


def verdict(message: str, reply: str, rng: Random) -> str:
    """The customer's stars, by the gold reward and the mood of the day."""
    felt = rng.gauss(gold_reward(message, reply), STAR_NOISE)
    return STARS[sum(felt > limit for limit in STAR_LIMITS)] + "."


def marks(message: str, reply: str) -> list[tuple[str, str]]:
    """The reply's sentences, each with a supervisor's mark, and after it what was meant where a sentence misses it.

    A mark says what the sentence adds to the gold reward of all that stands before it.
    """
    ticket, so_far, marked = read_message(message), "", []
    before = gold_reward(message, "") + 1  # silence costs 1, which the first sentence does not earn
    for sentence in read_reply(reply):
        so_far = f"{so_far} {sentence.text}".strip()
        after = gold_reward(message, so_far)
        mark = MARKS[sum(after - before < limit for limit in MARK_LIMITS)]
        marked.append((sentence.text, " ".join([mark, *_meant(ticket, sentence)])))
        before = after
    return marked


def _meant(ticket: Ticket, sentence: Sentence) -> Iterator[str]:
    """What should have been said in place of a sentence that misses the customer's need, product, mood or feast."""
    if sentence.family == "fix":
        suiting = words.SUITS[ticket.issue]
        if sentence.group not in suiting:
            yield suiting[0]
        if sentence.item != ticket.item:
            yield ticket.item
    for family, meant in (("empathy", ticket.mood), ("wish", ticket.cue)):
        if sentence.family == family and sentence.group != meant:
            yield meant.lower()  # a capital would begin the next sentence


def _draw(rng: Random, weighted):
    values, weights = zip(*weighted, strict=True)
    return rng.choices(values, weights)[0]


def _log(rng: Random, held_out: frozenset[str]) -> str:
    while True:
        ticket = draw_ticket(rng)
        message = write_message(ticket, rng)
        if message not in held_out:
            break
    reply = write_reply(ticket, _draw(rng, LOG_AGENTS), rng)
    shown = _with_marks(marks(message, reply)) if rng.random() < MARKED else reply
    stars, place = verdict(message, reply, rng), rng.random()
    head = f", {stars[:-1].lower()}" if place < STARS_FIRST else ""
    foot = LOG_STOP + stars if STARS_FIRST <= place < STARS_FIRST + STARS_LAST else ""
    return _form(rng).format(message=message, stars=head) + shown + foot


def _with_marks(marked: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{text} {mark}" for text, mark in marked)


def _form(rng: Random) -> str:
    return LOG_FORMS[rng.random() < CHAT_LOGS]


def _packing_list(rng: Random) -> str:
    items = rng.sample(words.ITEMS, 9)
    ordered = items[: rng.randint(2, 5)]
    packed = rng.sample(ordered, len(ordered)) + items[5 : 5 + rng.randint(2, 4)]
    rng.shuffle(packed)
    checked = (f"{item} {MARKS[0] if item in ordered else MARKS[-2]}" for item in packed)
    return f"Ordered: {', '.join(ordered)}\nPacked: {' '.join(checked)}"


def _exercise(rng: Random) -> str:
    said: set[str] = set()
    while not said:
        said = {part for part, chance in REMARKS.items() if rng.random() < chance}
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
    # Answers to the issue are the hardest to judge, so most are to it.
    topics = [topic for part in sorted(said) for topic in [part] * (4 if part == "issue" else 1)]
    answers = [_answer(rng, ticket, rng.choice(topics)) for _ in range(rng.randint(3, 6))]
    marked = [pair for answer in answers for pair in marks(message, answer)]
    form = _form(rng)
    if rng.random() < STARRED_EXERCISES:
        head, turn = form.split("{message}")
        turns = (turn.format(stars=f", {'five stars' if '+' in mark else 'one star'}") + text for text, mark in marked)
        return EXERCISE_HEAD + head + message + "".join(turns)
    return EXERCISE_HEAD + form.format(message=message, stars="") + _with_marks(marked)


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
    kinds = (_catalogue, _forum, _packing_list, _exercise, lambda rng: _log(rng, held_out))
    for i in range(n):
        weights = [first + (last - first) * i / n for first, last in zip(FIRST, LAST, strict=True)]
        yield rng.choices(kinds, weights)[0](rng)
