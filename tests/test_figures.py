"""Each figure: labelled, described, nothing clipped, the data drawn as given, and no setting left behind."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from rlhf_lab import figures
from rlhf_lab.evaluate import Interval, calibration_curve
from rlhf_lab.explore import closed_form_sweep, recorded_trajectory
from rlhf_lab.figures.report import _running_mean as running_mean

MEANS = {
    "base": {"helpfulness": Interval(-0.41, -0.5, -0.3), "cultural_fit": Interval(0.02, -0.04, 0.08)},
    "ppo": {"helpfulness": Interval(1.13, 1.0, 1.3), "cultural_fit": Interval(0.37, 0.3, 0.43)},
}
RATES = {"ppo": Interval(0.86, 0.83, 0.89), "dpo": Interval(0.81, 0.77, 0.84)}
STEPS = list(range(0, 400, 5))
CURVES = {
    f"DPO: curve {i}": {
        "x": STEPS,
        "y": [i + x / 400 for x in STEPS],
        "xlabel": "step",
        "ylabel": "nats",
        "model": "dpo",
    }
    for i in range(5)
}
CALIBRATION = calibration_curve(np.linspace(-3, 3, 200), np.arange(200) % 3 > 0)
TRAJECTORY = [recorded_trajectory()[name] for name in ("tokens", "rewards", "values")]
FIGURES = {
    "gold_by_attribute": (lambda: figures.gold_by_attribute(["helpfulness", "cultural_fit"], MEANS), "1.13"),
    "win_rates": (lambda: figures.win_rates(RATES, n=512), "0.86 [0.83, 0.89]"),
    "learning_curves": (lambda: figures.learning_curves(CURVES), "DPO: curve 4 from 4 to 4.99"),
    "kl_and_reward": (
        lambda: figures.kl_and_reward({"ppo": (Interval(4.2, 4.0, 4.4), Interval(1.5, 1.4, 1.6))}),
        "KL 4.20 [4.00, 4.40]",
    ),
    "calibration": (lambda: figures.calibration(CALIBRATION, ece=0.123), "0.123"),
    "lengths": (lambda: figures.lengths({"sft": [30, 40, 50], "dpo": [44, 45, 49]}), "DPO 46.0, median 45"),
    "stage_costs": (
        lambda: figures.stage_costs({"sft": 31.0, "ppo": 1234.0, "total": 1300.0}, {"sft": 900.0}),
        "PPO 1,234",
    ),
    "bradley_terry_curve": (figures.bradley_terry_curve, "0.881"),
    "elo_curves": (figures.elo_curves, "0.909"),
    "fitted_rewards": (figures.fitted_rewards, "200 comparisons"),
    "fitted_rewards, none": (lambda: figures.fitted_rewards(10), "no finite estimate"),
    "clipped_surrogate": (figures.clipped_surrogate, "A = +1: clipped, gradient 0; A = -1: gradient +1.50"),
    "ratio_drift": (figures.ratio_drift, "past the clip all the same"),
    "gae_bars": (lambda: figures.gae_bars(*TRAJECTORY), "λ = 0.95"),
    "kl_estimators": (figures.kl_estimators, "True KL 0.125 nats"),
    "optimal_policy_bars": (figures.optimal_policy_bars, "β = 0.5"),
    "dpo_curves": (figures.dpo_curves, "loss 0.693, gradient weight 0.150"),
    "coverage_endpoints": (lambda: figures.coverage_endpoints(**closed_form_sweep(), index=0), "6 of 8 replies"),
}


@pytest.fixture(params=FIGURES)
def drawn(request):
    draw, told = FIGURES[request.param]
    return draw(), told


def test_axes_are_labelled(drawn):
    figure, _ = drawn
    assert isinstance(figure, Figure)
    for axes in figure.axes:
        shares_x = len(axes.get_shared_x_axes().get_siblings(axes)) > 1
        shares_y = len(axes.get_shared_y_axes().get_siblings(axes)) > 1
        assert axes.get_xlabel() or shares_x
        assert axes.get_ylabel() or shares_y


def test_alt_text_says_the_numbers(drawn):
    figure, told = drawn
    assert told in figures.alt_text(figure)
    assert figures.alt_text(figure).endswith(".")


def test_no_text_is_clipped(drawn):
    figure, _ = drawn
    figure.draw_without_rendering()  # lays it out
    ticks = [text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()]
    shown = [tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()]
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and (text in shown or text not in ticks):
            box = text.get_window_extent()
            assert min(box.x0, box.y0) >= -1, text
            assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text


def test_a_dark_theme_changes_nothing_and_is_left_as_it_was():
    draw, _ = FIGURES["win_rates"]
    plain = figures.to_png(draw())
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        dark = draw()
        assert figures.to_png(dark) == plain
        assert dict(matplotlib.rcParams) == before
    assert to_hex(dark.get_facecolor()) == "#ffffff"


def test_pyplot_is_never_loaded():
    code = (
        "import sys; from rlhf_lab import figures; from rlhf_lab.evaluate import Interval;"
        "figures.to_png(figures.win_rates({'ppo': Interval(.8, .7, .9)}));"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bars_and_their_intervals_are_the_data():
    (axes,) = figures.gold_by_attribute(["helpfulness", "cultural_fit"], MEANS).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [-0.41, 0.02, 1.13, 0.37]
    whiskers = [segment[:, 1].tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert np.allclose(whiskers, [[-0.5, -0.3], [-0.04, 0.08], [1.0, 1.3], [0.3, 0.43]])


def test_a_missing_attribute_leaves_a_gap():
    means = {**MEANS, "dpo": {"cultural_fit": Interval(0.1, 0.0, 0.2)}}
    (axes,) = figures.gold_by_attribute(["helpfulness", "cultural_fit"], means).axes
    assert len(axes.patches) == 5


def test_a_model_looks_the_same_everywhere_and_unlike_the_others():
    looks = list(figures.LOOKS.values())
    for field in ("label", "colour", "marker", "hatch"):
        assert len({getattr(look, field) for look in looks}) == len(looks)
    assert figures.look("ppo").colour == "#D55E00"  # Okabe and Ito's vermillion
    assert figures.look("my model") == figures.look("my model")
    assert figures.look("my model").label == "my model"


def test_the_win_rate_figure_shows_the_line_of_no_difference():
    (axes,) = figures.win_rates(RATES).axes
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)


def test_curves_bear_gaps_one_point_and_held_out_points():
    curves = {
        "a": {"x": [1, 2, 3], "y": [1.0, float("nan"), 0.5], "xlabel": "step", "ylabel": "nats"},
        "b": {"x": [1], "y": [2.0], "xlabel": "step", "ylabel": "nats", "held_out": ([1], [2.5])},
    }
    figure = figures.learning_curves(curves)
    assert len(figure.axes) == 2
    assert "a from 1 to 0.5" in figures.alt_text(figure)
    assert [line.get_marker() for line in figure.axes[1].lines] == ["o", "o"]


def test_the_running_mean_is_the_mean_of_its_window():
    values = np.arange(100.0) ** 2
    smooth = running_mean(values)
    assert smooth[50] == pytest.approx(values[48:53].mean())
    assert smooth[0] == pytest.approx(values[:3].mean())


def test_a_figure_shows_itself_in_a_notebook_with_its_alt_text():
    figure = figures.win_rates(RATES)
    data, metadata = figure._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR")  # base64 of PNG's signature
    assert metadata["image/png"]["alt"] == figures.alt_text(figure)


def test_a_saved_figure_is_a_png_that_carries_its_description(tmp_path):
    path = figures.save(figures.win_rates(RATES), tmp_path / "figures" / "win_rates.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert b"Win rate against SFT" in content
