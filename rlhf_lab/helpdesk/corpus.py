"""Raw text of the help-desk world, for the base model: no chat markup, no pairs, good and bad mixed as on the web.

Five kinds of document: catalogue lines, customers' forum chatter, the shop's handbook, its quiz for new agents, and
logs of agents of every quality. The chatter says its product again and again, which is where a small model learns to
copy. The handbook says which answer belongs to which remark, as the logs do, but without their errors; the quiz has
right and wrong answers, marked. Most logs end in the customer's stars and answers to a survey. From quiz and survey
the model learns what people like, as a real base does from the reviews of the whole web.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from rlhf_lab.helpdesk import vocabulary as words
from rlhf_lab.helpdesk.gold import gold_breakdown
from rlhf_lab.helpdesk.grammar import (
    AVERAGE_AGENT,
    BAD_AGENT,
    GOOD_AGENT,
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
VERDICT_SHARE = 0.8  # of the logs
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


def _remark_and_answer(rng: Random, right: bool) -> tuple[str, str, str]:
    """A customer's remark with an answer that suits it, or one of its kind that does not; and the quiz's mark."""
    mark = "Right." if right else "Wrong."
    topic = rng.choice(("issue",) * 4 + ("mood", "register", "cue", "bait"))
    if topic == "issue":
        issue, item = rng.choice(list(words.ISSUES)), rng.choice(words.ITEMS)
        suiting, named = words.SUITS[issue], item
        kinds = suiting
        if not right and rng.random() < 0.5:
            named = rng.choice([other for other in words.ITEMS if other != item])
            mark = f"Wrong, the {item}."
        elif not right:
            kinds = [kind for kind in words.FIXES if kind not in suiting]
        remark, answer = rng.choice(words.ISSUES[issue]), rng.choice(words.FIXES[rng.choice(kinds)])
        return remark.format(item=item), answer.format(item=named), mark
    remarks, answers = {
        "mood": (words.MOODS, words.EMPATHY),
        "register": (words.OPENERS, words.GREETINGS),
        "cue": (words.CUES, words.WISHES),
        "bait": (words.BAITS, words.REFUSALS),
    }[topic]
    group = rng.choice(list(answers))
    answered = group if right else rng.choice([other for other in answers if other != group])
    return rng.choice(remarks[group]), rng.choice(answers[answered]), mark


def _handbook(rng: Random) -> str:
    pages = [_remark_and_answer(rng, right=True) for _ in range(rng.randint(3, 5))]
    return "Handbook" + "".join(f"\nThey say: {remark}\nWe say: {answer}" for remark, answer, _ in pages)


def _quiz(rng: Random) -> str:
    text = "Quiz"
    for _ in range(rng.randint(4, 6)):
        remark, answer, mark = _remark_and_answer(rng, right=rng.random() < 0.5)
        text += f"\nThey say: {remark}\nWe say: {answer}\n{mark}"
    return text


def write_log(message: str, reply: str) -> str:
    """One exchange as it stands in the raw text."""
    return LOG_TEMPLATE.format(message=message) + reply


def read_log(document: str) -> tuple[str, str] | None:
    """(message, reply) of a document that is a log, None of another."""
    if not document.startswith("Customer:\n"):
        return None
    message, _, rest = document.removeprefix("Customer:\n").partition("\nAgent:\n")
    return message, rest.split(LOG_STOP)[0]


def write_verdict(message: str, reply: str, rng: Random) -> str:
    """What the customer says of the reply: stars by the gold reward and the mood of the day, then the survey."""
    terms = gold_breakdown(message, reply)
    felt = rng.gauss(sum(terms.values()), STAR_NOISE)
    stars = STARS[sum(felt > limit for limit in STAR_LIMITS)]
    return f"{stars}, {', '.join(f'{asked} {answer}' for asked, answer in survey(message, reply).items())}."


def survey(message: str, reply: str) -> dict[str, str]:
    """The customer's answers: the product and the help of the first fix, then one word an attribute of the reward."""
    terms, ticket = gold_breakdown(message, reply), read_message(message)
    fix = next((sentence for sentence in read_reply(reply) if sentence.family == "fix"), None)

    def sign(attribute: str, bad: str, good: str, nothing: str = "fine") -> str:
        value = terms[attribute]
        return bad if value < 0 else good if value > 0 else nothing

    return {
        "product": "missing" if fix is None else "right" if fix.item == ticket.item else "wrong",
        "help": "missing" if fix is None else "right" if fix.group in words.SUITS.get(ticket.issue, ()) else "wrong",
        "tone": sign("tone", "rude", "kind"),
        "rules": sign("safety", "broken", "kept"),
        "feast": sign("cultural_fit", "wrong", "right"),
        "wording": sign("coherence", "muddled", "clear", "clear"),
        "length": sign("brevity", "wrong", "right", "right"),
    }


def _log(rng: Random, held_out: frozenset[str]) -> str:
    while True:
        ticket = draw_ticket(rng)
        message = write_message(ticket, rng)
        if message not in held_out:
            break
    agents, weights = zip(*LOG_AGENTS, strict=True)
    reply = write_reply(ticket, rng.choices(agents, weights)[0], rng)
    log = write_log(message, reply)
    return f"{log}{LOG_STOP}\n{write_verdict(message, reply, rng)}" if rng.random() < VERDICT_SHARE else log


def documents(n: int, seed: int, held_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """`n` documents: 2 % catalogue, 14 % forum, 6 % handbook, 14 % quiz, 64 % logs, no message of `held_out`."""
    rng = Random(seed)
    kinds = (_catalogue, _forum, _handbook, _quiz, lambda rng: _log(rng, held_out))
    for _ in range(n):
        yield rng.choices(kinds, (2, 14, 6, 14, 64))[0](rng)
