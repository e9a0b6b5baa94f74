"""Curves of runs, as drawn."""

import numpy as np
import pytest

from rlhf_lab.figures import alt_text, to_png
from rlhf_lab.figures.training import training_curves
from rlhf_lab.tabular import World, train_dpo


@pytest.fixture(scope="module")
def runs():
    return [train_dpo(World.random(4, seed=seed), 0.5, steps=60) for seed in (0, 1)]


def test_every_seed_has_its_line_and_every_label_one_entry_in_the_legend(runs):
    figure = training_curves({"DPO": runs, "one": runs[0]}, ("tv", "kl"), optimum={"kl": 0.25})
    left, right = figure.axes
    assert len(left.lines) == 3 and len(right.lines) == 4  # and the level
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DPO", "one"]
    np.testing.assert_array_equal(left.lines[1].get_ydata(), runs[1].history.tv)
    np.testing.assert_array_equal(right.lines[0].get_xdata(), runs[0].history.step)
    assert right.lines[-1].get_ydata()[0] == 0.25
    assert right.get_ylabel() == "KL to the reference (nats)" and right.get_xlabel() == "training step"


def test_its_words_hold_where_each_began_and_ended(runs):
    words = alt_text(training_curves({"DPO": runs[0]}))
    first, last = runs[0].history.tv[[0, -1]]
    assert (
        words == f"Curves over training steps. total variation from π*: DPO from {first:.2g} to {round(last, 3):.2g}."
    )
    both = sorted(run.history.kl[-1] for run in runs)
    assert f"to {both[0]:.2g} .. {both[1]:.2g}" in alt_text(training_curves({"DPO": runs}, ("kl",)))


def test_five_labels_are_refused_and_the_same_runs_are_the_same_picture(runs):
    with pytest.raises(ValueError, match="at most 4 labels can be told apart, got 5"):
        training_curves(dict.fromkeys("abcde", runs[0]))
    assert to_png(training_curves({"a": runs})) == to_png(training_curves({"a": runs}))
