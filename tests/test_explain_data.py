"""The hand-written pairs: whole, unique, and of like length in words, so that counting words gives nothing away."""

import json
from collections import Counter

import pytest

from rlhf_lab.data import load_preferences
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.profiles import DATA_DIR

PAIRS = DATA_DIR / "explain" / "pairs.jsonl"
RED_TEAM = DATA_DIR / "explain" / "red_team.jsonl"
CARD = DATA_DIR / "README.md"
SIDES = ("chosen", "rejected")
CATEGORIES = (
    "privacy", "credentials", "deception", "product_safety", "prompt_injection", "system_prompt", "bias", "health",
    "fraud", "self_harm",
)  # fmt: skip


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def text(row, column):
    return row[column][0]["content"]


def words(row, column):
    return len(text(row, column).split())


def difference(row):
    """By what share of the longer side the two sides differ in words."""
    a, b = (words(row, side) for side in SIDES)
    return abs(a - b) / max(a, b)


def longer_share(pairs, length=words):
    """How often chosen is the longer side, ties half."""
    gaps = [length(row, "chosen") - length(row, "rejected") for row in pairs]
    return sum((gap > 0) + 0.5 * (gap == 0) for gap in gaps) / len(gaps)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def assert_schema(row, texts):
    assert list(row) == [*texts, "prompt", *SIDES], row["id"]
    assert all(isinstance(row[column], str) and row[column].strip() for column in texts), row["id"]
    for column, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        assert len(row[column]) == 1 and list(row[column][0]) == ["role", "content"], (row["id"], column)
        assert row[column][0]["role"] == role, (row["id"], column)
        content = text(row, column)
        assert content and content == " ".join(content.split()), (row["id"], column, "stray white space")


def assert_unique(values):
    assert [value for value, count in Counter(values).items() if count > 1] == []


def normal(string):
    return " ".join(string.lower().split())


@pytest.fixture(scope="module")
def pairs():
    return rows(PAIRS)


@pytest.fixture(scope="module")
def red_team():
    return rows(RED_TEAM)


def test_pairs_schema(pairs):
    assert [row["id"] for row in pairs] == [f"explain-{i:03d}" for i in range(1, 201)]
    for row in pairs:
        assert_schema(row, ("id", "topic", "audience"))


def test_pairs_repeat_no_topic_prompt_or_reply(pairs):
    assert_unique(normal(row["topic"]) for row in pairs)
    assert_unique(normal(text(row, "prompt")) for row in pairs)
    assert_unique(normal(text(row, side)) for row in pairs for side in SIDES)


def test_pairs_are_of_like_length_in_words(pairs):
    assert [row["id"] for row in pairs if difference(row) > 0.12] == []
    assert [row["id"] for row in pairs for side in SIDES if not 35 <= words(row, side) <= 75] == []
    assert 0.45 <= longer_share(pairs) <= 0.55


def test_red_team_schema(red_team):
    assert [row["id"] for row in red_team] == [f"red-{i:02d}" for i in range(1, 21)]
    for row in red_team:
        assert_schema(row, ("id", "category"))
    assert Counter(row["category"] for row in red_team) == dict.fromkeys(CATEGORIES, 2)


def test_red_team_repeats_nothing(red_team):
    assert_unique(normal(text(row, column)) for row in red_team for column in ("prompt", *SIDES))


def test_red_team_sides_are_of_like_length(red_team):
    assert [row["id"] for row in red_team if difference(row) > 0.20] == []
    assert [row["id"] for row in red_team for side in SIDES if not 15 <= words(row, side) <= 60] == []
    assert 0.45 <= longer_share(red_team) <= 0.55


def test_a_hint_at_suicide_is_answered_with_help(red_team):
    hints = [row for row in red_team if row["category"] == "self_harm"]
    for row in hints:
        assert "988" in text(row, "chosen") and "116 123" in text(row, "chosen")
        assert "988" not in text(row, "rejected")


@pytest.mark.parametrize("path", [PAIRS, RED_TEAM], ids=lambda path: path.name)
def test_the_loader_takes_them_as_they_are(path):
    raw = rows(path)
    loaded = load_preferences(path)
    assert loaded == [{column: row[column] for column in ("prompt", *SIDES)} for row in raw]


def card_cells(start):
    """The cells of the first row of the card's tables that begins with `start`."""
    line = next(line for line in CARD.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("| ").split("|")]


@pytest.mark.parametrize(
    "name",
    ["helpdesk/sft", "helpdesk/preferences_train", "helpdesk/preferences_test", "helpdesk/prompts", "explain/pairs",
     "explain/red_team"],
)  # fmt: skip
def test_the_card_states_rows_and_columns(name):
    found = rows(DATA_DIR / f"{name}.jsonl")
    _, count, columns, _ = card_cells(f"`{name}.jsonl`")
    assert count == f"{len(found):,}"
    assert all(list(row) == columns.split(", ") for row in found)


def test_the_card_states_the_lengths_of_the_pairs(pairs):
    lengths = {side: [words(row, side) for row in pairs] for side in SIDES}
    expected = [f"{mean(lengths[side]):.1f} ({min(lengths[side])} to {max(lengths[side])})" for side in SIDES]
    assert card_cells("words, mean (range)")[1:] == expected
    characters = [f"{mean(len(text(row, side)) for row in pairs):.0f}" for side in SIDES]
    assert card_cells("characters, mean")[1:] == characters
    card = CARD.read_text(encoding="utf-8")
    assert f"`chosen` has more of them in {longer_share(pairs):.0%} of the pairs".replace("%", " %") in card
    fewer = sum(len(text(row, "chosen")) < len(text(row, "rejected")) for row in pairs)
    assert f"right on {fewer} of 200 pairs" in card


def test_the_card_states_the_oracle_accuracy():
    """The side with the higher gold reward, ties half: the ceiling that a reward model is measured against."""
    stated = card_cells("oracle accuracy")[1:]
    for name, cell in zip(("preferences_train", "preferences_test"), stated, strict=True):
        gaps = []
        for row in rows(DATA_DIR / "helpdesk" / f"{name}.jsonl"):
            gold = [gold_reward(text(row, "prompt"), text(row, side)) for side in SIDES]
            gaps.append(gold[0] - gold[1])
        oracle = mean((gap > 1e-9) + 0.5 * (abs(gap) <= 1e-9) for gap in gaps)
        assert 100 * oracle == pytest.approx(float(cell.removesuffix(" %")), abs=0.0501), name
