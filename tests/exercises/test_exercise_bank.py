"""Every exercise against right and wrong answers: references, the package's named mistakes, and learners' own code."""

import math
import re

import numpy as np
import pytest
import torch
from learners_answers import RIGHT, WRONG

from rlhf_lab.exercises import names
from rlhf_lab.exercises.exercise import LESSONS, catalogue
from rlhf_lab.exercises.grading import _size, cases_of, difference, grade, outcomes_of

EXERCISES = catalogue()
FUNCTIONS = [name for name, exercise in EXERCISES.items() if exercise.cases]
VALUES = [name for name, exercise in EXERCISES.items() if not exercise.cases]


def reference_answer(exercise):
    return exercise.reference if exercise.cases else exercise.reference()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_reference_passes(name):
    verdict = grade(EXERCISES[name], reference_answer(EXERCISES[name]))
    assert verdict.passed and verdict.mistake is None
    assert EXERCISES[name].title in verdict.body


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_right_answers_written_another_way_pass(name):
    for answer in RIGHT[name]:
        verdict = grade(EXERCISES[name], answer)
        assert verdict.passed, verdict


def test_every_function_has_another_right_way_and_every_exercise_a_wrong_answer_from_outside():
    assert set(FUNCTIONS) <= set(RIGHT)
    assert set(WRONG) == set(EXERCISES)


@pytest.mark.parametrize("name", EXERCISES)
def test_every_wrong_answer_fails_and_known_mistakes_are_called_by_their_name(name):
    exercise = EXERCISES[name]
    bank = [(mistake.name, mistake.answer) for mistake in exercise.mistakes] + WRONG[name]
    named = 0
    for expected, answer in bank:
        verdict = grade(exercise, answer)
        assert verdict.status == "failed", f"{expected}: {verdict}"
        assert verdict.mistake == expected, verdict
        if expected is not None:
            named += 1
            assert f"A usual mistake: {expected}." in verdict.body
    assert len(exercise.mistakes) >= 4
    assert named / len(bank) >= 2 / 3


@pytest.mark.parametrize("name", EXERCISES)
def test_no_answer_to_another_exercise_passes_by_accident(name):
    for other, exercise in EXERCISES.items():
        if other == name:
            continue
        answers = [reference_answer(exercise), *(m.answer for m in exercise.mistakes), *RIGHT.get(other, [])]
        for answer in [*answers, *(answer for _, answer in WRONG[other])]:
            assert grade(EXERCISES[name], answer).status == "failed", other


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_input_shown_is_the_smallest_that_shows_the_mistake(name):
    exercise = EXERCISES[name]
    cases = cases_of(name, exercise)
    sizes = [_size(case) for case in cases]
    assert sizes == sorted(sizes) and 0 < sizes[0] <= 20
    right = outcomes_of(name, exercise, exercise.reference)
    for mistake in exercise.mistakes:
        number = re.search(r"\(number (\d+)\)", grade(exercise, mistake.answer).body)
        if number is None:
            assert mistake.name == "missing detach"
            continue
        shown, given = int(number.group(1)) - 1, outcomes_of(name, exercise, mistake.answer)
        agrees = [difference(r.value, g.value, exercise) is None for r, g in zip(right, given, strict=True)]
        assert all(agrees[:shown]) and not agrees[shown]


def test_inputs_are_the_same_every_time():
    for name in FUNCTIONS:
        first, again = EXERCISES[name].cases(), EXERCISES[name].cases()
        for one, two in zip(first, again, strict=True):
            for a, b in zip(one, two, strict=True):
                same = (
                    torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, torch.Tensor) else np.array_equal(a, b)
                )
                assert same


def test_values_by_hand():
    answers = {name: EXERCISES[name].reference() for name in VALUES}
    assert answers["elo_points_per_reward"] == pytest.approx(400 / math.log(10)) == pytest.approx(173.7178, abs=1e-4)
    assert answers["cycle"] == 0.5  # three items with equal records
    assert answers["rank_without_alpha"] == 0.125  # 32 / 128 over 32 / 16
    assert answers["bits_in_nf4"] == pytest.approx(4.127, abs=5e-4)  # QLoRA, section 3: 0.127 bits for the constants
    assert answers["ipo_margin"] == pytest.approx(2.5, abs=1e-12)  # 1 / (2 * 0.2)
    assert answers["clip_gradients"] == [[-0.5, -1.0, 0.0], [0.0, 1.0, 1.5]]  # row E4 of the errata
    assert answers["margins_at_optimum"] == pytest.approx([21.9722, 4.3944], abs=1e-4)  # log 9 / beta
    assert answers["two_sevens"] == pytest.approx(26.96)
    assert answers["which_run_displaces"] == "b" and answers["stuck_at_log_two"] == "identical"
    assert answers["comparisons_in_a_batch"] == 2304  # InstructGPT, appendix C.2
    words = {
        "stuck_at_log_2": "same",
        "what_a_label_says": "which",
        "what_the_clip_does": "gradient",
        "what_beta_does": "closer",
        "what_target_kl_watches": "sampler",
    }
    assert words.items() <= answers.items() and answers["unseen_reply"] == "anything"
    assert answers["pad_is_eos"] == "goes_on"


def test_rounded_values_and_other_number_types_are_taken():
    for answer in (173.7, np.float32(173.7178), torch.tensor(173.7178), "173.7"):
        assert grade(EXERCISES["elo_points_per_reward"], answer).passed == (not isinstance(answer, str))
    assert grade(EXERCISES["what_beta_does"], " Closer ").passed
    assert grade(EXERCISES["clip_gradients"], np.array([[-0.5, -1, 0], [0, 1, 1.5]])).passed


def test_dpo_loss_reference_is_log_2_where_policy_and_reference_agree_and_the_unseen_reply_is_free():
    """The claims of two hints, checked."""
    same = torch.tensor([-3.0, -5.0], dtype=torch.float64)
    for beta in (0.1, 5.0):
        assert EXERCISES["dpo_loss"].reference(same, same - 1, same, same - 1, beta).item() == pytest.approx(
            math.log(2)
        )
    a, b, ref = 0.3, 0.2, torch.tensor([math.log(0.4)], dtype=torch.float64)
    losses = [
        EXERCISES["dpo_loss"].reference(*(torch.tensor([math.log(x * scale)]).double() for x in (a, b)), ref, ref, 0.1)
        for scale in (1.0, 0.01)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-7)


def test_the_course_has_its_exercises_with_their_place_in_the_article():
    assert len(EXERCISES) >= 24
    counted = {lesson: len(names(lesson)) for lesson in LESSONS}
    assert counted == {0: 1, 1: 5, 2: 8, 3: 10, 4: 9, 5: 10, 6: 7, 7: 8, 8: 8, 9: 9}
    assert names() == list(EXERCISES)
    for exercise in EXERCISES.values():
        assert 1 <= exercise.difficulty <= 5 and 1 <= exercise.importance <= 5 and exercise.minutes > 0
        assert exercise.rows and all(1 <= row <= 76 for row in exercise.rows)
        assert all(re.fullmatch(r"E([1-9]|1\d|2[0-7])", erratum) for erratum in exercise.errata)
        assert len(exercise.hints) >= 2
        assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes)
        assert all(len(mistake.says) >= 15 for mistake in exercise.mistakes)
    rows = {row for exercise in EXERCISES.values() for row in exercise.rows}
    assert {1, 2, 3, 7, 8, *range(9, 28), 34, 41, 42} <= rows  # lessons 01 to 04 but row 4, the pipeline; 07
    errata = {erratum for exercise in EXERCISES.values() for erratum in exercise.errata}
    assert {"E1", "E2", "E3", "E4", "E5", "E6", "E7", "E14", "E17", "E18", "E19", "E20", "E21"} <= errata


def test_references_are_the_packages_own_functions_where_it_has_them():
    ours = [name for name in FUNCTIONS if EXERCISES[name].reference.__module__.startswith("rlhf_lab.exercises")]
    assert ours == [
        "imitators_gold",
        "longer_reply_wins",
        "centre_by_prompt",
        "probability_ratio",
        "reply_log_ratio",
        "dpo_gradient_weight",
        "sft_loss",
        "last_token_index",
        "ranking_loss",
        "margin_accuracy",
        "oracle_ceiling",
        "mean_reply_kl",  # what the engine computes in passing
        "scored_rewards",
        "whitened_advantages",
        "clip_fraction",
        "ppo_minibatch_loss",
        "implicit_reward_accuracy",
        "importance_weights",
        "best_of_n_reward",
        "mean_over_seeds",
    ]
