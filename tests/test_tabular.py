"""Do policies trained by each method land where the maths says, and part from it where and as far as it says?"""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.special import expit, logit

from rlhf_lab import losses
from rlhf_lab.exact import kl, optimal_policy, total_variation
from rlhf_lab.parting import coverage_sweep, label_noise, sure_preferences, wrong_reference
from rlhf_lab.tabular import (
    World,
    dpo_optimum,
    ipo_optimum,
    leave_one_out,
    preferences,
    sample_preferences,
    train_dpo,
    train_exact_gradient,
    train_ipo,
    train_policy_gradient,
    train_ppo,
    train_rloo,
)

SEEDS = (0, 1, 2)
BETA = 0.5
SAMPLING = {"policy_gradient": train_policy_gradient, "ppo": train_ppo, "rloo": train_rloo}
TRAINERS = {**SAMPLING, "exact_gradient": train_exact_gradient, "dpo": train_dpo}


# ---- landing on the optimum ----


@pytest.mark.parametrize(
    "method, at_most",
    [("dpo", 0.01), ("ppo", 0.02), ("policy_gradient", 0.01), ("rloo", 0.01), ("exact_gradient", 0.01)],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_method_lands_on_the_exact_optimum(method, at_most, seed):
    world = World.random(10, prompts=3, seed=seed)
    seeded = {"seed": seed} if method in SAMPLING else {}
    policy, history = TRAINERS[method](world, BETA, **seeded)
    best = optimal_policy(world.ref_probs, world.rewards, BETA)
    assert total_variation(world.ref_probs, best).min() > 0.25  # there was a way to go
    assert total_variation(policy, best).max() <= at_most
    assert history.tv[0] == pytest.approx(total_variation(world.ref_probs, best).mean())
    assert history.tv[-1] == pytest.approx(total_variation(policy, best).mean())
    assert history.kl[0] == pytest.approx(0, abs=1e-12) and history.kl[-1] == pytest.approx(
        kl(best, world.ref_probs).mean(), rel=0.02
    )


@pytest.mark.parametrize("method, at_most", [("dpo", 0.01), ("ppo", 0.02), ("policy_gradient", 0.02), ("rloo", 0.02)])
def test_with_two_hundred_replies_too(method, at_most):
    world = World.random(200, seed=5)
    assert total_variation(world.ref_probs, world.optimum(0.3)) > 0.5
    assert TRAINERS[method](world, 0.3).history.tv[-1] <= at_most


@pytest.mark.parametrize("seed", SEEDS)
def test_ipo_lands_on_its_own_optimum_and_that_is_another(seed):
    world = World.random(10, prompts=3, seed=seed)
    run = train_ipo(world, 0.1)
    assert total_variation(run.policy, ipo_optimum(world, 0.1)).max() <= 0.01
    assert run.history.tv[-1] <= 0.01 < 0.1 < run.history.tv[0]
    assert total_variation(run.policy, world.optimum(0.1)).max() > 0.1


@pytest.mark.parametrize("method", TRAINERS)
def test_larger_beta_holds_the_policy_closer_to_the_reference(method):
    world = World.random(8, seed=3)
    betas = (0.5, 1.0, 2.0)
    kls = [kl(TRAINERS[method](world, beta).policy, world.ref_probs) for beta in betas]
    np.testing.assert_allclose(kls, [kl(world.optimum(beta), world.ref_probs) for beta in betas], rtol=0.03)
    assert all(a > 1.2 * b for a, b in itertools.pairwise(kls))


def test_larger_tau_holds_ipo_closer_to_the_reference():
    world = World.random(8, seed=3)
    kls = [kl(train_ipo(world, tau).policy, world.ref_probs) for tau in (0.1, 0.2, 0.4)]
    assert kls[0] > 1.5 * kls[1] > 1.5**2 * kls[2]


@pytest.mark.parametrize("method", SAMPLING)
def test_a_seed_fixes_the_run_and_another_seed_changes_it(method):
    world, train = World.random(6, seed=1), partial(SAMPLING[method], steps=5)
    first, again, other = (train(world, BETA, seed=seed).policy for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


def test_a_loss_the_learner_wrote_trains_and_its_wrong_sign_does_not():
    """Nothing but a mean over (batch,), as an exercise has it."""

    def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
        return -F.logsigmoid(beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))).mean()

    def backwards(*logps, beta):
        return dpo(*logps, beta=-beta)

    def ppo(logps, old_logps, advantages, mask, clip_range):
        ratio = (logps - old_logps).exp()
        return -torch.min(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)[mask > 0].mean()

    world = World.random(8, seed=2)
    assert train_dpo(world, BETA, loss=dpo, batch_size=1024).history.tv[-1] <= 0.01
    assert train_dpo(world, BETA, loss=backwards, batch_size=1024).history.tv[-1] > 0.5
    ours, theirs = train_ppo(world, BETA, steps=20), train_ppo(world, BETA, steps=20, policy_loss=ppo)
    np.testing.assert_allclose(theirs.policy, ours.policy, rtol=1e-9)
    with pytest.raises(ValueError, match="the loss is nan"):
        train_dpo(world, BETA, loss=lambda *logps, beta: torch.log(-logps[0].exp()).mean(), batch_size=64)


def test_dpo_on_a_finite_sample_comes_closer_as_the_sample_grows():
    world = World.random(8, prompts=6, seed=4)
    wins = preferences(world)
    few, many = (train_dpo(world, BETA, sample_preferences(wins, n)).history.tv[-1] for n in (500, 50_000))
    assert many < 0.05 and few > 3 * many


# ---- what they are trained on ----


def test_preferences_by_hand():
    world = World([0.25, 0.75], [math.log(3), 0.0])  # the first wins with probability 3/4
    np.testing.assert_allclose(preferences(world), [[[0, 0.75], [0.25, 0]]])
    np.testing.assert_allclose(preferences(world, flip_rate=0.2), [[[0, 0.65], [0.35, 0]]])
    np.testing.assert_allclose(preferences(world, deterministic=True), [[[0, 1], [0, 0]]])
    three = World([0.2, 0.3, 0.5], [0.0, 0.0, 0.0])
    # pairs 0.06, 0.10, 0.15 of 0.31, either way with probability a half
    np.testing.assert_allclose(preferences(three)[0, 0], [0, 0.06 / 0.62, 0.10 / 0.62])
    np.testing.assert_allclose(preferences(three, drawn_from=[1 / 3] * 3)[0, 0], [0, 1 / 6, 1 / 6])
    np.testing.assert_allclose(preferences(three, covered=[True, False, True])[0, 0], [0, 0, 0.5])
    np.testing.assert_allclose(preferences(World.random(7, prompts=3)).sum(axis=(1, 2)), 1)


def test_sampled_preferences_are_counts_with_the_right_shares():
    wins = preferences(World.random(5, prompts=2, seed=1))
    counts = sample_preferences(wins, 100_000, seed=0)
    assert (counts.sum(axis=(1, 2)) == 100_000).all() and counts.dtype.kind == "i"
    np.testing.assert_allclose(counts / 100_000, wins, atol=0.006)


def test_leaving_one_out_by_hand():
    assert leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[-3.0, -1.5, 4.5]]
    with pytest.raises(ValueError, match="at least 2 samples in a group, got 1"):
        leave_one_out(torch.zeros(4, 1))


def test_rloo_has_the_gradient_of_the_enumerated_objective_and_grpo_has_not():
    """Every pair of samples out of 4 replies, each weighted by its probability."""
    logits = torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 3.0, 0.0, -2.0], dtype=torch.float64)
    exact = torch.autograd.grad((logits.softmax(-1) * rewards).sum(), logits)[0]

    def expected_gradient(advantage):
        logps, total = logits.log_softmax(-1), 0.0
        for pair in itertools.product(range(4), repeat=2):
            pair = list(pair)
            chance = logps.detach()[pair].sum().exp()
            total = total + chance * (advantage(rewards[pair]) * logps[pair]).mean()
        return torch.autograd.grad(total, logits)[0]

    torch.testing.assert_close(expected_gradient(leave_one_out), exact)
    torch.testing.assert_close(expected_gradient(lambda r: r - r.mean()), exact / 2)  # (k - 1) / k
    grpo = expected_gradient(lambda r: (r - r.mean()) / (r.std() + 1e-8))
    assert F.cosine_similarity(grpo, exact, dim=0) < 0.99


# ---- IPO's optimum ----


def test_ipo_optimum_is_the_closed_form_of_the_paper():
    world, tau = World.random(9, prompts=2, seed=6), 0.3
    p_beats_mu = (expit(world.rewards[:, :, None] - world.rewards[:, None, :]) * world.ref_probs[:, None, :]).sum(-1)
    np.testing.assert_allclose(ipo_optimum(world, tau), optimal_policy(world.ref_probs, p_beats_mu, tau))


def test_ipo_on_sure_preferences_keeps_margins_of_one_over_two_tau():
    tau = 0.2
    two = World([0.3, 0.7], [1.0, 0.0])
    log_ratios = np.log(train_ipo(two, tau, preferences(two, deterministic=True)).policy / two.ref_probs)
    assert log_ratios[0] - log_ratios[1] == pytest.approx(1 / (2 * tau), abs=1e-3)
    chain = World([0.25] * 4, [4.0, 3.0, 2.0, 1.0])  # only neighbours are compared
    wins = np.eye(4, k=1)[None]
    for policy in (ipo_optimum(chain, tau, wins), train_ipo(chain, tau, wins).policy):
        np.testing.assert_allclose(-np.diff(np.log(policy)), 1 / (2 * tau), atol=2e-3)


# ---- missing coverage ----


def half_covered():
    return World.random(8, prompts=3, seed=7), np.arange(8) < 4


def population_dpo_loss(world, policy, wins):
    policy, ref = (torch.from_numpy(np.log(p)) for p in (policy, world.ref_probs))
    x, i, j = np.nonzero(wins)
    each = losses.dpo_loss(policy[x, i], policy[x, j], ref[x, i], ref[x, j], BETA, reduction="none")
    return (each @ torch.from_numpy(wins[x, i, j])).item()


def test_the_dpo_loss_does_not_see_how_much_lies_outside_the_pairs():
    world, covered = half_covered()
    wins = preferences(world, covered=covered)
    loss_at = [population_dpo_loss(world, dpo_optimum(world, BETA, covered, mass), wins) for mass in (0.001, 0.3, 0.99)]
    assert np.ptp(loss_at) < 1e-12
    assert loss_at[0] == pytest.approx(population_dpo_loss(world, world.optimum(BETA), wins), abs=1e-12)
    assert loss_at[0] < population_dpo_loss(world, world.ref_probs, wins) - 0.01
    policy = dpo_optimum(world, BETA, covered, 0.3)
    np.testing.assert_allclose(policy[:, ~covered].sum(axis=1), 0.3)


def test_dpo_gets_the_ratios_of_what_was_compared_right_and_leaves_the_others_alone():
    world, covered = half_covered()
    policy = train_dpo(world, BETA, preferences(world, covered=covered)).policy
    log_ratios, best = np.log(policy / world.ref_probs), np.log(world.optimum(BETA) / world.ref_probs)
    assert np.ptp((log_ratios - best)[:, covered], axis=1).max() < 1e-3
    assert np.ptp(log_ratios[:, ~covered], axis=1).max() < 1e-5  # good or bad, all alike
    assert np.ptp(best[:, ~covered], axis=1).min() > 1


def test_rlhf_with_a_reward_model_fitted_to_the_same_pairs_is_a_policy_of_least_dpo_loss():
    """The reward of a reply that is never compared stays at 0, where it began."""
    world, covered = half_covered()
    wins = preferences(world, covered=covered)
    x, i, j = np.nonzero(wins)
    rewards = torch.zeros(world.rewards.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = (-F.logsigmoid(rewards[x, i] - rewards[x, j])) @ torch.from_numpy(wins[x, i, j])
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = optimal_policy(world.ref_probs, rewards.detach().numpy(), BETA)
    np.testing.assert_allclose(fitted, dpo_optimum(world, BETA, covered), atol=1e-4)


def test_the_coverage_sweep_shows_dpo_falling_off_and_ppo_not():
    sweep = coverage_sweep((0.25, 0.5, 0.75, 1.0))
    ends = {m: sweep.ends[sweep.ends.method == m] for m in sweep.policies}
    dpo, ppo, learned = ends["dpo"], ends["ppo"], ends["ppo_learned_reward"]
    assert (ppo.tv < 0.02).all()
    assert dpo.tv[-1] < 0.01 and dpo.tv_low[0] > 0.3
    assert (np.diff(dpo.tv) < 0).all()
    assert (np.diff(learned.tv) < 0).all() and learned.tv_low[0] > 0.3  # no better off, for all its sampling
    assert ((dpo.tv_low <= dpo.tv) & (dpo.tv <= dpo.tv_high)).all()
    # pi* would give what lies outside far more than DPO does, which moves the covered replies only
    assert (ppo.outside == pytest.approx(ppo.optimum_outside, abs=0.02)) and dpo.outside_high[0] < dpo.optimum_outside[
        0
    ]
    # the arrays behind the record
    assert sweep.covered.sum(-1).tolist() == [[n] * 12 for n in (4, 8, 12, 16)]
    assert (sweep.covered[1:] >= sweep.covered[:-1]).all()
    for method, policies in sweep.policies.items():
        assert policies.shape == sweep.covered.shape and np.allclose(policies.sum(-1), 1)
        by_hand = [total_variation(p, sweep.optimum).mean() for p in policies]
        np.testing.assert_allclose(ends[method].tv, by_hand)
        np.testing.assert_allclose(ends[method].outside, (policies * ~sweep.covered).sum(-1).mean(-1), atol=1e-12)


# ---- sure preferences ----


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_on_sure_preferences_dpo_grows_as_the_logarithm_of_time_and_ipo_settles(beta):
    record = sure_preferences(beta, steps=2000, learning_rate=0.1)
    assert record.step[0] == 0 and record.step[-1] == 2000
    assert record.ipo_margin[-1] == pytest.approx(1 / (2 * beta), rel=1e-6)
    assert (np.diff(record.dpo_margin) > 0).all()
    # gradient flow, dh/dt = 2 beta sigmoid(-beta h), is solved by beta h + exp(beta h) - 1 = 2 beta^2 t
    t = 2 * beta**2 * 0.1 * record.step[-1]
    exact = brentq(lambda x: x + math.exp(x) - 1 - t, 0, 100) / beta
    assert record.dpo_margin[-1] == pytest.approx(exact, rel=0.02)
    assert record.dpo_margin[-1] > 2 * record.ipo_margin[-1]
    np.testing.assert_allclose(record.dpo_loser, 1 / (1 + np.exp(record.dpo_margin)))


def test_sure_preferences_make_beta_powerless_for_dpo_and_not_for_ipo():
    """2310.12036, section 4.2: with sure labels nothing holds DPO to the reference, however large beta is."""
    world = World([0.2] * 5, [2.0, 1.5, 1.0, 0.5, 0.0])
    wins = preferences(world, deterministic=True)
    for beta in (1.0, 5.0):
        short, long = (train_dpo(world, beta, wins, steps=steps).policy[0] for steps in (100, 1000))
        assert long > short + 0.05 and short > 2 * world.optimum(beta)[0]  # RLHF with these rewards would stop there
        ipo = train_ipo(world, beta, wins).policy
        assert total_variation(ipo, ipo_optimum(world, beta, wins)) < 0.01
        assert ipo[0] < 0.3


# ---- a wrong reference, noisy labels ----


def test_another_reference_in_the_loss_moves_the_end_and_another_writer_of_the_pairs_does_not():
    record = wrong_reference(BETA, replies=8, seeds=6)
    tv = {(r.drawn_from, r.in_loss): r.tv for r in record}
    assert tv["reference", "reference"] < 0.01 and tv["other", "reference"] < 0.01
    world, other = World.random(8, 6, seed=0), World.random(8, 6, seed=1).ref_probs
    predicted = total_variation(optimal_policy(other, world.rewards, BETA), world.optimum(BETA)).mean()
    assert predicted > 0.1
    assert tv["reference", "other"] == pytest.approx(predicted, abs=0.01)
    assert tv["other", "other"] == pytest.approx(predicted, abs=0.01)
    assert (record.tv_low <= record.tv).all() and (record.tv <= record.tv_high).all()


def test_few_pairs_cost_dpo_whoever_wrote_them():
    few, many = (wrong_reference(BETA, replies=8, seeds=6, n_pairs=n) for n in (300, 30_000))
    right = few.in_loss == "reference"
    assert (few.tv[right] > 2 * many.tv[right]).all() and (few.tv[right] > 0.05).all()


def test_label_noise_by_hand_for_two_replies():
    """P(first wins) = p becomes q = p (1 - e) + (1 - p) e, DPO's margin logit(q) / beta; cDPO flips q again."""
    flip, p = 0.2, 0.8
    world = World([0.5, 0.5], [float(logit(p)), 0.0])
    wins = preferences(world, flip_rate=flip)
    q = p * (1 - flip) + (1 - p) * flip
    expected = {"dpo": q, "cdpo": q * (1 - flip) + (1 - q) * flip, "robust": p}
    for name, probability in expected.items():
        loss = {
            "dpo": losses.dpo_loss,
            "cdpo": partial(losses.cdpo_loss, label_smoothing=flip),
            "robust": partial(losses.robust_dpo_loss, label_smoothing=flip),
        }[name]
        policy = train_dpo(world, BETA, wins, loss=loss).policy
        assert np.log(policy[0] / policy[1]) == pytest.approx(logit(probability) / BETA, abs=1e-3), name


def test_under_label_noise_dpo_stays_too_close_cdpo_closer_still_and_robust_dpo_arrives():
    record = label_noise((0.0, 0.15, 0.3), BETA, replies=6, seeds=6)
    by = {m: record[record.method == m] for m in ("dpo", "cdpo", "robust")}
    assert (by["robust"].tv < 0.01).all()
    assert all(by[m].tv[0] < 0.01 for m in by)
    for method in ("dpo", "cdpo"):
        assert (np.diff(by[method].tv) > 0.05).all() and (np.diff(by[method]["kl"]) < 0).all()
    assert (by["cdpo"].tv > by["dpo"].tv)[1:].all() and (by["cdpo"]["kl"] < by["dpo"]["kl"])[1:].all()


def test_on_few_noisy_pairs_robust_dpo_pays_in_variance():
    record = label_noise((0.4,), BETA, replies=8, seeds=8, n_pairs=300)
    tv = dict(zip(record.method, record.tv, strict=True))
    assert tv["robust"] > tv["dpo"] + 0.05
    enough = label_noise((0.2,), BETA, replies=8, seeds=8, n_pairs=5000)
    tv = dict(zip(enough.method, enough.tv, strict=True))
    assert tv["robust"] < tv["dpo"] - 0.05


# ---- what is refused ----


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: World([0.5, 0.6], [0, 1]), "must sum to 1"),
        (lambda: World([1.0, 0.0], [0, 1]), "above 0: leave out those the reference never says"),
        (lambda: World([1.0], [0.0]), r"2 replies or more, got \(1,\)"),
        (lambda: World([0.5, 0.5], [0, math.nan]), "rewards must be finite"),
        (lambda: train_dpo(World.random(4), 0.0), "beta must be > 0, got 0"),
        (lambda: train_ipo(World.random(4), -1.0), "tau must be > 0, got -1"),
        (lambda: train_dpo(World.random(4), 1.0, np.ones((4, 4))), r"wins must be .*got \(4, 4\)"),
        (lambda: preferences(World.random(4), covered=[1, 0, 0, 0]), "fewer than 2 are covered"),
        (lambda: preferences(World.random(4), flip_rate=1.5), r"in \[0, 1\], got 1.5"),
        (lambda: dpo_optimum(World.random(4), 1.0, [1, 1, 0, 0], 1.0), "between 0 and 1"),
        (lambda: dpo_optimum(World.random(4), 1.0, [1, 1, 1, 1], 0.5), "at least one reply that is not covered"),
        (lambda: coverage_sweep((0.5, 1.2)), r"a share of replies in \(0, 1\]"),
        (lambda: coverage_sweep(seeds=1), "at least 2 of them, got 1"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
