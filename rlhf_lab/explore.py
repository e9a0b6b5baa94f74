"""Sliders around the figures of the lessons, a chat to write beside its template, and nothing else.

    from rlhf_lab import explore
    explore.clipped_surrogate()

as the last line of a cell shows the figure at its defaults, as a picture with its text alternative, and below it the
same figure with sliders. Without a running kernel the picture stays. A move of a slider moves the figure's artists,
redraws them on an Agg canvas and puts the PNG in an image widget; under it a sentence says what is to be seen, for a
screen reader too. Sliders take the arrow keys. Works with ipywidgets 7.7 and 8.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from rlhf_lab import chat, figures
from rlhf_lab.exact import optimal_policy
from rlhf_lab.figures.live import LiveFigure, quick_png
from rlhf_lab.profiles import DATA_DIR
from rlhf_lab.tabular import World, dpo_optimum

TRAJECTORY = DATA_DIR / "trajectory.json"


class Sliders(widgets.VBox):
    """A box of sliders whose text, on a page that runs nothing, says what to do."""

    def __repr__(self) -> str:
        return "Run this notebook to move the sliders."


class Explorer:
    """A static figure, then sliders with the live one.

    Args:
        draw: takes the numbers by name and returns a LiveFigure.
        controls: the widget of each number that moves.
    """

    def __init__(self, draw: Callable[..., LiveFigure], controls: Mapping[str, widgets.Widget]) -> None:
        self.controls = dict(controls)
        self._draw, self._defaults = draw, self.numbers
        self.figure = draw(**self._defaults)
        self.image = widgets.Image(format="png", width=self.figure.css_width, layout=widgets.Layout(max_width="100%"))
        self.sentence = widgets.HTML()
        self._show()
        for control in self.controls.values():
            control.observe(self._moved, names="value")
        self.box = Sliders([*self.controls.values(), self.image, self.sentence])

    @property
    def numbers(self) -> dict[str, Any]:
        """What the controls stand at, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def static(self) -> LiveFigure:
        """The figure at the defaults, whatever the sliders stand at."""
        return self._draw(**self._defaults)

    def _ipython_display_(self) -> None:
        static = self.static()
        display(static)
        # JupyterLab 4.6 drops the alt text of a PNG, so it stands beside it too.
        words = figures.alt_text(static)
        folded = f"<details><summary>The figure in words</summary>{html.escape(words)}</details>"
        display({"text/html": folded, "text/plain": words}, raw=True)
        display(self.box)

    def _moved(self, change) -> None:
        self.figure.move(**self.numbers)
        self._show()

    def _show(self) -> None:
        self.image.value = quick_png(self.figure)
        says = html.escape(self.figure.says)
        self.sentence.value = f'<p role="status" aria-live="polite" aria-atomic="true">{says}</p>'


def bradley_terry_curve() -> Explorer:
    """P(a preferred) for a reward gap and an annotator's temperature."""
    controls = {
        "gap": _slider("reward gap", 1.0, -6, 6, 0.1, "r_a - r_b, in units of reward", "+.1f"),
        "temperature": _slider("temperature", 0.5, 0.1, 5, 0.1, "How noisy the annotator is; 1 is Bradley-Terry's own"),
    }
    return Explorer(figures.bradley_terry_curve, controls)


def elo_curves() -> Explorer:
    """Elo against the article's arithmetic."""
    controls = {
        "rating_a": _whole("rating of a", 2000, 1000, 2600, 50, "Elo points"),
        "rating_b": _whole("rating of b", 1600, 1000, 2600, 50, "Elo points"),
        "shift": _whole("added to both", 0, 0, 400, 50, "Elo points; only differences should count"),
    }
    return Explorer(figures.elo_curves, controls)


def fitted_rewards() -> Explorer:
    """Rewards fitted to n noisy comparisons, with their intervals."""
    counts = (10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000)
    controls = {
        "n": _choice("comparisons n", 200, counts, "How many pairs the annotator has compared"),
        "temperature": _slider("temperature", 1.0, 0.5, 3, 0.1, "How noisy the annotator is"),
        "seed": _whole("seed", 0, 0, 20, 1, "Another seed: other pairs, other noise"),
    }
    return Explorer(figures.fitted_rewards, controls)


def clipped_surrogate() -> Explorer:
    """PPO's clip for both signs of the advantage, with the gradient under it."""
    controls = {
        "ratio": _slider("ratio", 1.5, 0.05, 2, 0.05, "New over old probability of the token", ".2f"),
        "clip_range": _slider("clip range ε", 0.2, 0.05, 0.5, 0.05, "The ratio is clipped to 1 - ε .. 1 + ε", ".2f"),
    }
    return Explorer(figures.clipped_surrogate, controls)


def ratio_drift() -> Explorer:
    """How far the ratio goes in many steps on one rollout, without the clip and with it."""
    rates = (0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5)
    controls = {
        "learning_rate": _choice("learning rate", 0.25, rates, "Of plain gradient descent on four logits"),
        "clip_range": _slider("clip range ε", 0.2, 0.05, 0.5, 0.05, "The ratio is clipped to 1 - ε .. 1 + ε", ".2f"),
    }
    return Explorer(figures.ratio_drift, controls)


def gae_bars(trajectory: Mapping[str, Any] | None = None) -> Explorer:
    """GAE over lambda and gamma, on a reply that the tiny Llama gave in PPO.

    Args:
        trajectory: "tokens", "rewards", "values", each (T,); by default data/trajectory.json.
    """
    recorded = recorded_trajectory() if trajectory is None else trajectory
    data = [recorded[name] for name in ("tokens", "rewards", "values")]
    controls = {
        "lam": _slider("λ", 0.95, 0, 1, 0.05, "0: the one-step TD error; 1: the return minus the value", ".2f"),
        "gamma": _slider("γ", 1.0, 0.8, 1, 0.01, "Discount a token; RLHF uses 1", ".2f"),
    }
    return Explorer(lambda **numbers: figures.gae_bars(*data, **numbers, lowest_gamma=0.8), controls)


def kl_estimators() -> Explorer:
    """Bias and variance of k1, k2 and k3."""
    counts = (100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
    controls = {
        "shift": _slider("shift", 0.5, 0.1, 2, 0.05, "Distance of policy and reference, in standard deviations", ".2f"),
        "n": _choice("samples n", 1000, counts, "How many are drawn from the policy"),
        "seed": _whole("seed", 0, 0, 20, 1, "Another seed: other samples"),
    }
    return Explorer(figures.kl_estimators, controls)


def optimal_policy_bars() -> Explorer:
    """pi* over beta, with its reward and KL."""
    betas = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0)
    controls = {
        "beta": _choice("β", 0.5, betas, "Larger holds the policy closer to the reference"),
        "best_mass": _slider("reference of F", 0.05, 0, 0.5, 0.01, "Reference probability of the best reply", ".2f"),
    }
    return Explorer(figures.optimal_policy_bars, controls)


def dpo_curves() -> Explorer:
    """The DPO loss and the weight of its gradient over margin and beta."""
    betas = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    controls = {
        "margin": _slider("margin h", 0.0, -20, 20, 0.5, "Log-ratio of chosen minus that of rejected, nats", "+.1f"),
        "beta": _choice("β", 0.3, betas, "Larger holds the policy closer to the reference"),
    }
    return Explorer(figures.dpo_curves, controls)


def coverage_endpoints(sweep: Mapping[str, Any] | None = None) -> Explorer:
    """Where PPO and DPO end as fewer replies occur in pairs.

    Args:
        sweep: "coverages", "policies", "optimum", "support" and perhaps "ref_probs", as figures.coverage_endpoints
            takes them; by default `closed_form_sweep()`. `one_world` makes it of a sweep over several worlds.
    """
    sweep = closed_form_sweep() if sweep is None else sweep
    options = [(f"{coverage:.0%}", index) for index, coverage in enumerate(sweep["coverages"])]
    control = widgets.SelectionSlider(options=options, value=0, **_named("coverage", "Share of replies in some pair"))
    return Explorer(lambda index: figures.coverage_endpoints(**sweep, index=index), {"index": control})


class Fields(widgets.VBox):
    """A box of text fields whose text, on a page that runs nothing, says what to do."""

    def __repr__(self) -> str:
        return "Run this notebook to write another chat."


class ChatTemplate:
    """A chat of two turns to write, and how a template lays it out, token by token, with what the loss covers.

    Shown as the sliders are: the chat at its defaults, then the fields. A second turn left empty is none.

    Args:
        tokenizer: of the model, with its own chat template; Llama 2's and a plain one can be chosen instead.
    """

    TURNS = (
        ("user", "user 1", "Hey, my kettle stopped working. Cheers!"),
        ("assistant", "reply 1", "Hi there! I will send you a new kettle today."),
        ("user", "user 2", "Thanks! And the old one?"),
        ("assistant", "reply 2", "Keep it for parts. All the best."),
    )

    def __init__(self, tokenizer) -> None:
        self._tokenizers = {form: chat.template_tokenizer(tokenizer, form) for form in ("own", "llama-2", "plain")}
        forms = [("this model's own", "own"), ("Llama 2's", "llama-2"), ("plain text", "plain")]
        covers = [(name, key) for key, name in chat.LOSSES.items()]
        self.controls = {
            "form": widgets.Dropdown(options=forms, **_labelled("template")),
            "loss": widgets.Dropdown(options=covers, **_labelled("loss covers")),
            **{name: widgets.Textarea(value=text, rows=2, **_labelled(name)) for _, name, text in self.TURNS},
        }
        self.output = widgets.HTML()
        self._show()
        for control in self.controls.values():
            control.observe(self._show, names="value")
        self.box = Fields([*self.controls.values(), self.output])

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as written."""
        written = [{"role": role, "content": self.controls[name].value} for role, name, _ in self.TURNS]
        return written if any(message["content"].strip() for message in written[2:]) else written[:2]

    @property
    def tokens(self) -> list[chat.Token]:
        """The chat in the chosen template."""
        return chat.chat_tokens(
            self._tokenizers[self.controls["form"].value], self.messages, self.controls["loss"].value
        )

    def _ipython_display_(self) -> None:
        messages = [{"role": role, "content": text} for role, _, text in self.TURNS]
        static = chat.chat_tokens(self._tokenizers["own"], messages)
        display({"text/html": chat.chat_html(static), "text/plain": chat.chat_text(static)}, raw=True)
        display(self.box)

    def _show(self, change=None) -> None:
        self.output.value = chat.chat_html(self.tokens)


def chat_template(tokenizer) -> ChatTemplate:
    """A chat to write, its template token by token, and what the loss covers."""
    return ChatTemplate(tokenizer)


EXPLORERS = {
    explorer.__name__: explorer
    for explorer in (
        bradley_terry_curve,
        elo_curves,
        fitted_rewards,
        clipped_surrogate,
        ratio_drift,
        gae_bars,
        kl_estimators,
        optimal_policy_bars,
        dpo_curves,
        coverage_endpoints,
    )
}


def recorded_trajectory(path: Path = TRAJECTORY) -> dict[str, Any]:
    """A reply of the tiny Llama in PPO, by bench/record_trajectory.py: tokens, rewards, values, each (T,), and more."""
    return json.loads(path.read_text(encoding="utf-8"))


def closed_form_sweep(beta: float = 0.5) -> dict[str, Any]:
    """Ends of exact PPO and DPO on eight replies, from coverage 25 % to 100 %.

    PPO, on the true reward, ends in pi* whatever the pairs; DPO, by gradient descent from the reference, in
    tabular.dpo_optimum.
    """
    ref_probs = np.array([0.22, 0.18, 0.16, 0.14, 0.12, 0.08, 0.06, 0.04])
    rewards = np.array([0.0, 0.6, -0.8, 1.0, -0.4, 1.6, 0.3, -1.2])
    first_covered = np.array([5, 3, 1, 6, 0, 4, 2, 7])  # the order in which replies come to occur in pairs
    optimum = optimal_policy(ref_probs, rewards, beta)
    sizes = np.arange(2, len(rewards) + 1)
    support = np.array([np.isin(np.arange(len(rewards)), first_covered[:size]) for size in sizes])
    world = World(ref_probs, rewards)
    dpo = np.array([dpo_optimum(world, beta, covered) for covered in support])
    return {
        "coverages": sizes / len(rewards),
        "policies": {"ppo": np.tile(optimum, (len(sizes), 1)), "dpo": dpo},
        "optimum": optimum,
        "support": support,
        "ref_probs": ref_probs,
    }


def one_world(sweep: Any, seed: int = 0) -> dict[str, Any]:
    """What coverage_endpoints takes, for one world of a sweep over several.

    Args:
        sweep: has coverages (n,), policies name -> (n, seeds, replies), optimum (seeds, replies), covered
            (n, seeds, replies) and world.ref_probs (seeds, replies).
        seed: which world.
    """
    return {
        "coverages": sweep.coverages,
        "policies": {name: np.asarray(probs)[:, seed] for name, probs in sweep.policies.items()},
        "optimum": sweep.optimum[seed],
        "support": sweep.covered[:, seed],
        "ref_probs": sweep.world.ref_probs[seed],
    }


def _named(description: str, tooltip: str) -> dict[str, Any]:
    """Keywords that every control gets. ipywidgets 7 calls the tooltip of a slider description_tooltip."""
    name = "tooltip" if "tooltip" in widgets.FloatSlider.class_trait_names() else "description_tooltip"
    return {
        "description": description,
        name: tooltip,
        # Redrawing takes less time than a hand needs, and a page sends the next value only once the last is drawn.
        "continuous_update": True,
        "style": {"description_width": "8em"},
        "layout": widgets.Layout(width="32em", max_width="100%"),
    }


def _labelled(description: str) -> dict[str, Any]:
    """Keywords of a field and of a list to choose from."""
    layout = widgets.Layout(width="44em", max_width="100%")
    return {"description": description, "style": {"description_width": "8em"}, "layout": layout}


def _slider(description: str, value: float, low: float, high: float, step: float, tooltip: str, readout: str = ".1f"):
    named = _named(description, tooltip)
    return widgets.FloatSlider(value=value, min=low, max=high, step=step, readout_format=readout, **named)


def _whole(description: str, value: int, low: int, high: int, step: int, tooltip: str):
    return widgets.IntSlider(value=value, min=low, max=high, step=step, **_named(description, tooltip))


def _choice(description: str, value: float, options: tuple, tooltip: str):
    """A slider over values that are not evenly spaced."""
    return widgets.SelectionSlider(
        options=[(f"{option:,g}" if option < 1e4 else f"{option:,}", option) for option in options],
        value=value,
        **_named(description, tooltip),
    )
