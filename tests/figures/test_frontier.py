"""The figure of the course: points and frontier stand where their numbers are, and the alt text says them."""

import itertools

import matplotlib.text
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
        "ppo": [Point("0.4", at(0.5), at(0.6), [(0.4, 0.5), (0.6, 0.7)]), Point("0.1", at(1.4 * front.end), at(1.9))],
        "best of n": [Point("2", at(0.19), at(0.55))],
    }
    figure = reward_over_kl([Panel("gold (points)", front, points)] * 2, bounds=[0.3])
    left, other = figure.axes
    assert left.get_xlabel() == "KL from SFT (nats a reply)" and other.get_ylabel() == "gold (points)"
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


def test_points_far_beyond_the_frontier_stand_right_of_a_break_and_leave_the_rest_its_room(front):
    far = 20 * front.end
    points = {"ppo": [Point("0.4", at(0.5), at(0.6))], "dpo": [Point("0.05", at(far), at(0.2), [(far / 2, 0.3)] * 2)]}
    near, beyond = reward_over_kl([Panel("gold (points)", front, points)]).axes
    assert front.end < near.get_xlim()[1] < 1.5 * front.end
    assert near.get_xlim()[1] < beyond.get_xlim()[0] < far / 2 and far < beyond.get_xlim()[1]
    assert near.get_ylim() == beyond.get_ylim()
    assert near.get_ylim()[1] < front.points.reward_high[-1] + 0.5  # what may lie above at 20 times the KL is off it
    assert [[text.get_text() for text in axes.texts] for axes in (near, beyond)] == [["0.4"], ["0.05"]]


def test_the_names_of_points_cover_neither_each_other_nor_a_marker(front):
    near = [Point(str(i), at(0.5 + 0.02 * i), at(0.6 + 0.01 * i)) for i in range(4)]
    figure = reward_over_kl([Panel("gold (points)", front, {"ppo": near, "dpo": near})])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    # Only the text: the extent of an annotation takes in its line.
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 8 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    markers = [axes.transData.transform((point.kl.value, point.reward.value)) for point in near]
    assert not any(box.contains(*marker) for box in boxes for marker in markers)


def test_methods_can_be_told_apart_without_colour():
    assert len({look.marker for look in METHODS.values()}) == len({look.colour for look in METHODS.values()}) == 4
