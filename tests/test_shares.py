"""The frontier from samples, shares of it and best-of-n, against worlds that can be enumerated."""

import numpy as np
import pytest

from rlhf_lab import exact, shares


@pytest.fixture(scope="module")
def world():
    """Prompts whose 300 replies can be enumerated, and what a Llama would give: rewards of replies drawn from it."""
    rng = np.random.default_rng(1)
    ref, rewards = rng.dirichlet(np.ones(300), size=40), rng.normal(size=(40, 300)) + rng.normal(0, 0.3, size=(40, 1))
    drawn = np.stack([r[rng.choice(300, size=600, p=p)] for p, r in zip(ref, rewards, strict=True)])
    return ref, rewards, drawn


def test_the_frontier_of_a_world_is_the_exact_one_and_what_lies_beyond_is_bounded(world):
    ref, rewards, drawn = world
    found = shares.frontier(drawn)
    start = float((ref * rewards).sum(1).mean())
    for beta in (2.0, 1.0, 0.5):
        [truth] = exact.frontier(ref, rewards, [beta])
        least, most = found.gain(truth.kl)
        assert least == most == pytest.approx(truth.reward - start, abs=0.06)
    assert found.points.effective_samples.min() >= shares.MIN_EFFECTIVE_SAMPLES and "effective samples" in found.ended
    [beyond] = exact.frontier(ref, rewards, [0.05])
    assert beyond.kl > found.end + 0.5
    least, most = found.gain(beyond.kl)
    assert least < beyond.reward - start < most


def test_an_optimal_policy_has_a_share_of_1_and_the_reference_of_0(world):
    ref, rewards, drawn = world
    found = shares.frontier(drawn)
    best = exact.optimal_policy(ref, rewards, 0.6)
    got = shares.share(exact.reward_of(best, rewards), exact.kl(best, ref), found)
    assert got.low < 1 < got.high and got.value == pytest.approx(1, abs=0.06)
    half = (ref + best) / 2  # half the gain, at less than half the KL
    got = shares.share(exact.reward_of(half, rewards), exact.kl(half, ref), found)
    assert 0.5 < got.value < 0.95
    nothing = shares.share((ref * rewards).sum(1), np.full(40, 0.5), found)
    assert nothing.value == pytest.approx(0, abs=0.05)


def test_beyond_the_frontiers_end_a_share_is_an_interval_from_the_bounds(world):
    ref, rewards, drawn = world
    found = shares.frontier(drawn)
    far = exact.optimal_policy(ref, rewards, 0.05)
    got = shares.share(exact.reward_of(far, rewards), exact.kl(far, ref), found)
    assert got.low < got.value < 1 < got.high


def test_a_loss_beyond_the_end_is_an_interval_too(world):
    """By hand: the loss is 0.1 of every prompt's, so its share lies between those of the two bounds' gains."""
    ref, rewards, drawn = world
    found = shares.frontier(drawn)
    kl = np.full(40, found.end + 1)
    got = shares.share((ref * rewards).sum(1) - 0.1, kl, found)
    loss = (ref * rewards).sum(1).mean() - 0.1 - found.start
    bounds = sorted(loss / gain for gain in found.gain(found.end + 1))
    assert got.value == pytest.approx(bounds[0])
    assert got.low <= bounds[0] <= bounds[1] <= got.high < 0


def test_a_kl_that_may_be_0_bounds_no_share(world):
    """k1 estimates of a small KL can be negative on some resamples: that is said as inf, not as nan."""
    ref, rewards, drawn = world
    found = shares.frontier(drawn)
    kl = np.where(np.arange(40) % 2 == 0, 1.0, -0.9)
    got = shares.share((ref * rewards).sum(1) + 0.3, kl, found)
    assert got.high == np.inf and np.isfinite([got.value, got.low]).all() and got.low < got.value


def test_share_of_frontier_by_hand():
    # at KL 0.5 the line from (0, 1) to (1, 2) is at 1.5: half a gain of 0.5
    assert shares.share_of_frontier(1.25, 0.5, 1.0, [1.0, 2.0], [2.0, 2.5]) == pytest.approx(0.5)


def test_too_few_samples_put_the_frontier_below_what_a_policy_has(world):
    """The lesson's broken figure: four replies a prompt, nothing refused."""
    ref, rewards, drawn = world
    with pytest.raises(ValueError, match="no point of the frontier can be estimated"):
        shares.frontier(drawn[:, :4])
    few = shares.frontier(drawn[:, :4], min_effective_samples=0)
    best = exact.optimal_policy(ref, rewards, 0.3)
    assert shares.share(exact.reward_of(best, rewards), exact.kl(best, ref), few).low > 1


def test_best_of_n_from_samples_is_that_of_the_world(world):
    ref, rewards, drawn = world
    for b in shares.best_of_n({"gold": drawn, "worse": -drawn}, "gold", (2, 8)):
        truth = exact.best_of_n(ref, rewards, b.n)
        assert b.rewards["gold"].mean() == pytest.approx(exact.reward_of(truth, rewards).mean(), abs=0.05)
        assert b.rewards["worse"].mean() == pytest.approx(-b.rewards["gold"].mean())
        assert b.kl.value == pytest.approx(exact.kl(truth, ref).mean(), abs=0.05)
        assert b.kl.value <= b.bound == exact.best_of_n_kl_bound(b.n)
    with pytest.raises(ValueError, match="at most 75"):
        shares.best_of_n({"gold": drawn}, "gold", [76])
