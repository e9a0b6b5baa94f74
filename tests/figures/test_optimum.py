"""pi*, the DPO loss and where training ends, as drawn."""

import numpy as np
import pytest
import torch

from rlhf_lab.exact import optimal_policy, total_variation
from rlhf_lab.explore import closed_form_sweep
from rlhf_lab.figures import coverage_endpoints, dpo_curves, optimal_policy_bars
from rlhf_lab.losses import dpo_loss


def _bars(axes, label) -> np.ndarray:
    (container,) = (c for c in axes.containers if c.get_label() == label)
    return np.array([bar.get_height() for bar in container])


def _point(axes, label) -> np.ndarray:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.array(line.get_data(), dtype=float).ravel()


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_odds_of_pi_star_are_those_of_the_reference_times_exp_of_reward_gap_over_beta(beta):
    left, _ = optimal_policy_bars(beta).axes
    ref, policy = _bars(left, "reference"), _bars(left, "π* at this β")
    assert policy.sum() == pytest.approx(1)
    assert policy[4] / policy[3] == pytest.approx(ref[4] / ref[3] * np.exp(0.5 / beta))  # rewards 2 and 1.5


def test_larger_beta_is_closer_to_the_reference():
    kls = [_point(optimal_policy_bars(beta).axes[1], "π* at this β")[0] for beta in (0.05, 0.2, 1, 5, 20)]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] == pytest.approx(np.log(1 / 0.05), abs=1e-3)  # all on the best reply
    assert kls[-1] < 0.01


def test_the_point_lies_on_the_frontier_and_the_best_value_is_beta_log_z():
    figure = optimal_policy_bars(0.7, 0.2)
    left, right = figure.axes
    kl, reward = _point(right, "π* at this β")
    (line,) = (line for line in right.lines if "frontier" in str(line.get_label()))
    x, y = line.get_data()
    assert np.interp(kl, x[::-1], y[::-1]) == pytest.approx(reward, abs=5e-3)
    rewards = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
    z = _bars(left, "reference") @ np.exp(rewards / 0.7)
    assert reward - 0.7 * kl == pytest.approx(0.7 * np.log(z))


def test_what_the_reference_never_says_no_beta_brings_back():
    left, _ = optimal_policy_bars(0.05, 0.0).axes
    assert _bars(left, "π* at this β")[5] == 0


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_dpo_where_policy_and_reference_agree(beta):
    """h = 0: the loss is log 2 and the weight beta / 2."""
    left, right = dpo_curves(0.0, beta).axes
    assert _point(left, "this h") == pytest.approx([0, np.log(2)])
    assert _point(right, "this h") == pytest.approx([0, beta / 2])


def test_dpo_by_hand():
    """beta h = log 3: sigmoid is 3/4, so the loss is log(4/3) and the weight beta / 4."""
    left, right = dpo_curves(np.log(3) / 0.1, 0.1).axes
    assert _point(left, "this h")[1] == pytest.approx(np.log(4 / 3))
    assert _point(right, "this h")[1] == pytest.approx(0.1 / 4)


def test_larger_beta_lets_go_sooner_and_ipo_asks_for_less():
    """Larger beta holds the policy closer to the reference: weight over its limit, and IPO's target 1 / (2 beta)."""
    loose, tight = (dpo_curves(10.0, beta).axes[1] for beta in (0.1, 0.5))
    assert _point(tight, "this h")[1] / 0.5 < _point(loose, "this h")[1] / 0.1
    assert _point(loose, "IPO's target, 1 / (2β)")[0] == 5
    assert _point(tight, "IPO's target, 1 / (2β)")[0] == 1


def _trained(ref, rewards, covered, beta) -> np.ndarray:
    """Softmax policy after DPO on all pairs of covered replies, labelled as often as Bradley-Terry says.

    By L-BFGS, whose steps are sums of gradients, as those of gradient descent are.
    """
    pairs = [(a, b) for a in np.flatnonzero(covered) for b in np.flatnonzero(covered) if a != b]
    chosen, rejected = torch.tensor(pairs).T
    share = torch.sigmoid(torch.tensor(rewards)[chosen] - torch.tensor(rewards)[rejected])
    ref_logps = torch.tensor(ref).log()
    logits = ref_logps.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logps = logits.log_softmax(0)
        loss = dpo_loss(logps[chosen], logps[rejected], ref_logps[chosen], ref_logps[rejected], beta, reduction="none")
        total = (share * loss).mean()
        total.backward()
        return total

    optimizer.step(closure)
    return logits.detach().softmax(0).numpy()


@pytest.mark.parametrize("index", [1, 4, 6])
def test_the_closed_form_is_where_descent_on_the_dpo_loss_ends(index):
    sweep = closed_form_sweep(beta=0.5)
    ref, rewards = sweep["ref_probs"], 0.5 * np.log(sweep["optimum"] / sweep["ref_probs"])  # up to a constant
    ended = _trained(ref, rewards, sweep["support"][index], 0.5)
    assert total_variation(ended, sweep["policies"]["dpo"][index]) < 1e-4


def test_dpo_leaves_what_is_in_no_pair_and_ppo_does_not():
    sweep = closed_form_sweep()
    figure = coverage_endpoints(**sweep, index=2)
    left, right = figure.axes
    absent = ~sweep["support"][2]
    odds = _bars(left, "DPO")[absent] / sweep["ref_probs"][absent]
    assert odds == pytest.approx(odds[0])  # the reference's proportions among themselves
    assert _bars(left, "PPO") == pytest.approx(_bars(left, "π*"))
    (crosses,) = (line for line in left.lines if line.get_marker() == "x")
    assert list(crosses.get_xdata()) == list(np.flatnonzero(absent))
    (line,) = (line for line in right.lines if line.get_label() == "DPO")
    coverage, distance = line.get_data()
    assert list(coverage) == [25, 37.5, 50, 62.5, 75, 87.5, 100]
    assert (np.diff(distance) < 0).all() and distance[-1] == pytest.approx(0, abs=1e-12)


def test_coverage_takes_any_sweep():
    optimum = optimal_policy([0.5, 0.5], [1.0, 0.0], 1.0)
    figure = coverage_endpoints(
        [1.0, 0.5], {"dpo": [optimum, [0.5, 0.5]]}, optimum, [[True, True], [True, False]], index=1
    )
    assert "1 of 2 replies occurs in no pair (coverage 50%)" in figure.says
    assert "DPO 0.231" in figure.says  # sigmoid(1) - 0.5
