"""The clip, the drift, GAE and the KL estimators, as drawn."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from rlhf_lab.explore import recorded_trajectory
from rlhf_lab.figures import clipped_surrogate, gae_bars, kl_estimators, ratio_drift
from rlhf_lab.figures.policy_gradient import DRIFT_STEPS, _kl_moments


def _point(axes) -> float:
    """The height of the black point that moves."""
    (line,) = (line for line in axes.lines if line.get_marker() == "o" and line.get_animated())
    return float(line.get_ydata()[0])


@pytest.mark.parametrize(
    ("ratio", "gradients", "objectives"),
    [(0.5, (-0.5, 0.0), (0.5, -0.8)), (1.0, (-1.0, 1.0), (1.0, -1.0)), (1.5, (0.0, 1.5), (1.2, -1.5))],
)
def test_the_clip_at_eps_02(ratio, gradients, objectives):
    """E4's table of d loss / d log pi, and min(ratio A, clip(ratio) A) by hand."""
    upper_left, upper_right, lower_left, lower_right = clipped_surrogate(ratio, 0.2).axes
    assert (_point(lower_left), _point(lower_right)) == pytest.approx(gradients)
    assert (_point(upper_left), _point(upper_right)) == pytest.approx(objectives)


def test_the_sentence_tells_clipped_from_not():
    assert clipped_surrogate(1.5).says.endswith("A = +1: clipped, gradient 0; A = -1: gradient +1.50.")
    assert clipped_surrogate(0.5).says.endswith("A = +1: gradient -0.50; A = -1: clipped, gradient 0.")
    assert clipped_surrogate(1.5, 0.5001).says.endswith("A = +1: gradient -1.50; A = -1: gradient +1.50.")


def test_the_gradient_drawn_is_the_slope_of_the_objective_drawn():
    """d loss / d log pi = -ratio * d objective / d ratio, by finite differences away from the corner."""
    axes = clipped_surrogate(1.0, 0.3).axes
    for upper, lower in ((axes[0], axes[2]), (axes[1], axes[3])):
        (ratios, objective), (_, gradient) = (
            next(x.get_data() for x in a.lines if x.get_linewidth() == 2.4) for a in (upper, lower)
        )
        slope = -ratios * np.gradient(objective, ratios)
        smooth = np.isfinite(gradient) & (np.abs(ratios - 0.7) > 0.02) & (np.abs(ratios - 1.3) > 0.02)
        assert np.allclose(slope[smooth], gradient[smooth], atol=1e-6)


def _paths(figure) -> list[np.ndarray]:
    """Ratios without the clip and with it, each (replies, steps + 1)."""
    return [
        np.array([line.get_ydata() for line in axes.lines if str(line.get_label()).startswith("A =")])
        for axes in figure.axes
    ]


def test_the_first_step_by_hand():
    """logit k moves by lr p_k (A_k - mean A): at ratio 1 PPO's gradient is that of policy gradient."""
    probs, advantages = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.2, 1.0, -1.0, -0.5])
    logits = np.log(probs) + 0.25 * probs * (advantages - probs @ advantages)
    after = np.exp(logits) / np.exp(logits).sum()
    for path in _paths(ratio_drift(0.25)):
        assert path.shape == (4, DRIFT_STEPS + 1)
        assert path[:, 0] == pytest.approx(1)
        assert path[:, 1] == pytest.approx(after / probs)


@pytest.mark.parametrize("learning_rate", [0.05, 0.25, 1.0, 1.5])
def test_the_clip_slows_the_drift_and_bounds_nothing(learning_rate):
    free, clipped = _paths(ratio_drift(learning_rate, 0.2))
    assert np.abs(np.log(clipped[:, -1])).max() < np.abs(np.log(free[:, -1])).max()
    if learning_rate >= 0.25:
        assert clipped.max() > 1.2 and clipped.min() < 0.8
        assert "past the clip all the same" in ratio_drift(learning_rate, 0.2).says


RECORDED = recorded_trajectory()
DATA = [RECORDED[name] for name in ("tokens", "rewards", "values")]


def _heights(figure) -> np.ndarray:
    return np.array([bar.get_height() for bar in figure.axes[1].patches])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_at_its_two_ends(gamma):
    """lambda = 0 is r + gamma V' - V, lambda = 1 the discounted return minus V; V after the last token is 0."""
    rewards, values = np.array(DATA[1]), np.array(DATA[2])
    following = np.append(values[1:], 0)
    assert _heights(gae_bars(*DATA, lam=0.0, gamma=gamma)) == pytest.approx(rewards + gamma * following - values)
    returns = [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    assert _heights(gae_bars(*DATA, lam=1.0, gamma=gamma)) == pytest.approx(np.array(returns) - values)


def test_gae_by_hand():
    """Two tokens, gamma = 0.5, lambda = 0.5: deltas 1 + 0.5 * 2 - 1 = 1 and 3 - 2 = 1; A = 1 + 0.25 * 1, and 1."""
    figure = gae_bars(["a", "b"], [1.0, 3.0], [1.0, 2.0], lam=0.5, gamma=0.5, lowest_gamma=0.5)
    assert _heights(figure) == pytest.approx([1.25, 1.0])


def test_every_advantage_has_room():
    for gamma in (0.8, 1.0):
        for lam in (0.0, 0.5, 1.0):
            figure = gae_bars(*DATA, lam=lam, gamma=gamma)
            low, high = figure.axes[1].get_ylim()
            assert low <= _heights(figure).min() and _heights(figure).max() <= high


def test_the_recorded_reply_is_whole():
    assert "".join(RECORDED["tokens"]) == RECORDED["reply"] + "<|eot_id|>"
    assert len(RECORDED["tokens"]) == len(RECORDED["rewards"]) == len(RECORDED["values"])
    # No discount: what a reply earns is its score less the KL penalty, so no reward but the last is a score.
    assert RECORDED["rewards"][-1] == pytest.approx(RECORDED["score"], abs=0.1)
    assert max(map(abs, RECORDED["rewards"][:-1])) < 0.5


# joschu.net/blog/kl-approx.html: bias and standard deviation over the true KL, for q = N(0, 1) and p = N(mu, 1).
SCHULMAN = {
    0.1: {"k1": (0, 20), "k2": (0.002, 1.42), "k3": (0, 1.42)},
    1.0: {"k1": (0, 2), "k2": (0.25, 1.73), "k3": (0, 1.7)},
}


@pytest.mark.parametrize("shift", SCHULMAN)
def test_the_lines_go_through_schulmans_numbers(shift):
    left, right = kl_estimators(shift).axes
    for kind, (bias, spread) in SCHULMAN[shift].items():
        for axes, expected, room in ((left, 1 + bias, 0.002), (right, spread, 0.01 * spread)):
            (line,) = (line for line in axes.lines if line.get_label() == kind)
            assert np.interp(shift, *line.get_data()) == pytest.approx(expected, abs=room)


@pytest.mark.parametrize("shift", [0.3, 1.5])
def test_closed_forms_against_quadrature(shift):
    def moment(power, estimator):
        return quad(lambda x: norm.pdf(x) * estimator(shift**2 / 2 - shift * x) ** power, -12, 12)[0]

    estimators = {"k1": lambda k: k, "k2": lambda k: k**2 / 2, "k3": lambda k: np.exp(-k) - 1 + k}
    true = shift**2 / 2
    for kind, estimator in estimators.items():
        mean, square = moment(1, estimator), moment(2, estimator)
        assert _kl_moments(shift)[kind] == pytest.approx((mean / true, np.sqrt(square - mean**2) / true), rel=1e-6)


def test_samples_k1_and_k3_are_unbiased_and_k2_is_not():
    left, _ = kl_estimators(1.0, 50_000).axes
    at = {line.get_marker(): line.get_ydata()[0] for line in left.lines if len(line.get_xdata()) == 1}
    error = 1 / np.sqrt(50_000)
    assert at["o"] == pytest.approx(1, abs=4 * 2 * error)  # k1
    assert at["D"] == pytest.approx(1, abs=4 * 1.7 * error)  # k3
    assert at["s"] == pytest.approx(1.25, abs=4 * 1.73 * error)  # k2
