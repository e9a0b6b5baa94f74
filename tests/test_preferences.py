"""Bradley-Terry and its relatives against hand-worked numbers, scipy and the sampling they describe."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from rlhf_lab.preferences import (
    bradley_terry_information,
    bradley_terry_probability,
    cohen_kappa,
    elo_probability,
    fit_bradley_terry,
    plackett_luce_log_prob,
    rankings_to_pairs,
    reward_standard_errors,
    sample_comparisons,
)


def test_bradley_terry_by_hand():
    assert bradley_terry_probability(1.3, 1.3) == 0.5
    assert bradley_terry_probability(math.log(3), 0) == pytest.approx(3 / 4)
    assert isinstance(bradley_terry_probability(1, 0), float)
    np.testing.assert_allclose(bradley_terry_probability([0, math.log(9)], 0), [0.5, 0.9])


def test_bradley_terry_knows_only_differences_and_the_two_sides_sum_to_one():
    assert bradley_terry_probability(2.0, 1.0) == bradley_terry_probability(102.0, 101.0)
    assert bradley_terry_probability(2.0, 1.0) + bradley_terry_probability(1.0, 2.0) == pytest.approx(1, abs=1e-15)


def test_bradley_terry_neither_overflows_nor_warns_far_out():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert bradley_terry_probability(-2000.0, 0.0) == 0.0
        assert bradley_terry_probability(2000.0, 0.0) == 1.0
        assert bradley_terry_probability(-700.0, 0.0) == pytest.approx(math.exp(-700))


def test_elo_400_points_are_odds_of_ten_to_one():
    assert elo_probability(2000, 1600) == pytest.approx(10 / 11)
    assert round(elo_probability(2000, 1600), 3) == 0.909
    np.testing.assert_allclose(elo_probability([1600, 1800], [1600, 1000]), [0.5, 100 / 101])


def test_two_items_have_the_log_odds_of_their_games():
    rewards = fit_bradley_terry(2, [(0, 1)] * 3 + [(1, 0)])
    np.testing.assert_allclose(rewards, [math.log(3) / 2, -math.log(3) / 2], atol=1e-9)


def test_the_fit_meets_the_likelihood_equations_and_agrees_with_a_general_optimiser():
    rng = np.random.default_rng(0)
    true = rng.normal(size=8) * 2
    pairs = rng.integers(8, size=(600, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    a_wins = rng.random(len(pairs)) < bradley_terry_probability(true[pairs[:, 0]], true[pairs[:, 1]])
    comparisons = np.where(a_wins[:, None], pairs, pairs[:, ::-1])
    rewards = fit_bradley_terry(8, comparisons)
    assert abs(rewards.mean()) < 1e-12

    # at the maximum every item's expected number of wins is its observed one
    expected = np.zeros(8)
    for winner, loser in comparisons:
        p = bradley_terry_probability(rewards[winner], rewards[loser])
        expected[winner] += p
        expected[loser] += 1 - p
    np.testing.assert_allclose(expected, np.bincount(comparisons[:, 0], minlength=8), atol=1e-8)

    def negative_log_likelihood(r):
        return np.logaddexp(0, r[comparisons[:, 1]] - r[comparisons[:, 0]]).sum()

    scipy_fit = minimize(negative_log_likelihood, np.zeros(8), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(rewards, scipy_fit - scipy_fit.mean(), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fit_finds_the_rewards_that_made_the_comparisons(seed):
    rng = np.random.default_rng(seed)
    true = np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    games = [pair for pair in itertools.combinations(range(5), 2) for _ in range(4000)]
    comparisons = [(a, b) if rng.random() < bradley_terry_probability(true[a], true[b]) else (b, a) for a, b in games]
    # standard error of a reward is about 0.02 here
    np.testing.assert_allclose(fit_bradley_terry(5, comparisons), true, atol=0.08)


def test_a_long_chain_with_very_uneven_results_converges():
    n = 40
    comparisons = [(i, i + 1) for i in range(n - 1) for _ in range(1000)] + [(i + 1, i) for i in range(n - 1)]
    gaps = -np.diff(fit_bradley_terry(n, comparisons))
    np.testing.assert_allclose(gaps, math.log(1000), rtol=1e-8)


@pytest.mark.parametrize(
    "comparisons, message",
    [
        ([(0, 1), (1, 2), (0, 2)], r"items \[1, 2\] never beat any of the others.*diverge"),
        ([(0, 1), (1, 0), (2, 0)], r"items \[2\] never lost to any of the others.*diverge"),
        ([(0, 1), (1, 0)], r"do not connect items \[2\] with items \[0, 1\]"),
        ([], r"do not connect items \[1, 2\] with items \[0\]"),
    ],
    ids=["never beaten", "never lost", "apart", "none"],
)
def test_comparisons_that_do_not_fix_the_rewards_are_refused_and_a_prior_mends_them(comparisons, message):
    with pytest.raises(ValueError, match=message) as error:
        fit_bradley_terry(3, comparisons)
    assert "\n" not in str(error.value) and "prior=" in str(error.value)
    rewards = fit_bradley_terry(3, comparisons, prior=0.1)
    assert np.isfinite(rewards).all() and abs(rewards.mean()) < 1e-12


def test_the_prior_is_a_gaussian_precision():
    """One win: sigmoid(-2r) = prior * r at the maximum, and a prior of 1e-6 leaves a fit with both sides alone."""
    r = fit_bradley_terry(2, [(0, 1)], prior=0.5)[0]
    assert 1 / (1 + math.exp(2 * r)) == pytest.approx(0.5 * r, abs=1e-10)
    both = [(0, 1)] * 3 + [(1, 0)]
    np.testing.assert_allclose(fit_bradley_terry(2, both, prior=1e-6), fit_bradley_terry(2, both), atol=1e-5)


@pytest.mark.parametrize(
    "comparisons, message",
    [
        ([(0, 1), (1, 3)], r"comparison 1 is \(1, 3\): items are numbered 0 to 2"),
        ([(0, 1), (2, 2)], r"comparison 1 is \(2, 2\): an item cannot beat itself"),
        ([(0, 1, 2)], r"pairs of integers, got shape \(1, 3\)"),
        ([(0.5, 1.0)], "pairs of integers"),
    ],
)
def test_malformed_comparisons_are_named(comparisons, message):
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry(3, comparisons)


def test_plackett_luce_of_two_is_bradley_terry_and_all_rankings_sum_to_one():
    assert math.exp(plackett_luce_log_prob([0.7, -0.2])) == pytest.approx(bradley_terry_probability(0.7, -0.2))
    rankings = np.array(list(itertools.permutations([0.3, -1.0, 2.0, 0.5])))
    assert np.exp(plackett_luce_log_prob(rankings)).sum() == pytest.approx(1)


def test_plackett_luce_by_hand():
    # strengths 3, 2, 1: 3/6 * 2/3 * 1
    assert plackett_luce_log_prob(np.log([3, 2, 1])) == pytest.approx(math.log(1 / 3))
    with pytest.raises(ValueError, match="at least one reward"):
        plackett_luce_log_prob([])


def test_a_ranking_of_nine_gives_thirty_six_pairs_all_in_order():
    pairs = rankings_to_pairs("abcdefghi")
    assert len(pairs) == len(set(pairs)) == 36
    assert all(winner < loser for winner, loser in pairs)
    assert rankings_to_pairs([7, 3, 5]) == [(7, 3), (7, 5), (3, 5)]
    with pytest.raises(ValueError, match="stands twice"):
        rankings_to_pairs([1, 2, 1])


def test_cohen_kappa_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5, the textbook's 0.4
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa([0, 1, 2], [0, 1, 2]) == 1
    assert cohen_kappa([0, 1], [1, 0]) == -1
    assert cohen_kappa([0, 0, 1, 1], [0, 1, 0, 1]) == 0
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        cohen_kappa([0, 1], [0, 1, 1])


@pytest.mark.parametrize("module", ["preferences", "exact", "tabular", "parting"])
def test_torch_is_not_imported(module):
    code = f"import sys, rlhf_lab.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_standard_errors_of_two_items_are_half_that_of_a_log_odds():
    """30 wins of 40: the log-odds has standard error 1 / sqrt(40 * 0.75 * 0.25), shared by two centred rewards."""
    comparisons = [(0, 1)] * 30 + [(1, 0)] * 10
    rewards = fit_bradley_terry(2, comparisons)
    assert rewards[0] - rewards[1] == pytest.approx(np.log(3))
    assert reward_standard_errors(rewards, comparisons) == pytest.approx([0.5 / np.sqrt(7.5)] * 2)


def test_standard_errors_are_the_spread_of_estimates():
    """Over 400 simulated data sets: the standard deviation of the estimates, within 4 of its own standard errors."""
    truth = np.array([1.0, 0.0, -1.0])
    estimates, errors = [], []
    for seed in range(400):
        comparisons = sample_comparisons(truth, 300, seed=seed)
        estimates.append(fit_bradley_terry(3, comparisons))
        errors.append(reward_standard_errors(estimates[-1], comparisons))
    assert np.std(estimates, axis=0) == pytest.approx(np.mean(errors, axis=0), rel=4 / np.sqrt(2 * 400))


def test_information_says_nothing_about_a_constant():
    information = bradley_terry_information([0.3, -1.0, 2.0], np.ones((3, 3)) - np.eye(3))
    assert information.sum(axis=1) == pytest.approx(0)
    assert bradley_terry_information([0.0, 0.0], [[0, 4], [0, 0]]) == pytest.approx(np.array([[1.0, -1], [-1, 1]]))


def test_sampled_comparisons_follow_bradley_terry_and_begin_alike():
    comparisons = sample_comparisons([np.log(9), 0.0], 4000, temperature=2.0, seed=1)
    won = (comparisons[:, 0] == 0).mean()
    assert won == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 4000))  # odds 9 at temperature 2 are odds 3
    assert (sample_comparisons([np.log(9), 0.0], 100, temperature=2.0, seed=1) == comparisons[:100]).all()
    many = sample_comparisons(np.zeros(4), 6000, seed=2)
    assert (many[:, 0] != many[:, 1]).all()
    pairs = np.sort(many, axis=1) @ [10, 1]
    counts = np.unique(pairs, return_counts=True)[1]
    assert len(counts) == 6 and np.abs(counts - 1000).max() < 4 * np.sqrt(1000 * 5 / 6)
    with pytest.raises(ValueError, match="at least 2 items"):
        sample_comparisons([1.0], 3)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        sample_comparisons([1.0, 0.0], 3, temperature=0)
