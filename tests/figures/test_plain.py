"""Lines and dots: what is drawn is what was given, labelled, told in words, and never more than can be told apart."""

import numpy as np
import pytest

from rlhf_lab.evaluate import Interval
from rlhf_lab.figures import alt_text, to_png
from rlhf_lab.figures.plain import dots, lines

A, B = Interval(0.5, 0.4, 0.7), Interval(0.9, 0.8, 0.95)


def test_a_line_stands_where_its_numbers_are_with_its_intervals():
    curves = {"one": ([1, 2], [A, B]), "two": ([1, 2], [3.0, 4.0])}
    figure = lines(curves, xlabel="n", ylabel="share", level=(0.5, "chance"))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "n" and axes.get_ylabel() == "share"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.5, 0.9])
    ends = axes.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in ends], [[0.4, 0.7], [0.8, 0.95]])
    assert "one from 0.5 at 1 to 0.9 at 2" in alt_text(figure) and "chance is 0.5" in alt_text(figure)
    assert to_png(figure) == to_png(figure)


def test_dots_of_one_row_stand_beside_each_other_and_rows_below():
    figure = dots({"g": {"x": A, "y": B}, "h": {"y": A}}, xlabel="weight", ylabel="attribute")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    first, second = (container[0] for container in axes.containers)
    np.testing.assert_allclose(first.get_xdata().astype(float), [0.5, 0.9])
    np.testing.assert_allclose(second.get_xdata().astype(float), [0.5])
    assert abs(second.get_ydata()[0] - first.get_ydata()[1]) < 0.5
    assert "g: x 0.50 [0.40, 0.70]" in alt_text(figure)


@pytest.mark.parametrize("draw", [lines, dots])
def test_five_are_refused(draw):
    five = {str(i): ([0.0, 1.0], [A, B]) if draw is lines else {"x": A} for i in range(5)}
    with pytest.raises(ValueError, match="at most 4"):
        draw(five, xlabel="x", ylabel="y")
