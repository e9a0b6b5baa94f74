"""Curves of runs, as drawn."""

import numpy as np
import pytest

from rlhf_lab.figures import alt_text, to_png
from rlhf_lab.figures.lines import line_chart, training_curves
from rlhf_lab.tabular import World, train_dpo


def test_every_seed_has_its_line_and_every_label_one_entry_in_the_legend():
    worlds = [World.random(4, seed=seed) for seed in (0, 1)]
    runs = [train_dpo(world, 0.5, steps=60) for world in worlds]
    figure = training_curves({"DPO": runs, "one": runs[0]}, ("tv", "kl"), optimum={"kl": 0.25})
    left, right = figure.axes
    assert len(left.lines) == 3 and len(right.lines) == 4  # and the level
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DPO", "one"]
    np.testing.assert_array_equal(left.lines[1].get_ydata(), runs[1].history.tv)
    np.testing.assert_array_equal(right.lines[0].get_xdata(), runs[0].history.step)
    assert right.lines[-1].get_ydata()[0] == 0.25
    assert f"{runs[0].history.tv[0]:.2g}" in alt_text(figure) and "KL to the reference (nats)" in alt_text(figure)
    assert right.get_ylabel() == "KL to the reference (nats)" and right.get_xlabel() == "training step"


def test_intervals_are_drawn_where_they_are():
    figure = line_chart(
        {"a": ([0, 1], [1.0, 2.0], [0.5, 1.0], [1.25, 4.0]), "b": ([0, 1], [3.0, 3.0])},
        xlabel="flip rate", ylabel="tv", level=("target", 5.0), yscale="log",
    )  # fmt: skip
    axes = figure.axes[0]
    bars = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars, [[[0, 0.5], [0, 1.25]], [[1, 1.0], [1, 4.0]]])
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "target", "a"]
    assert alt_text(figure) == "tv over flip rate: a from 1 to 2, b from 3 to 3."


def test_seeds_of_one_label_share_its_entry_and_the_text_says_where_they_end():
    figure = line_chart({"PPO": ([0, 1, 2], [[1e-17, 2, 3], [0, 1, 0.5]])}, xlabel="share", ylabel="tv")
    assert len(figure.axes[0].lines) == 2 and len(figure.legends[0].get_texts()) == 1
    assert alt_text(figure) == "tv over share: PPO from 0 to 0.5 .. 3."


@pytest.mark.parametrize("draw", [lambda: line_chart({"a": ([0, 1], [1, 2])}, xlabel="x", ylabel="y")])
def test_the_same_data_is_the_same_picture(draw):
    assert to_png(draw()) == to_png(draw())
