"""Bradley-Terry, Elo and fitted rewards, as drawn."""

import numpy as np
import pytest

from rlhf_lab.figures import bradley_terry_curve, elo_curves, fitted_rewards


def _lines(axes) -> dict:
    return {line.get_label(): np.array(line.get_data(), dtype=float) for line in axes.lines}


def _marks(axes) -> list[tuple[float, float]]:
    """The points that move."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_animated() and line.get_linestyle() == "None" and len(line.get_xdata()) == 1
    ]


@pytest.mark.parametrize(
    ("gap", "temperature", "probability"),
    [(0, 2.0, 0.5), (1, 1.0, 0.7310586), (np.log(9), 1.0, 0.9), (2 * np.log(9), 2.0, 0.9), (-np.log(3), 1.0, 0.25)],
)
def test_bradley_terry_by_hand(gap, temperature, probability):
    (axes,) = bradley_terry_curve(gap, temperature).axes
    assert _marks(axes) == [pytest.approx((gap, probability))]


def test_a_hot_annotator_is_nearer_a_coin_toss_at_every_gap():
    (axes,) = bradley_terry_curve(temperature=3).axes
    lines = _lines(axes)
    hot, plain = lines["this temperature"][1], lines["temperature 1"][1]
    assert (np.abs(hot - 0.5) <= np.abs(plain - 0.5)).all()


def test_elo_against_the_articles_arithmetic():
    """E1: 2000 against 1600 is 1 / (1 + 10^-1), and not 2000 / 3600."""
    figure = elo_curves(2000, 1600)
    assert _marks(figure.axes[0]) == [pytest.approx((2000, 10 / 11)), pytest.approx((2000, 2000 / 3600))]
    assert "odds of 10 to 1: Elo says 0.909" in figure.says and "2000 / 3600, says 0.556" in figure.says


def test_only_the_difference_of_ratings_counts_in_elo():
    figure = elo_curves(2000, 1600, 400)
    assert _marks(figure.axes[0]) == [pytest.approx((2400, 10 / 11)), pytest.approx((2400, 2400 / 4400))]


def test_fitted_rewards_come_to_the_truth_over_the_temperature():
    """40 data sets of 5 rewards: 95 % intervals hold the truth that often, within 4 standard errors."""
    figure, held = fitted_rewards(1000, 2.0), []
    for seed in range(40):
        figure.move(seed=seed)
        held.append(int(figure.says.split(" of 5 hold")[0].split()[-1]))
    assert abs(np.mean(held) / 5 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200)
    truth = _lines(figure.axes[0])["truth r / T"][1]
    assert truth == pytest.approx([1.0, 0.5, 0.1, -0.4, -1.2])


def test_intervals_shrink_as_one_over_root_n_and_as_expected():
    _, right = fitted_rewards(3000).axes
    n, width = _lines(right)["expected, falls as 1 / √n"]
    assert width * np.sqrt(n) == pytest.approx(width[0] * np.sqrt(n[0]))
    ((_, measured),) = _marks(right)
    assert measured == pytest.approx(width[-1], rel=0.1)


def test_too_few_comparisons_draw_no_estimate_and_say_why():
    figure = fitted_rewards(10)
    assert "no finite estimate" in figure.says
    assert not _marks(figure.axes[1])
    figure.move(n=500)
    assert "hold the truth" in figure.says
    assert _marks(figure.axes[1])
