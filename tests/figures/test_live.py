"""What every moving figure keeps: its artists, its axes, its looks; and the picture that drawing anew would give."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Text

from rlhf_lab import figures
from rlhf_lab.explore import closed_form_sweep, recorded_trajectory
from rlhf_lab.figures.live import pixels, quick_png

RECORDED = [recorded_trajectory()[name] for name in ("tokens", "rewards", "values")]
SWEEP = closed_form_sweep()
# Each figure, and numbers far from its defaults.
MOVING = {
    "bradley_terry_curve": (figures.bradley_terry_curve, {"gap": -3.0, "temperature": 4.0}),
    "elo_curves": (figures.elo_curves, {"rating_a": 1200, "rating_b": 2600, "shift": 400}),
    "fitted_rewards": (figures.fitted_rewards, {"n": 3000, "temperature": 0.5, "seed": 3}),
    "clipped_surrogate": (figures.clipped_surrogate, {"ratio": 0.05, "clip_range": 0.5}),
    "ratio_drift": (figures.ratio_drift, {"learning_rate": 1.5, "clip_range": 0.05}),
    "gae_bars": (lambda **n: figures.gae_bars(*RECORDED, **n), {"lam": 0.0, "gamma": 0.8}),
    "kl_estimators": (figures.kl_estimators, {"shift": 2.0, "n": 100, "seed": 5}),
    "optimal_policy_bars": (figures.optimal_policy_bars, {"beta": 20.0, "best_mass": 0.5}),
    "dpo_curves": (figures.dpo_curves, {"margin": 20.0, "beta": 0.03}),
    "coverage_endpoints": (lambda index=0: figures.coverage_endpoints(**SWEEP, index=index), {"index": 6}),
}


@pytest.fixture(params=MOVING)
def moving(request):
    return MOVING[request.param]


def test_a_moved_figure_is_to_the_byte_the_figure_drawn_there_and_comes_back(moving):
    draw, numbers = moving
    figure = draw()
    first = quick_png(figure)
    start = dict(figure.numbers)
    moved = quick_png(figure.move(**numbers))
    assert moved != first
    assert moved == quick_png(draw(**numbers))
    assert quick_png(figure.move(**start)) == first


def test_moving_replaces_no_artist_and_adds_no_axes(moving):
    draw, numbers = moving
    figure = draw()
    quick_png(figure)
    axes, before = list(figure.axes), [id(artist) for artist in figure.findobj()]
    for one in ({name: value} for name, value in numbers.items()):
        quick_png(figure.move(**one))
    assert figure.axes == axes
    assert [id(artist) for artist in figure.findobj()] == before


def test_limits_stay_so_the_eye_can_compare(moving):
    draw, numbers = moving
    figure = draw()
    before = [(axes.get_xlim(), axes.get_ylim(), axes.get_position().bounds) for axes in figure.axes]
    quick_png(figure.move(**numbers))
    assert [(axes.get_xlim(), axes.get_ylim(), axes.get_position().bounds) for axes in figure.axes] == before


def test_the_alt_text_changes_with_the_numbers(moving):
    draw, numbers = moving
    figure = draw()
    before, about = figures.alt_text(figure), figures.alt_text(figure).split(". ")[0]
    figure.move(**numbers)
    after = figures.alt_text(figure)
    assert after != before
    assert after.startswith(about)
    assert after.endswith(figure.says)


def test_an_unknown_number_is_refused(moving):
    draw, _ = moving
    with pytest.raises(TypeError, match="nonsense"):
        draw().move(nonsense=1)


def test_no_note_is_cut_or_lies_on_other_text(moving):
    draw, numbers = moving
    figure = draw(**numbers)
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    for note in (text for text in texts if text.get_animated()):
        box = note.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, note
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, note
        assert not [text for text in texts if text is not note and text.get_window_extent().overlaps(box)], note


def _contrast(colour) -> float:
    """WCAG 2.1 contrast with white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (0.05 + np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_contrast_is_that_of_wcag():
    assert _contrast("black") == pytest.approx(21)
    assert _contrast("#767676") == pytest.approx(4.54, abs=0.01)  # the lightest grey that passes AA


def test_the_background_is_solid_white_and_everything_stands_out_from_it(moving):
    """3:1 for shapes, 4.5:1 for text (WCAG 2.1, 1.4.11 and 1.4.3), so a page may be dark or light around it."""
    draw, _ = moving
    figure = draw()
    picture = pixels(figure)
    assert (picture[0, 0] == 255).all() and (picture[-1, -1] == 255).all() and (picture[..., 3] == 255).all()
    for axes in figure.axes:
        for line in axes.lines:
            assert _contrast(line.get_color()) >= 3, line
        for bar in axes.patches:
            assert _contrast(bar.get_facecolor()) >= 3, bar
    for text in figure.findobj(Text):
        assert not text.get_text() or _contrast(text.get_color()) >= 4.5, text


def test_no_two_lines_differ_by_colour_alone(moving):
    """Who cannot tell the colours tells dashes, markers or hatches."""
    draw, _ = moving
    for legend in (x for x in draw().findobj() if type(x).__name__ == "Legend"):
        looks = [
            (h.get_linestyle(), h.get_marker(), h.get_linewidth()) if isinstance(h, Line2D) else h.get_hatch()
            for h in legend.legend_handles
        ]
        assert len(set(looks)) == len(looks), looks


def test_no_mathtext(moving):
    draw, _ = moving
    figure = draw()
    figure.draw_without_rendering()
    assert not [text for text in figure.findobj(Text) if "$" in text.get_text()]


def test_showing_the_figure_still_leaves_the_live_one_right():
    """savefig goes to another dpi and back; the kept background must survive it."""
    figure = figures.dpo_curves()
    first = quick_png(figure)
    figures.to_png(figure)
    assert quick_png(figure) == first
