"""The annotator's pairs, session and agreement: by hand, by theory, and by killing it."""

import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.stats

from rlhf_lab.annotate import ANNOTATORS, Pair, Session, agree, compare, helpdesk_pairs, kappa_interval
from rlhf_lab.annotate.agreement import _resampled_kappas, annotator_labels, expected_share, my_report
from rlhf_lab.annotate.pairs import gold_knows, gold_view, read_pairs, spread_over_prompts
from rlhf_lab.annotate.session import Answer, my_labels, my_session
from rlhf_lab.data import load_preferences
from rlhf_lab.errors import UserError
from rlhf_lab.files import data_dir
from rlhf_lab.helpdesk import Annotator, gold_breakdown, gold_reward
from rlhf_lab.pipeline import HELPDESK
from rlhf_lab.preferences import cohen_kappa

MESSAGE = "Hey, my kettle has still not arrived. Cheers!"


def pairs_of(n):
    prompt = [{"role": "user", "content": "Say a number."}]
    return [Pair(prompt, f"It is {i}.", f"Perhaps {i}?") for i in range(n)]


def user(text):
    return [{"role": "user", "content": text}]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- pairs ----


def test_the_lesson_shows_every_kind_of_pair():
    pairs = helpdesk_pairs(30)
    views = [gold_view(pair) for pair in pairs]
    assert len({pair.id for pair in pairs}) == 30
    assert all(count >= 3 for count in Counter(view.decides for view in views).values())
    assert {view.decides for view in views} == set(gold_breakdown("", ""))
    assert 10 <= sum(abs(view.gap) < 0.5 for view in views) <= 20
    assert 10 <= sum(pair.longer == view.choice for pair, view in zip(pairs, views, strict=True)) <= 20
    assert all(abs(gold_reward(p.message, p.left) - gold_reward(p.message, p.right)) > 1e-9 for p in pairs)


def test_the_same_seed_shows_the_same_pairs_and_more_pairs_are_the_same_and_then_others():
    assert helpdesk_pairs(30) == helpdesk_pairs(30) == helpdesk_pairs(50)[:30]
    assert helpdesk_pairs(30, seed=1) != helpdesk_pairs(30)


def test_no_pair_of_the_lesson_is_in_the_test_set():
    test = {json.dumps(row["prompt"]) for row in load_preferences(HELPDESK / "preferences_test.jsonl")}
    assert not test & {json.dumps(pair.prompt) for pair in helpdesk_pairs(200)}


def test_the_deciding_attribute_by_hand():
    good, blames = "Hi there! Your kettle is at the depot and comes tomorrow.", "You could have asked sooner."
    view = gold_view(Pair(user(MESSAGE), blames, good))
    left, right = gold_breakdown(MESSAGE, blames), gold_breakdown(MESSAGE, good)
    assert view.gap == pytest.approx(sum(left.values()) - sum(right.values()))
    assert view.choice == "right"
    assert (right["helpfulness"] - left["helpfulness"], right["tone"] - left["tone"]) == pytest.approx((1.0, 1.1))
    assert view.decides == "tone"


def test_a_coin_decides_who_stands_left_and_a_row_turned_round_is_shown_the_same(tmp_path):
    pairs = read_pairs(HELPDESK / "preferences_train.jsonl")
    left = sum(pair.given == "left" for pair in pairs)
    assert abs(left - len(pairs) / 2) < 4 * math.sqrt(len(pairs) / 4)
    rows = load_preferences(HELPDESK / "preferences_train.jsonl")[:50]
    turned = [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
    again = read_pairs(written(tmp_path / "turned.jsonl", turned))
    assert [(p.left, p.right) for p in again] == [(p.left, p.right) for p in pairs[:50]]
    assert all(p.given != q.given for p, q in zip(again, pairs[:50], strict=True))


def test_k_replies_make_every_pair_and_the_same_text_twice_makes_none(tmp_path, capsys):
    path = written(
        tmp_path / "replies.jsonl",
        [
            {"prompt": "One?", "replies": ["a", "b", "c", "a "]},
            {"prompt": user("Two?"), "replies": [{"role": "assistant", "content": "d"}, "e"]},
            {"prompt": "Three?", "replies": ["f", "f"]},
        ],
    )
    pairs = read_pairs(path)
    assert [{p.left, p.right} for p in pairs][-1] == {"d", "e"}
    assert sorted(sorted({p.left, p.right}) for p in pairs[:-1]) == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert all(pair.given is None for pair in pairs)
    assert "1 rows set aside (rows 3)" in capsys.readouterr().err
    first_two = spread_over_prompts(pairs, 2, seed=0)
    assert {pair.message for pair in first_two} == {"One?", "Two?"}


def test_completions_of_one_prompt_are_held_against_each_other(tmp_path):
    rows = [("One?", "a"), ("Two?", "b"), ("One?", "c"), ("One?", "a")]
    path = written(tmp_path / "samples.jsonl", [{"prompt": p, "completion": c} for p, c in rows])
    (pair,) = read_pairs(path)
    assert pair.prompt == user("One?") and {pair.left, pair.right} == {"a", "c"}


def test_layouts_of_public_sets_and_other_column_names(tmp_path):
    start = "\n\nHuman: Hi.\n\nAssistant:"
    (pair,) = read_pairs(written(tmp_path / "hh.jsonl", [{"chosen": f"{start} a", "rejected": f"{start} b"}]))
    assert pair.prompt == user("Hi.") and {pair.left, pair.right} == {"a", "b"}
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["q", "good", "bad"], ["Hi.", "a", "b"]])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    (pair,) = read_pairs(tmp_path / "mine.csv", columns=columns)
    assert getattr(pair, pair.given) == "a"
    path = written(tmp_path / "answers.jsonl", [{"q": "Hi.", "responses": ["a", "b"]}])
    assert read_pairs(path, columns={"prompt": "q"})[0].prompt == user("Hi.")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "Hi.", "replies": ["a"]}, "row 1, column 'replies': has 1 where a list of two"),
        ({"prompt": "Hi.", "replies": "a"}, "row 1, column 'replies': is text where a list of two"),
        ({"prompt": "Hi.", "replies": ["a", ""]}, "row 1, column 'replies': the reply is empty"),
        ({"prompt": "Hi.", "replies": ["a", 3]}, "row 1, column 'replies': is a number where text is due"),
        (
            {"prompt": "Hi.", "replies": ["a", [*user("Ho."), {"role": "assistant", "content": "b"}]]},
            "is not the row's",
        ),
        ({"replies": ["a", "b"]}, "row 1, column 'prompt': the column is missing"),
        ({"prompt": "Hi.", "replies": ["a", "a"]}, "no prompt has two different replies"),
        ({"prompt": "Hi.", "completion": "a"}, "no prompt has two different replies"),
        ({"prompt": "Hi."}, "row 1, column 'completion': the column is missing"),
        ({"prompt": "Hi.", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same text"),
    ],
)
def test_data_that_cannot_be_compared_is_one_line_that_says_where(tmp_path, row, told):
    with pytest.raises(UserError) as error:
        read_pairs(written(tmp_path / "mine.jsonl", [row]))
    assert told in str(error.value) and "\n" not in str(error.value)


# ---- the session ----


def choices(session):
    return [answer.choice for answer in session.answers]


def test_it_goes_on_where_it_stopped(tmp_path):
    pairs = pairs_of(5)
    session = Session(pairs, tmp_path / "labels.jsonl")
    for choice in ("left", "tie", "right"):
        session.answer(choice)
    again = Session(pairs, tmp_path / "labels.jsonl")
    assert choices(again) == ["left", "tie", "right"]
    assert (again.done, again.total, again.current) == (3, 5, pairs[3])


def test_undo_reaches_back_over_sittings_and_restores_exactly_the_state_before(tmp_path):
    labels = tmp_path / "labels.jsonl"
    session, states = Session(pairs_of(4), labels), []
    for choice in ("left", "skip", "tie", "skip", "right", "skip"):
        text = labels.read_text() if labels.exists() else None
        states.append((session.current, session.done, choices(session), text))
        session.answer(choice)
    assert session.current is None
    session = Session(pairs_of(4), labels)
    for current, done, chosen, text in reversed(states):
        assert session.undo()
        assert (session.current, session.done, choices(session)) == (current, done, chosen)
        assert (labels.read_text() if labels.exists() else None) == text
    assert not session.undo()


def test_what_is_skipped_comes_again_once_after_the_others(tmp_path):
    pairs = pairs_of(3)
    session = Session(pairs, tmp_path / "labels.jsonl")
    order = []
    for choice in ("skip", "left", "skip", "skip", "tie"):
        order.append(pairs.index(session.current))
        session.answer(choice)
    assert order == [0, 1, 2, 0, 2]
    assert session.current is None and session.done == 3 and choices(session) == ["left", "tie"]


def test_labels_are_what_the_stages_load_and_ties_are_not_among_them(tmp_path):
    session = Session(helpdesk_pairs(4), tmp_path / "labels.jsonl")
    shown = []
    for choice in ("left", "right", "tie", "right"):
        shown.append(session.current)
        session.answer(choice)
    rows = load_preferences(tmp_path / "labels.jsonl")
    assert rows == session.preferences() and len(rows) == 3
    told = [(row["prompt"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    assert told == [
        (shown[0].prompt, shown[0].left, shown[0].right),
        (shown[1].prompt, shown[1].right, shown[1].left),
        (shown[3].prompt, shown[3].right, shown[3].left),
    ]


@pytest.mark.slow
def test_a_reward_model_trains_on_them(cli, tmp_path):
    session = Session(helpdesk_pairs(12), tmp_path / "labels.jsonl")
    while session.current:
        session.answer(gold_view(session.current).choice)
    code, out, err = cli(
        "reward", "--data", tmp_path / "labels.jsonl", "--max-steps", 2, "--per-device-train-batch-size", 4,
        "--output", tmp_path / "reward",
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "reward" / "adapter_config.json").is_file()


ANSWER_FOR_EVER = """
import sys
from rlhf_lab.annotate import Pair, Session
prompt = [{"role": "user", "content": "Say a number."}]
session = Session([Pair(prompt, f"It is {i}.", f"Perhaps {i}?") for i in range(100_000)], sys.argv[1])
while True:
    session.answer(("left", "right")[session.done % 2])
    print(session.done, flush=True)
"""


def test_a_kill_loses_no_answer(tmp_path):
    command = [sys.executable, "-c", ANSWER_FOR_EVER, tmp_path / "labels.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        said = 20 + len(process.stdout.read().splitlines())
    session = Session([], tmp_path / "labels.jsonl")
    assert said <= len(session.answers) <= said + 1
    assert choices(session) == [("left", "right")[i % 2] for i in range(len(session.answers))]
    assert load_preferences(tmp_path / "labels.jsonl") == session.preferences()


def test_a_line_cut_anywhere_is_dropped_and_the_next_answer_stands(tmp_path):
    session = Session(pairs_of(2), tmp_path / "labels.jsonl")
    session.answer("left")
    before = session.path.read_bytes()
    session.answer("right")
    after = session.path.read_bytes()
    for cut in range(len(before), len(after)):
        session.path.write_bytes(after[:cut])
        again = Session(pairs_of(2), tmp_path / "labels.jsonl")
        assert choices(again) == ["left"] and session.path.read_bytes() == before
    again.answer("tie")
    assert choices(Session(pairs_of(2), tmp_path / "labels.jsonl")) == ["left", "tie"]
    session.path.write_bytes(before[:20])  # cut in its very first line
    assert Session(pairs_of(2), tmp_path / "labels.jsonl").done == 0


def test_a_full_disk_is_said_and_the_answer_can_be_given_again(tmp_path, monkeypatch):
    session = Session(pairs_of(2), tmp_path / "labels.jsonl")
    session.answer("left")
    before = session.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device.*kept"):
            session.answer("right")
    assert session.path.read_bytes() == before and choices(session) == ["left"]
    session.answer("tie")
    assert choices(Session(pairs_of(2), tmp_path / "labels.jsonl")) == ["left", "tie"]


def test_files_that_are_not_its_own_are_refused_and_left_alone(tmp_path):
    labels, journal = tmp_path / "labels.jsonl", tmp_path / "labels.session.jsonl"
    labels.write_text("precious")
    with pytest.raises(UserError, match="was not written by an annotation session"):
        Session(pairs_of(2), labels)
    journal.write_text("also precious")
    with pytest.raises(UserError, match="row 1: is no annotation session"):
        Session(pairs_of(2), labels)
    assert (labels.read_text(), journal.read_text()) == ("precious", "also precious")
    with pytest.raises(UserError, match=r"labels are JSON lines.*Call it labels\.jsonl"):
        Session(pairs_of(2), tmp_path / "labels.csv")


def test_answers_of_other_data_are_not_mixed_in(tmp_path):
    pairs = pairs_of(4)
    Session(pairs[:2], tmp_path / "labels.jsonl").answer("left")
    with pytest.raises(UserError, match="1 of its 1 answers are to pairs that the data does not hold"):
        Session(pairs[2:], tmp_path / "labels.jsonl", known=[pair.id for pair in pairs[2:]])
    session = Session(pairs[2:], tmp_path / "labels.jsonl", known=[pair.id for pair in pairs])
    assert (session.done, session.total) == (1, 3)  # another choice of the same file's pairs keeps what was said


@pytest.mark.parametrize(
    "damage", ["{", '{"id": "1"}', '{"undo": "nothing"}', "[]", '{"id": "x", "choice": "left", "prompt": []}']
)
def test_a_damaged_journal_names_the_row(tmp_path, damage):
    session = Session(pairs_of(2), tmp_path / "labels.jsonl")
    session.answer("left")
    session.path.write_text(session.path.read_text() + damage + "\n")
    with pytest.raises(UserError, match=r"labels\.session\.jsonl, row 3: is no annotation session"):
        Session(pairs_of(2), tmp_path / "labels.jsonl")


def test_the_learners_own_labels_are_in_their_data_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_DATA", str(tmp_path / "mine"))
    session = my_session(3)
    assert not (tmp_path / "mine").exists()  # looking leaves nothing behind
    session.answer("right")
    assert my_labels().parent == tmp_path / "mine" and load_preferences(my_labels()) == session.preferences()
    monkeypatch.delenv("RLHF_LAB_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert data_dir() == tmp_path / "xdg" / "rlhf_lab"


# ---- agreement ----

# The example of Wikipedia's "Cohen's kappa": 50 proposals, yes/yes 20, yes/no 5, no/yes 10, no/no 15.
READER_A = ["left"] * 25 + ["right"] * 25
READER_B = ["left"] * 20 + ["right"] * 5 + ["left"] * 10 + ["right"] * 15


def test_kappa_of_the_textbook_example():
    found = agree(READER_A, READER_B)
    assert found.kappa.value == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert found.share.value == pytest.approx(0.7) and (found.n, found.decided) == (50, 50)
    assert found.kappa_with_ties == pytest.approx(found.kappa.value)


def test_the_interval_is_scipys_percentile_bootstrap():
    ours = kappa_interval(READER_A, READER_B, n_boot=8000)
    codes = tuple(np.asarray(labels) == "left" for labels in (READER_A, READER_B))
    theirs = scipy.stats.bootstrap(
        codes, cohen_kappa, paired=True, vectorized=False, method="percentile", n_resamples=8000, rng=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert kappa_interval(READER_A, READER_B) == kappa_interval(READER_A, READER_B)


def test_resampled_kappas_are_cohens():
    rng = np.random.default_rng(7)
    a, b = (rng.choice(["left", "right", "tie"], size=12) for _ in "ab")
    drawn = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=50)
    expected = [cohen_kappa(np.repeat(a, counts), np.repeat(b, counts)) for counts in drawn]
    assert _resampled_kappas(a, b, seed=3, n_boot=50) == pytest.approx(expected, nan_ok=True)


def test_full_agreement_is_not_certainty():
    """By hand: Wilson's lower end for 30 of 30 is 1 / (1 + z²/30) = 0.8865, and chance is a half."""
    labels = ["left", "right"] * 15
    found = kappa_interval(labels, labels)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx((1 / (1 + 1.959964**2 / 30) - 0.5) / 0.5, abs=1e-6)
    opposite = kappa_interval(labels, labels[::-1])
    assert opposite.value == opposite.low == -1.0 and -1 < opposite.high < -0.5


def test_who_always_says_left_agrees_by_chance_alone():
    gold = ["left"] * 12 + ["right"] * 18
    assert agree(["left"] * 30, gold).kappa.value == pytest.approx(0)
    assert agree(["left"] * 30, ["left"] * 30).kappa is None


def test_ties_by_hand():
    found = agree(["left", "right", "tie", "left"], ["left", "left", "right", "left"])
    assert (found.n, found.decided) == (4, 3)
    assert found.share.value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found.kappa.value == pytest.approx(0)  # of left, right, left and left, left, left: 2/3 by chance too
    # As a third answer: 2 of 4 alike, and 0.5 * 0.75 + 0.25 * 0.25 by chance.
    assert found.kappa_with_ties == pytest.approx((0.5 - 0.4375) / (1 - 0.4375))
    assert agree(["tie"], ["left"]).kappa is None and agree(["tie"], ["left"]).share.value == 0.5


def test_agreement_needs_the_same_pairs():
    for a, b in (([], []), (["left"], ["left", "right"])):
        with pytest.raises(ValueError, match="same pairs"):
            agree(a, b)


@pytest.mark.parametrize("annotator", [Annotator(0.3), Annotator(1.0, flip_rate=0.2)])
def test_a_simulated_annotator_lands_where_bradley_and_terry_say(annotator):
    """Its agreement with gold is the mean over pairs of sigmoid(|gap| / temperature), flips mixed in."""
    pairs = helpdesk_pairs(30)
    gaps = np.array([abs(gold_reward(p.message, p.left) - gold_reward(p.message, p.right)) for p in pairs])
    p = 1 / (1 + np.exp(-gaps / annotator.temperature))
    p = p * (1 - annotator.flip_rate) + (1 - p) * annotator.flip_rate
    assert expected_share(annotator, pairs) == pytest.approx(p.mean())
    gold, seeds = [gold_view(pair).choice for pair in pairs], 100
    shares = [agree(annotator_labels(annotator, pairs, seed), gold).share.value for seed in range(seeds)]
    error = math.sqrt((p * (1 - p)).sum()) / len(pairs) / math.sqrt(seeds)
    assert np.mean(shares) == pytest.approx(p.mean(), abs=4 * error)


def test_the_report_tells_a_labeller_who_likes_length_from_gold():
    pairs = helpdesk_pairs(60)
    report = compare([Answer(pair, pair.longer) for pair in pairs])
    assert report.habits["longer"].value == 1 and report.habits["longer"].low < 0.96
    assert report.kinds["gold prefers"]["the longer"].value == 1
    assert report.kinds["gold prefers"]["the shorter"].value == 0
    opposed = report.disagreements()
    assert len(opposed) == report.counts["gold prefers"]["the shorter"]
    assert all(answer.choice != view.choice for answer, view in opposed)
    gaps = [abs(view.gap) for _, view in opposed]
    assert gaps == sorted(gaps, reverse=True)


def test_gold_against_itself_and_every_pair_counted_once_a_question():
    pairs = helpdesk_pairs(40)
    report = compare([Answer(pair, gold_view(pair).choice) for pair in pairs])
    assert report.against["gold"].kappa.value == 1 and report.disagreements() == []
    assert set(report.against) == {"gold", "the file's labels", *(f"simulated, {name}" for name in ANNOTATORS)}
    assert all(sum(kinds.values()) == 40 for kinds in report.counts.values())
    assert report.habits["left"].value == report.gold_habits["left"]


def test_left_chosen_is_measured_over_the_decided_pairs():
    answers = [Answer(pair, choice) for pair, choice in zip(pairs_of(4), ["left", "left", "right", "tie"], strict=True)]
    report = compare(answers)
    assert report.habits["left"].value == pytest.approx(2 / 3)
    assert report.against == {} and report.kinds == {} and not gold_knows(pairs_of(4))
    assert "2 decided" not in str(report) and "3 decided, 1 tied" in str(report)


def test_an_untouched_lesson_speaks_of_a_simulated_annotator_and_then_of_you(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_DATA", str(tmp_path))
    report = my_report()
    assert report.simulated and "simulated, usual" not in report.against
    text = str(report)
    assert text.startswith("No labels of yours yet") and str(tmp_path) not in text
    assert "kappa" in text and "read nothing into" not in text
    session = my_session()
    session.answer("left")
    assert str(my_report()).startswith("You: 1 pairs answered")
    assert "read nothing into" in str(my_report())
