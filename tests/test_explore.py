"""The sliders: what they show when moved, and what a page shows that runs nothing. With ipywidgets 7.7 and 8 alike."""

import json
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest

from rlhf_lab import explore, figures

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=explore.EXPLORERS)
def explorer(request):
    return explore.EXPLORERS[request.param]()


def _another(control):
    if hasattr(control, "options"):
        return control.options[-1][1] if control.value != control.options[-1][1] else control.options[0][1]
    return control.max if control.value != control.max else control.min


def test_there_are_ten():
    assert len(explore.EXPLORERS) >= 10


def test_each_slider_changes_the_picture_and_the_sentence_and_nothing_is_replaced(explorer):
    figure, axes, image = explorer.figure, list(explorer.figure.axes), explorer.image
    for control in explorer.controls.values():
        picture, sentence, default = image.value, explorer.sentence.value, control.value
        control.value = _another(control)
        assert image.value != picture
        assert explorer.sentence.value != sentence
        control.value = default
        assert image.value == picture
        assert explorer.sentence.value == sentence
    assert explorer.figure is figure and figure.axes == axes and explorer.image is image


def test_the_picture_is_a_png_of_the_figure_where_the_sliders_stand(explorer):
    control = next(iter(explorer.controls.values()))
    control.value = _another(control)
    assert bytes(explorer.image.value[:4]) == b"\x89PNG"
    assert explorer.figure.numbers == explorer.numbers


def test_the_static_figure_comes_first_and_stays_at_the_defaults(explorer, monkeypatch):
    before = figures.to_png(explorer.static())
    control = next(iter(explorer.controls.values()))
    control.value = _another(control)
    shown = []
    monkeypatch.setattr(explore, "display", lambda x, raw=False: shown.append(x))
    explorer._ipython_display_()
    static, words, box = shown
    assert figures.to_png(static) == before
    data, metadata = static._repr_mimebundle_()
    assert data["image/png"] and metadata["image/png"]["alt"].endswith(static.says)
    assert words["text/plain"] == figures.alt_text(static)
    assert "<details><summary>The figure in words</summary>" in words["text/html"]
    assert box is explorer.box
    assert repr(box) == "Run this notebook to move the sliders."


def test_the_sentence_is_announced_and_is_the_end_of_the_alt_text(explorer):
    assert 'aria-live="polite"' in explorer.sentence.value and 'role="status"' in explorer.sentence.value
    says = explorer.figure.says
    assert figures.alt_text(explorer.figure).endswith(says)
    assert explorer.sentence.value.count("<") == 2  # escaped: nothing but the paragraph


def test_sliders_are_named_explained_and_show_their_value(explorer):
    for control in explorer.controls.values():
        assert isinstance(control, (widgets.FloatSlider, widgets.IntSlider, widgets.SelectionSlider))  # keys move them
        assert 0 < len(control.description) <= 16  # 8em hold that much
        assert control.readout and control.continuous_update
        tooltip = getattr(control, "tooltip", None) or control.description_tooltip
        assert len(tooltip) > len("Elo points") - 1


def test_the_defaults_of_sliders_are_those_of_the_figures():
    for name, make in explore.EXPLORERS.items():
        if name not in ("gae_bars", "coverage_endpoints"):  # these take data too
            assert make().numbers == getattr(figures, name)().numbers, name


@pytest.mark.parametrize(
    ("name", "moves", "said"),
    [
        # hand-worked: sigmoid(2 / 2) and sigmoid(0); 10 / 11, and 1 / 2 for equals
        ("bradley_terry_curve", {"gap": 2.0, "temperature": 2.0}, "probability 0.731"),
        ("bradley_terry_curve", {"gap": 0.0}, "probability 0.500"),
        (
            "elo_curves",
            {"shift": 400},
            "2400 against 2000 is odds of 10 to 1: Elo says 0.909. The article&#x27;s arithmetic, 2400 / 4400",
        ),
        ("elo_curves", {"rating_a": 1600}, "Elo says 0.500"),
        # E4
        ("clipped_surrogate", {"ratio": 0.5}, "A = +1: gradient -0.50; A = -1: clipped, gradient 0."),
        ("clipped_surrogate", {"ratio": 1.0}, "A = +1: gradient -1.00; A = -1: gradient +1.00."),
        ("clipped_surrogate", {"ratio": 1.5}, "A = +1: clipped, gradient 0; A = -1: gradient +1.50."),
        ("clipped_surrogate", {"ratio": 1.45, "clip_range": 0.5}, "A = +1: gradient -1.45"),
        ("ratio_drift", {"learning_rate": 1.5}, "past the clip all the same"),
        # shift 2: KL 2, k2 tends to 1 + 4 / 4
        ("kl_estimators", {"shift": 2.0}, "True KL 2.000 nats"),
        ("kl_estimators", {"shift": 2.0}, "k2 tends to 2.00"),
        # reference puts 1/2 on F: at beta 0.05 all mass is there, at a KL of log 2
        ("optimal_policy_bars", {"best_mass": 0.5, "beta": 0.05}, "reward 3.00 at a KL of 0.69 nats"),
        ("optimal_policy_bars", {"best_mass": 0.0}, "goes from 0.00 to 0.00"),
        ("dpo_curves", {"margin": 0.0, "beta": 0.1}, "loss 0.693, gradient weight 0.050"),
        ("dpo_curves", {"margin": -20.0, "beta": 0.5}, "loss 10.000, gradient weight 0.500"),
        (
            "coverage_endpoints",
            {"index": 6},
            "All 8 replies occur in pairs (coverage 100%). Total variation from π*: PPO 0.000, DPO 0.000.",
        ),
        ("fitted_rewards", {"n": 10}, "no finite estimate"),
    ],
)
def test_what_is_said_is_what_the_maths_says(name, moves, said):
    explorer = explore.EXPLORERS[name]()
    for control, value in moves.items():
        explorer.controls[control].value = value
    assert said in explorer.sentence.value


def test_gae_takes_ones_own_trajectory():
    """Two tokens, gamma 1, lambda 1: returns 4 and 3, less the values 1 and 2."""
    explorer = explore.gae_bars({"tokens": ["a", "b"], "rewards": [1.0, 3.0], "values": [1.0, 2.0]})
    explorer.controls["lam"].value = 1.0
    assert "+3.00 at the first token and +1.00 at the last" in explorer.sentence.value


def test_coverage_takes_a_precomputed_sweep():
    sweep = {
        "coverages": [0.5, 1.0],
        "policies": {"ppo": [[0.2, 0.8]] * 2, "dpo": [[0.5, 0.5], [0.2, 0.8]]},
        "optimum": [0.2, 0.8],
        "support": [[True, False], [True, True]],
    }
    explorer = explore.coverage_endpoints(sweep)
    assert "PPO 0.000, DPO 0.300" in explorer.sentence.value
    explorer.controls["index"].value = 1
    assert "PPO 0.000, DPO 0.000" in explorer.sentence.value


def test_one_world_of_a_sweep_over_several():
    """Two coverages, two worlds, two replies, three methods; the second world is shown."""
    first, second = [0.2, 0.8], [0.6, 0.4]
    several = SimpleNamespace(
        coverages=np.array([0.5, 1.0]),
        policies={
            "dpo": np.array([[first, [0.5, 0.5]], [first, second]]),
            "ppo": np.array([[first, second]] * 2),
            "ppo_learned_reward": np.array([[first, [0.9, 0.1]], [first, second]]),
        },
        optimum=np.array([first, second]),
        covered=np.array([[[True, False], [False, True]], [[True, True], [True, True]]]),
        world=SimpleNamespace(ref_probs=np.full((2, 2), 0.5)),
    )
    explorer = explore.coverage_endpoints(explore.one_world(several, seed=1))
    assert "1 of 2 replies occurs in no pair" in explorer.sentence.value
    assert "DPO 0.100, PPO 0.000, PPO, learned reward 0.300" in explorer.sentence.value
    (crosses,) = (line for line in explorer.figure.axes[0].lines if line.get_marker() == "x")
    assert list(crosses.get_xdata()) == [0]


def test_every_explorer_has_been_timed_and_kept_to_its_budget():
    """docs/sliders.json is what bench/sliders.py measured; it names every explorer there is."""
    record = json.loads((ROOT / "docs" / "sliders.json").read_text(encoding="utf-8"))
    assert record["explorers"].keys() == explore.EXPLORERS.keys()
    assert all(row["median_ms"] <= record["budget_ms"] == 100 for row in record["explorers"].values())
