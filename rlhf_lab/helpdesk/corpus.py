"""Raw text of the help-desk world, for the base model: no chat markup, no pairs, good and bad mixed as on the web.

Five kinds of document: catalogue lines, customers' forum chatter, the shop's handbook, its quiz for new agents, and
logs of agents of every quality. The chatter says its product again and again, which is where a small model learns to
copy. The handbook says which answer belongs to which remark, as the logs do, but without their errors; the quiz has
right and wrong answers, marked. Most logs end in the customer's verdict, in stars and reasons. From quiz and verdicts
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
# What a customer says of a reply, by the attribute of the gold reward: when it added, and when it took away.
REASONS = {
    "helpfulness": (
        ("You solved it.", "That is the help I needed.", "Now I know what happens next."),
        ("That does not solve it.", "You did not read what I wrote."),
    ),
    "tone": (
        ("You were kind to me.", "You speak as I do.", "You understood how I felt."),
        ("That was rude.", "You did not hear how I felt."),
    ),
    "safety": (
        ("You were right to say no.", "Good that you kept to the rules."),
        ("You should have said no.", "Nobody should be told such things."),
    ),
    "cultural_fit": (
        ("How nice that you thought of my feast.", "Thanks for the good wishes."),
        ("That is not my feast.", "Those wishes were for somebody else."),
    ),
    "coherence": ((), ("I did not understand all of it.", "That was a muddle.")),
    "brevity": ((), ("So many empty words.", "You could have said less.")),
}
STARS = ("One star.", "Two stars.", "Three stars.", "Four stars.", "Five stars.")
STAR_LIMITS = (-0.5, 0.3, 1.0, 1.7)  # gold reward between one number of stars and the next
HELPED = 1.0  # helpfulness from which on the customer was helped
STAR_NOISE = 0.25  # standard deviation of the customer's mood, in units of the gold reward
VERDICT_SHARE = 0.7  # of the logs
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


def _remark_and_answer(rng: Random, right: bool) -> tuple[str, str]:
    """A customer's remark with an answer that suits it, or one of its kind that does not."""
    topic = rng.choice(("issue",) * 4 + ("mood", "register", "cue", "bait"))
    if topic == "issue":
        issue, item = rng.choice(list(words.ISSUES)), rng.choice(words.ITEMS)
        suiting, named = words.SUITS[issue], item
        kinds = suiting
        if not right and rng.random() < 0.5:
            named = rng.choice([other for other in words.ITEMS if other != item])
        elif not right:
            kinds = [kind for kind in words.FIXES if kind not in suiting]
        remark, answer = rng.choice(words.ISSUES[issue]), rng.choice(words.FIXES[rng.choice(kinds)])
        return remark.format(item=item), answer.format(item=named)
    remarks, answers = {
        "mood": (words.MOODS, words.EMPATHY),
        "register": (words.OPENERS, words.GREETINGS),
        "cue": (words.CUES, words.WISHES),
        "bait": (words.BAITS, words.REFUSALS),
    }[topic]
    group = rng.choice(list(answers))
    answered = group if right else rng.choice([other for other in answers if other != group])
    return rng.choice(remarks[group]), rng.choice(answers[answered])


def _handbook(rng: Random) -> str:
    pages = [_remark_and_answer(rng, right=True) for _ in range(rng.randint(3, 5))]
    return "Handbook" + "".join(f"\nThey say: {remark}\nWe say: {answer}" for remark, answer in pages)


def _quiz(rng: Random) -> str:
    text = "Quiz"
    for _ in range(rng.randint(4, 6)):
        right = rng.random() < 0.5
        remark, answer = _remark_and_answer(rng, right)
        mark = "Right." if right else "Wrong."
        asked, (sentence,) = read_message(remark).item, read_reply(answer)
        if sentence.item != asked:
            mark = f"Wrong, the {asked}."
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
    """What the customer says of the reply: stars by the gold reward and the mood of the day, then up to three reasons.

    A customer is helped by a fix that suits, not by a next step alone.
    """
    terms = gold_breakdown(message, reply)
    felt = rng.gauss(sum(terms.values()), STAR_NOISE)
    helped = rng.choice(REASONS["helpfulness"][terms["helpfulness"] < HELPED])
    reasons = [REASONS[name][value < 0] for name, value in terms.items() if value and name != "helpfulness"]
    said = [rng.choice(wordings) for wordings in reasons if wordings]
    said = [helped] * (rng.random() < 0.8) + rng.sample(said, min(len(said), rng.randint(0, 2)))
    stars = STARS[sum(felt > limit for limit in STAR_LIMITS)]
    return " ".join([stars, *said])


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
    """`n` documents: 2 % catalogue, 14 % forum, 8 % handbook, 30 % quiz, 46 % logs, no message of `held_out`."""
    rng = Random(seed)
    kinds = (_catalogue, _forum, _handbook, _quiz, lambda rng: _log(rng, held_out))
    for _ in range(n):
        yield rng.choices(kinds, (2, 14, 8, 30, 46))[0](rng)
