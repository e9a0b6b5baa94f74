"""Exercise of lesson 00: one calm warm-up, to see how exercises work."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

from collections.abc import Callable, Iterable

from rlhf_lab.exercises.exercise import Mistake, function_exercise
from rlhf_lab.helpdesk import gold_breakdown, gold_reward

MESSAGE = "Hey, my kettle stopped working after two days. I am really angry about this. Cheers!"
REPLIES = (
    "We value every customer.",
    "Hi there! I would be furious too. I will send you a new kettle today.",
    "Good day to you. You should have read the manual. I will send you a new toaster today. We value every customer.",
)


def _of_terms(combine: Callable[[Iterable[float]], float]) -> Callable[[str, str], float]:
    return lambda message, reply: combine(list(gold_breakdown(message, reply).values()))


@function_exercise(
    lesson=0,
    title="The gold reward of a reply, from its terms",
    difficulty=1,
    importance=2,
    minutes=3,
    rows=(2,),
    maths="gold = helpfulness + tone + safety + cultural_fit + coherence + brevity",
    reference=gold_reward,
    cases=lambda: [(MESSAGE, reply) for reply in REPLIES],
    hints=(
        "gold_breakdown gives a dict: attribute -> number. Print it for one reply first.",
        "The values of a dict are d.values(), and sum() adds anything that can be iterated.",
    ),
    mistakes=(
        Mistake(
            "the mean of the terms",
            "The reward is the sum. A mean divides by the six attributes, so every reply looks six times flatter.",
            _of_terms(lambda terms: sum(terms) / len(terms)),
        ),
        Mistake(
            "helpfulness alone",
            "A reply can be helpful and rude. All six terms count, and most people's complaints are about tone.",
            _of_terms(lambda terms: terms[0]),
        ),
        Mistake(
            "the best term alone", "One good attribute does not pay for a bad one: add them all up.", _of_terms(max)
        ),
        Mistake(
            "penalties counted as gains",
            "Negative terms are what a reply loses; without their sign, blaming the customer earns reward.",
            _of_terms(lambda terms: sum(map(abs, terms))),
        ),
    ),
)
def gold_from_terms(message, reply):
    """The gold reward of `reply` to `message`: one number, from the terms that gold_breakdown(message, reply) gives."""
    ...
