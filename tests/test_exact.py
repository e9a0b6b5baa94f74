"""The enumerable world: the optimum is stationary, the frontier is one, best-of-n is what drawing n gives."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from rlhf_lab.exact import (
    best_of_n,
    best_of_n_kl_bound,
    frontier,
    implied_reward,
    kl,
    log_partition,
    optimal_policy,
    reward_of,
    snis_frontier,
    total_variation,
)

RNG = np.random.default_rng(0)
REF = RNG.dirichlet(np.ones(6))
REWARDS = RNG.normal(size=6) * 2


def objective(policy, beta):
    return reward_of(policy, REWARDS) - beta * kl(policy, REF)


def test_the_optimal_policy_by_hand():
    # weights 1/2 * 1 and 1/2 * 3
    np.testing.assert_allclose(optimal_policy([0.5, 0.5], [0.0, math.log(3)], beta=1.0), [0.25, 0.75])
    assert log_partition([0.5, 0.5], [0.0, math.log(3)], beta=1.0) == pytest.approx(math.log(2))
    np.testing.assert_allclose(optimal_policy([0.5, 0.5], [0.0, math.log(3)], beta=0.5), [0.1, 0.9])


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_optimal_policy_is_stationary_and_no_other_does_better(beta):
    policy = optimal_policy(REF, REWARDS, beta)
    # on the simplex, stationary means r - beta (log pi/ref + 1) is the same for every reply
    slope = REWARDS - beta * (np.log(policy / REF) + 1)
    assert np.ptp(slope) < 1e-12
    best = objective(policy, beta)
    assert best == pytest.approx(beta * log_partition(REF, REWARDS, beta), abs=1e-12)
    assert all(objective(p, beta) <= best for p in RNG.dirichlet(np.ones(6), size=500))


def test_the_optimal_policy_is_what_a_general_optimiser_finds():
    def softmax(z):
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    found = minimize(lambda z: -objective(softmax(z), 0.5), np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
    assert total_variation(softmax(found), optimal_policy(REF, REWARDS, 0.5)) < 1e-5


def test_a_small_beta_neither_overflows_nor_loses_the_runner_up():
    with np.errstate(over="raise", invalid="raise"):
        policy = optimal_policy([0.2, 0.3, 0.5], [1000.0, 999.999, -1000.0], beta=1e-3)
        assert policy[0] / policy[1] == pytest.approx(2 / 3 * math.e, rel=1e-6)
        assert policy[2] == 0
        assert log_partition([0.5, 0.5], [1000.0, 0.0], 1e-3) == pytest.approx(1e6 - math.log(2))


def test_beta_goes_from_the_best_reply_to_the_reference():
    assert optimal_policy(REF, REWARDS, 1e-3)[REWARDS.argmax()] == pytest.approx(1)
    np.testing.assert_allclose(optimal_policy(REF, REWARDS, math.inf), REF)


def test_what_the_reference_never_says_the_optimum_never_says():
    assert optimal_policy([0.5, 0.5, 0.0], [0.0, 0.0, 1e6], 1e-3).tolist() == [0.5, 0.5, 0.0]


def test_prompts_lie_on_the_leading_axis():
    refs, rewards = np.stack([REF, REF[::-1]]), np.stack([REWARDS, REWARDS])
    policies = optimal_policy(refs, rewards, 0.5)
    np.testing.assert_array_equal(policies[0], optimal_policy(REF, REWARDS, 0.5))
    np.testing.assert_allclose(kl(policies, refs), [kl(p, q) for p, q in zip(policies, refs, strict=True)])
    assert frontier(refs, rewards, [0.5])[0].kl == pytest.approx(kl(policies, refs).mean())


def test_kl_and_total_variation_by_hand():
    assert kl([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl([1.0, 0.0], [0.5, 0.5]) == pytest.approx(math.log(2))
    assert kl([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert kl(REF, REF) == 0
    assert total_variation([0.5, 0.5, 0.0], [0.25, 0.5, 0.25]) == 0.25
    assert total_variation([1.0, 0.0], [0.0, 1.0]) == 1


def test_the_frontier_falls_with_beta_and_nothing_lies_above_it():
    betas = np.geomspace(1e-2, 1e2, 200)
    curve = frontier(REF, REWARDS, betas)
    assert curve.dtype.names == ("beta", "kl", "reward")
    assert (np.diff(curve.kl) <= 1e-12).all() and (np.diff(curve.reward) <= 1e-12).all()
    log_z = np.array([log_partition(REF, REWARDS, b) for b in betas])
    for policy in RNG.dirichlet(np.ones(6) * 0.5, size=300):
        # reward <= beta KL + beta log Z for every beta is what being under the frontier means
        assert reward_of(policy, REWARDS) <= (betas * (kl(policy, REF) + log_z)).min() + 1e-9


def test_the_slope_of_the_frontier_is_beta():
    a, b = frontier(REF, REWARDS, [0.5, 0.5001])
    assert (a.reward - b.reward) / (a["kl"] - b["kl"]) == pytest.approx(0.5, rel=1e-3)


def test_the_implied_reward_gives_back_the_reward_up_to_a_constant():
    beta = 0.3
    implied = implied_reward(optimal_policy(REF, REWARDS, beta), REF, beta)
    np.testing.assert_allclose(implied, REWARDS - beta * log_partition(REF, REWARDS, beta), atol=1e-12)
    gone = implied_reward([0.0, 1.0, 0.0], [0.5, 0.5, 0.0], 1.0)
    assert gone[0] == -math.inf and gone[1] == pytest.approx(math.log(2)) and math.isnan(gone[2])


@pytest.mark.parametrize("rewards", [[0.3, -1.0, 2.0, 1.0], [1.0, 0.0, 1.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_best_of_n_is_what_all_draws_of_n_give(rewards, n):
    ref = np.array([0.1, 0.2, 0.3, 0.4])
    by_enumeration = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        top = [d for d in draws if rewards[d] == max(rewards[e] for e in draws)]
        for d in top:
            by_enumeration[d] += ref[list(draws)].prod() / len(top)
    np.testing.assert_allclose(best_of_n(ref, rewards, n), by_enumeration, atol=1e-15)


def test_best_of_16_of_two_replies_has_kl_0_693_against_the_bound_of_1_835():
    policy = best_of_n([0.5, 0.5], [0.0, 1.0], 16)
    np.testing.assert_allclose(policy, [2.0**-16, 1 - 2.0**-16], rtol=1e-14)
    assert round(kl(policy, [0.5, 0.5]), 3) == 0.693
    assert round(best_of_n_kl_bound(16), 3) == 1.835


@pytest.mark.parametrize("n", [1, 2, 8, 64, 1024])
def test_the_bound_holds_and_is_tight_only_for_many_replies(n):
    gaps = []
    for replies in (4, 100, 50_000):
        ref = np.full(replies, 1 / replies)
        gaps.append(best_of_n_kl_bound(n) - kl(best_of_n(ref, np.arange(replies), n), ref))
    assert min(gaps) > -1e-9
    assert gaps[0] >= gaps[1] - 1e-9 >= gaps[2] - 2e-9 and gaps[2] < 0.01 * n**0.5


def test_best_of_n_holds_with_zeros_in_the_reference_and_for_huge_n():
    np.testing.assert_allclose(best_of_n([0.0, 0.5, 0.5, 0.0], [9, 1, 0, -9], 2), [0, 0.75, 0.25, 0])
    assert best_of_n(REF, REWARDS, 10**9)[REWARDS.argmax()] == pytest.approx(1)
    stacked = best_of_n(np.stack([REF, REF]), np.stack([REWARDS, -REWARDS]), 4)
    np.testing.assert_array_equal(stacked[1], best_of_n(REF, -REWARDS, 4))
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        best_of_n(REF, REWARDS, 0)


def sampled_rewards(samples, prompts=64, seed=1):
    """Rewards of replies drawn from a different reference for each prompt, and the exact world they came from."""
    rng = np.random.default_rng(seed)
    refs, rewards = rng.dirichlet(np.ones(30), size=prompts), rng.normal(size=(prompts, 30))
    return [rng.choice(r, p=p, size=samples) for p, r in zip(refs, rewards, strict=True)], refs, rewards


def test_snis_agrees_with_the_exact_frontier_from_many_samples():
    samples, refs, rewards = sampled_rewards(20_000)
    betas = [2.0, 1.0, 0.5]
    estimate, truth = snis_frontier(samples, betas), frontier(refs, rewards, betas)
    np.testing.assert_allclose(estimate.kl, truth.kl, rtol=0.01)
    np.testing.assert_allclose(estimate.reward, truth.reward, atol=0.01)
    assert (estimate.kl_low < truth.kl).all() and (truth.kl < estimate.kl_high).all()
    assert (np.diff(estimate.effective_samples) < 0).all()


def test_snis_by_hand():
    # beta 1: weights 1/4, 3/4, so 1 / (1/16 + 9/16) = 1.6 effective samples of 2
    record = snis_frontier([[0.0, math.log(3)], [0.0, math.log(3)]], [1.0], min_effective_samples=1)[0]
    assert record.effective_samples == pytest.approx(1.6)
    uncorrected = 0.75 * math.log(3), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert record.reward + record.reward_bias == pytest.approx(uncorrected[0])
    assert record.kl + record.kl_bias == pytest.approx(uncorrected[1])
    # with either reply left out the other has all the weight: rewards 0 and log 3, KL 0
    assert record.reward_bias == pytest.approx(0.5 * math.log(3) - uncorrected[0])
    assert record.kl_bias == pytest.approx(-uncorrected[1])
    assert record.reward_low == record.reward_high == pytest.approx(record.reward)  # the prompts do not differ


@pytest.mark.parametrize("beta", [2.0, 0.3, 1e-3])
def test_snis_leaves_out_each_reply_as_computing_n_times_does(beta):
    rewards = RNG.normal(size=40)
    rewards[7] = 1000.0 if beta == 1e-3 else rewards.max()  # a tie at the top, and one reply with all the weight

    def estimate(r):
        tilted = np.exp((r - r.max()) / beta)
        w = tilted / tilted.sum()
        return np.array([(w * np.log(np.where(w > 0, w, 1) * len(r))).sum(), w @ r])

    whole = estimate(rewards)
    left_out = np.mean([estimate(np.delete(rewards, i)) for i in range(40)], axis=0)
    record = snis_frontier([rewards, rewards], [beta], min_effective_samples=1)[0]
    np.testing.assert_allclose([record.kl_bias, record.reward_bias], 39 * (left_out - whole), rtol=1e-8)
    np.testing.assert_allclose([record.kl, record.reward], whole - 39 * (left_out - whole), rtol=1e-8, atol=1e-10)


def test_snis_intervals_hold_the_truth_at_40_effective_samples_and_would_not_without_the_correction():
    """60 draws of 256 replies for each of 150 prompts: a 95 % interval should miss about 3 times."""
    rng = np.random.default_rng(3)
    refs, rewards = rng.dirichlet(np.ones(2000), size=150), rng.normal(size=(150, 2000))
    truth = frontier(refs, rewards, [0.7])[0]
    up_to = np.cumsum(refs, axis=1) / refs.sum(axis=1, keepdims=True)
    held, held_uncorrected = np.zeros(2), np.zeros(2)
    for _ in range(60):
        draws = [r[np.searchsorted(c, rng.random(256))] for c, r in zip(up_to, rewards, strict=True)]
        record = snis_frontier(draws, [0.7], n_bootstrap=300)[0]
        assert 30 < record.effective_samples < 60
        for i, name in enumerate(("kl", "reward")):
            low, high, bias = (record[f"{name}_{end}"] for end in ("low", "high", "bias"))
            held[i] += low < truth[name] < high
            held_uncorrected[i] += low + bias < truth[name] < high + bias
    assert (held >= 60 * 0.85).all()
    assert (held_uncorrected <= 60 * 0.8).all()


def test_snis_interval_covers_the_mean_over_prompts():
    """30 worlds of 40 prompts each out of one population: a 95 % interval misses its reward in 1.5 of them."""
    population = frontier(*sampled_rewards(2, prompts=4000, seed=99)[1:], [1.0])[0].reward
    missed = 0
    for seed in range(30):
        record = snis_frontier(sampled_rewards(400, prompts=40, seed=seed)[0], [1.0], n_bootstrap=500)[0]
        missed += not record.reward_low < population < record.reward_high
    assert missed <= 5


def test_snis_interval_has_the_width_of_the_normal_one():
    """With a huge beta every weight is 1 / n, so the reward is a mean of plain means over 100 prompts."""
    samples = sampled_rewards(50, prompts=100)[0]
    record = snis_frontier(samples, [1e6], n_bootstrap=4000)[0]
    standard_error = np.std([s.mean() for s in samples]) / 10
    assert record.reward_high - record.reward_low == pytest.approx(2 * 1.96 * standard_error, rel=0.08)


def test_too_few_samples_put_the_frontier_too_low_and_are_refused():
    samples, refs, rewards = sampled_rewards(16, prompts=400)
    with pytest.raises(ValueError, match=r"beta 0.2 leaves \d\.\d effective samples a prompt, fewer than 10") as error:
        snis_frontier(samples, [5.0, 0.2])
    assert "\n" not in str(error.value)
    estimate = snis_frontier(samples, [0.2], min_effective_samples=1)[0]
    curve = frontier(refs, rewards, np.geomspace(5, 0.1, 400))
    assert estimate.reward < np.interp(estimate.kl, curve.kl, curve.reward)


def test_snis_is_seeded_and_takes_prompts_with_unequal_numbers_of_samples():
    samples = sampled_rewards(300, prompts=10)[0]
    samples[3] = samples[3][:150]
    assert snis_frontier(samples, [1.0]).tolist() == snis_frontier(samples, [1.0]).tolist()
    assert snis_frontier(samples, [1.0], seed=1)[0].kl_low != snis_frontier(samples, [1.0])[0].kl_low


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: optimal_policy([0.5, 0.6], [0, 1], 1.0), r"ref_probs must sum to 1 .* got 1.1"),
        (lambda: optimal_policy([1.5, -0.5], [0, 1], 1.0), "ref_probs must be probabilities, got -0.5"),
        (lambda: optimal_policy([0.5, 0.5], [0, math.nan], 1.0), "rewards must be finite, got nan"),
        (lambda: optimal_policy([0.5, 0.5], [0, 1], 0.0), "beta must be > 0, got 0.0"),
        (lambda: kl(0.5, [0.5, 0.5]), "p must be an array of probabilities"),
        (lambda: snis_frontier([[1.0, 2.0]], [1.0]), "at least 2 prompts, got 1"),
        (lambda: snis_frontier([[1.0, 2.0], [1.0]], [1.0]), "at least 2 sampled replies, prompt 1 has 1"),
        (lambda: best_of_n_kl_bound(0), "n must be at least 1, got 0"),
    ],
)
def test_what_is_not_a_world_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
