"""PPO's heat maps and dashboard: what is drawn is what was given, padding is no data, and signs have their colour."""

import numpy as np
import pytest

from rlhf_lab.figures import alt_text, to_png
from rlhf_lab.figures.rollout import SIGNED, WATCHED, batch_heatmap, curves_of, dashboard, reply_heatmap

TOKENS = ["Hello", ",", " world"]


def entry(episode, **numbers):
    return (
        dict.fromkeys(WATCHED, 1.0) | {"episode": episode} | {name.replace("__", "/"): x for name, x in numbers.items()}
    )


def test_a_cell_a_token_and_quantity_with_its_number_and_a_row_its_own_scale():
    figure = reply_heatmap(TOKENS, {"KL (nats)": [0.1, -0.2, 0.0], "value": [10.0, 5.0, -10.0]})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0.1", "-0.2", "0.0", "10.0", "5.0", "-10.0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == TOKENS
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.5, -1, 0], [1, 0.5, -1]])
    assert "KL (nats) from -0.20 at ',' to 0.10 at 'Hello'" in alt_text(figure)
    assert to_png(figure) == to_png(figure)


def test_zero_is_white_above_is_blue_below_is_orange():
    low, zero, high = SIGNED([0.0, 0.5, 1.0])
    assert zero[:3].min() > 0.99 and high[2] > high[0] and low[0] > low[2]


@pytest.mark.parametrize("rows", [{"value": [1.0, 2.0]}, {}])
def test_a_row_needs_one_number_a_token(rows):
    with pytest.raises(ValueError, match="one number a token"):
        reply_heatmap(TOKENS, rows)


def test_padding_is_left_out_of_a_batch_whatever_it_holds():
    mask = np.array([[False, True], [True, True]])
    figure = batch_heatmap({"advantage": np.array([[np.nan, 1.0], [-2.0, 0.5]])}, mask)
    (image,) = figure.axes[0].images
    assert image.get_array().mask.tolist() == [[True, False], [False, False]]
    assert image.get_clim() == (-2.0, 2.0)
    assert "2 replies over 2 positions, 3 of them tokens. advantage from -2.00 to 1.00" in alt_text(figure)
    with pytest.raises(ValueError, match="advantage has shape"):
        batch_heatmap({"advantage": np.zeros((2, 3))}, mask)


def test_curves_are_the_trainers_log_without_what_is_no_update():
    history = [entry(8, objective__kl=0.0), {"eval_objective/kl": 3.0}, entry(16, objective__kl=0.5)]
    curves = curves_of(history)
    assert curves["episode"] == [8, 16] and curves["objective/kl"] == [0.0, 0.5]
    assert curves_of([])["episode"] == []


def test_a_panel_a_number_a_line_a_seed_and_a_label_once():
    runs = [curves_of([entry(8, objective__kl=0.0), entry(16, objective__kl=end)]) for end in (2.0, 3.0)]
    figure = dashboard({"broken": runs, "healthy": runs[0]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [watched.title for watched in WATCHED.values()]
    assert all(axes.get_ylabel() and axes.get_xlabel() == "episodes" for axes in figure.axes)
    kl = figure.axes[1]
    assert len(kl.lines) == 4 and kl.lines[0].get_ydata()[0] == 0  # the level, two seeds, one run
    np.testing.assert_array_equal(kl.lines[2].get_ydata(), [0.0, 3.0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["broken", "healthy"]
    assert "KL to the reference (nats a reply): broken 0 to 2 .. 3, healthy 0 to 2" in alt_text(figure)


def test_five_are_refused_and_an_empty_run_is_drawn():
    with pytest.raises(ValueError, match="at most 4 labels"):
        dashboard(dict.fromkeys("abcde", curves_of([])))
    assert "this run nothing yet" in alt_text(dashboard({"this run": curves_of([])}))
