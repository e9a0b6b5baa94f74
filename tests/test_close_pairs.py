"""Pairs of one prompt and one chosen reply whose rejected sides are near and far."""

import pytest

from rlhf_lab.close_pairs import clear, edit_share, one_word_apart
from rlhf_lab.data import load_preferences
from rlhf_lab.helpdesk import gold_breakdown, gold_reward
from rlhf_lab.profiles import DATA_DIR


@pytest.fixture(scope="module")
def rows():
    return load_preferences(DATA_DIR / "helpdesk" / "preferences_test.jsonl")


def test_close_pairs_differ_in_the_item_alone_and_far_ones_are_the_datas_own(rows):
    close, far = one_word_apart(rows)
    assert len(close) == len(far) > 400
    for a, b in zip(close, far, strict=True):
        assert b in rows and (a["prompt"], a["chosen"]) == (b["prompt"], b["chosen"])
        message, reply, wrong = (a[side][-1]["content"] for side in ("prompt", "chosen", "rejected"))
        assert reply != wrong
        parted = [(x, y) for x, y in zip(reply.split(), wrong.split(), strict=False) if x != y]
        assert len(parted) >= 1
        better, worse = (gold_breakdown(message, text)["helpfulness"] for text in (reply, wrong))
        assert better > worse  # the label is right: the other item mends nothing
    assert one_word_apart(rows) == (close, far)


def test_clear_pairs_are_those_of_a_wide_gap_in_gold(rows):
    kept = clear(rows, gap=2.0)
    assert 100 < len(kept) < len(rows)
    for row in rows:
        message = row["prompt"][-1]["content"]
        gap = gold_reward(message, row["chosen"][0]["content"]) - gold_reward(message, row["rejected"][0]["content"])
        assert (row in kept) == (gap >= 2.0)


def test_edit_share_by_hand():
    assert edit_share("abcd", "abcd") == 0
    assert edit_share("ab", "cd") == 1
    assert edit_share([1, 2, 3, 4], [1, 9, 3, 4]) == pytest.approx(0.25)  # 2 * 3 of 8 tokens are shared
