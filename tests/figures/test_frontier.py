"""The figure of the course: points and frontier stand where their numbers are, and the alt text says them."""

import numpy as np
import pytest

from rlhf_lab import shares
from rlhf_lab.evaluate import Interval
from rlhf_lab.figures import alt_text, to_png
from rlhf_lab.figures.frontier import METHODS, Panel, Point, reward_over_kl


@pytest.fixture(scope="module")
def front():
    return shares.frontier(np.random.default_rng(0).normal(size=(20, 256)))


def at(value):
    return Interval(value, value - 0.1, value + 0.1)


def test_every_point_stands_at_its_kl_and_reward_under_the_frontier(front):
    points = {
        "ppo": [Point("0.4", at(0.5), at(0.6), [(0.4, 0.5), (0.6, 0.7)]), Point("0.1", at(4.0), at(1.9))],
        "best of n": [Point("2", at(0.19), at(0.55))],
    }
    figure = reward_over_kl([Panel("gold (points)", front, points)] * 2, bounds=[0.3])
    left, right = figure.axes
    assert left.get_xlabel() == "KL from SFT (nats a reply)" and right.get_ylabel() == "gold (points)"
    drawn = {line.get_label(): line for line in left.lines}
    curve = drawn["frontier: the most any policy can have"]
    np.testing.assert_allclose(curve.get_xdata()[1:], front.points.kl)
    np.testing.assert_allclose(curve.get_ydata()[0], front.start)
    bars = {container.get_label(): container[0] for container in left.containers}
    np.testing.assert_allclose(bars[METHODS["ppo"].label].get_ydata().astype(float), [0.6, 1.9])
    assert [0.19, 0.3] in [list(line.get_xdata()) for line in left.lines]  # from the estimate to the bound
    beyond = [line for line in left.lines if line.get_linestyle() == ":" and line.get_xdata()[0] == front.end]
    assert len(beyond) == 2 and beyond[0].get_ydata()[1] < beyond[1].get_ydata()[1]
    text = alt_text(figure)
    assert "0.4 at KL 0.50 has 0.60" in text and f"the frontier {front.points.reward[-1]:.2f}" in text
    assert to_png(figure) == to_png(figure)


def test_methods_can_be_told_apart_without_colour():
    assert len({look.marker for look in METHODS.values()}) == len({look.colour for look in METHODS.values()}) == 4
