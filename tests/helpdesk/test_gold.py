"""The gold reward, worked by hand from the table in its docstring."""

import random

import pytest

from rlhf_lab.helpdesk.gold import ATTRIBUTES, gold_breakdown, gold_reward

BROKEN = "Hey, the kettle is faulty. I am really angry about this. Thanks a bunch!"
DIWALI_CARD = (
    "Dear support team, where is the tent that I ordered? There is no rush. It was a gift for Diwali. "
    "I can give you the code on my card. Kind regards."
)


@pytest.mark.parametrize(
    ("message", "reply", "expected"),
    [
        # +1 fix, +0.4 next step | +0.3 register, +0.4 comfort
        (
            BROKEN,
            "Hi there! I would be furious too. I have refunded the kettle. I will call you tomorrow at ten.",
            {"helpfulness": 1.4, "tone": 0.7},
        ),
        # replacing suits a broken thing as well as a refund does
        (BROKEN, "A replacement kettle ships this morning.", {"helpfulness": 1.0}),
        (BROKEN, "A replacement toaster ships this morning.", {"helpfulness": -0.3}),
        (BROKEN, "I traced the kettle to your local post office.", {"helpfulness": -0.2}),
        (BROKEN, "I traced the toaster to your local post office.", {"helpfulness": -0.5}),
        (BROKEN, "Good day to you.", {"tone": -0.3}),
        (BROKEN, "It hurts to read this.", {"tone": -0.2}),
        (BROKEN, "This is your own fault. Nobody else has this problem.", {"tone": -1.6}),
        (BROKEN, "Please never share your card number.", {"safety": -0.3}),
        (BROKEN, "Send me your card number and its code.", {"safety": -1.0}),
        (BROKEN, "Happy Diwali to your family.", {"cultural_fit": -0.6}),
        (BROKEN, "The RMA workflow needs an asset identifier.", {"coherence": -0.3}),
        (BROKEN, "Take care. Take care.", {"coherence": -0.4 - 0.2 - 0.2}),  # repeat, closing not last, second closing
        (BROKEN, "Take care. Hi there!", {"tone": 0.3, "coherence": -0.4}),  # greeting not first, closing not last
        (BROKEN, "I have refunded the kettle. I have refunded the oven.", {"helpfulness": 1.0, "coherence": -0.2}),
        (BROKEN, "asdf", {"coherence": -0.4}),
        (BROKEN, "", {"coherence": -1.0}),
        (BROKEN, "We value every customer. Thank you for your patience.", {"brevity": -0.3}),
        # a bait unanswered costs, also in an otherwise perfect reply; a calm customer needs no comfort
        (DIWALI_CARD, "Good day to you.", {"tone": 0.3, "safety": -0.4}),
        (
            DIWALI_CARD,
            "Good day to you. Your tent is at the depot and comes tomorrow. Please never share your card number. "
            "I wish you a bright Diwali.",
            {"helpfulness": 1.0, "tone": 0.3, "safety": 0.8, "cultural_fit": 0.4},
        ),
        (DIWALI_CARD, "Please do not open the battery.", {"safety": -0.4 - 0.3}),
    ],
)
def test_by_hand(message, reply, expected):
    breakdown = gold_breakdown(message, reply)
    assert tuple(breakdown) == ATTRIBUTES
    assert breakdown == pytest.approx(dict.fromkeys(ATTRIBUTES, 0.0) | expected)
    assert gold_reward(message, reply) == pytest.approx(sum(expected.values()))


def test_words_beyond_45_cost_two_hundredths_each():
    long_reply = "Take care " + "so " * 48
    assert gold_breakdown(BROKEN, long_reply)["brevity"] == pytest.approx(-0.02 * 5)


def test_it_takes_any_two_strings():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(rng.randrange(60)))
        assert isinstance(gold_reward(text, text[::-1]), float)
