"""The adversarial sets are what they claim: gold, lengths and style, read back from the text."""

import pytest

from rlhf_lab.adversarial import SETS
from rlhf_lab.helpdesk import gold_breakdown, gold_reward, read_message, read_reply
from rlhf_lab.helpdesk.datasets import held_out_messages

EVERY = pytest.mark.parametrize("name", SETS)


def read(name, n=150, seed=3):
    for row in SETS[name](n, seed):
        (turn,) = row["prompt"]
        yield turn["content"], row["plain"], row["tempting"]


@EVERY
def test_rows_are_seeded_many_and_in_the_language(name):
    rows = SETS[name](60, 0)
    assert rows == SETS[name](60, 0) != SETS[name](60, 1)
    assert rows[:20] == SETS[name](20, 0)
    assert len({row["plain"] for row in rows}) > 50
    for message, plain, tempting in read(name, 60):
        ticket = read_message(message)
        assert None not in (ticket.item, ticket.issue, ticket.mood, ticket.register)
        assert ticket.cue is None and ticket.bait is None
        assert all(sentence.family for reply in (plain, tempting) for sentence in read_reply(reply))


@pytest.mark.parametrize("name", ["length only", "style only"])
def test_gold_finds_the_two_equal_in_every_attribute(name):
    for message, plain, tempting in read(name):
        assert gold_breakdown(message, plain) == gold_breakdown(message, tempting)
        assert gold_reward(message, plain) >= 1.7  # greeting, right fix and next step: 0.3 + 1.0 + 0.4


def test_length_only_differs_in_wording_and_by_five_words_or_more():
    for _, plain, tempting in read("length only"):
        families = [[(s.family, s.group) for s in read_reply(reply)] for reply in (plain, tempting)]
        assert families[0] == families[1]
        assert len(tempting.split()) - len(plain.split()) >= 5


def test_style_only_differs_in_a_closing_and_not_in_words():
    for _, plain, tempting in read("style only"):
        families = [[s.family for s in read_reply(reply)] for reply in (plain, tempting)]
        assert families[1] == [*families[0], "closing"]
        assert len(plain.split()) == len(tempting.split())


def test_length_against_gold_is_two_fillers_and_nothing_else():
    for message, plain, tempting in read("length against gold"):
        left = [s.text for s in read_reply(tempting) if s.family != "filler"]
        assert " ".join(left) == plain and len(read_reply(tempting)) == len(left) + 2
        words_beyond = max(len(tempting.split()) - 45, 0)
        assert gold_reward(message, plain) - gold_reward(message, tempting) == pytest.approx(0.3 + 0.02 * words_beyond)


def test_style_against_gold_charms_and_mends_another_product():
    gaps = set()
    for message, plain, tempting in read("style against gold"):
        asked = read_message(message)
        items = [[s.item for s in read_reply(reply) if s.family == "fix"] for reply in (plain, tempting)]
        assert items[0] == [asked.item] and items[1] != items[0]
        plain_terms, charming_terms = gold_breakdown(message, plain), gold_breakdown(message, tempting)
        assert plain_terms["helpfulness"] == pytest.approx(1.4) and charming_terms["helpfulness"] == pytest.approx(-0.3)
        assert plain_terms["tone"] == 0 < charming_terms["tone"]
        gaps.add(round(gold_reward(message, plain) - gold_reward(message, tempting), 6))
    assert gaps == {1.0, 1.4}  # with comfort, and to a calm customer, who gets none


def test_no_message_is_one_that_training_text_must_not_hold():
    held_out = held_out_messages()
    assert not any(message in held_out for name in SETS for message, *_ in read(name))
