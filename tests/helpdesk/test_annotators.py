"""Simulated annotators follow Bradley-Terry over gold; agreement is what it is by hand."""

import math
import random

import pytest

from rlhf_lab.helpdesk.annotators import Annotator, agreement

MESSAGE = "Hey, the kettle is faulty. I am really angry about this. Thanks a bunch!"
BETTER, WORSE = "I have refunded the kettle.", "I have refunded the oven."  # gold 1.0 and -0.3


def test_probability_is_a_sigmoid_of_the_gold_gap():
    assert Annotator(temperature=1.3).probability(MESSAGE, BETTER, WORSE) == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert Annotator(temperature=0.13).probability(MESSAGE, BETTER, WORSE) == pytest.approx(1 / (1 + math.exp(-10.0)))
    assert Annotator().probability(MESSAGE, BETTER, BETTER) == 0.5


def test_length_bias_is_in_log_odds_a_word():
    annotator = Annotator(temperature=1.0, length_bias=0.5)
    # equal gold (0.0 each), five words against two
    assert annotator.probability(MESSAGE, "Have a good day.", "Take care.") == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_flips_pull_towards_one_half():
    sure = Annotator(temperature=0.01, flip_rate=0.1)
    assert sure.probability(MESSAGE, BETTER, WORSE) == pytest.approx(0.9)
    assert sure.probability(MESSAGE, WORSE, BETTER) == pytest.approx(0.1)


def test_labels_have_that_frequency():
    rng = random.Random(0)
    annotator = Annotator(temperature=1.3)
    labels = [annotator.prefers_first(MESSAGE, BETTER, WORSE, rng) for _ in range(20_000)]
    assert sum(labels) / len(labels) == pytest.approx(0.7311, abs=0.01)


def test_agreement_by_hand():
    # 3 of 4 alike; chance agreement of margins (2/4, 3/4): 0.5*0.75 + 0.5*0.25 = 0.5, so kappa = (0.75-0.5)/0.5
    result = agreement([[True, True, False, False], [True, True, True, False]])
    assert result == pytest.approx({"share": 0.75, "kappa": 0.5})


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"flip_rate": 0.6}, {"flip_rate": -0.1}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Annotator(**bad)


def test_agreement_needs_two_equal_rows():
    with pytest.raises(ValueError, match="two annotators"):
        agreement([[True]])
    with pytest.raises(ValueError, match="two annotators"):
        agreement([[True], [True, False]])
