"""Lesson 04's moving figures: pi* over beta, the DPO loss, and where PPO and DPO end as coverage falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_lab.exact import frontier, kl, optimal_policy, reward_of, total_variation
from rlhf_lab.figures.base import FAINT, INK, LOOKS, Look, legend_above, styled
from rlhf_lab.figures.live import (
    BLUE,
    GREEN,
    MARK,
    VERMILLION,
    LiveFigure,
    bars,
    curve,
    note_above,
    panels,
    set_heights,
)

BETAS = np.geomspace(0.05, 20, 60)
MARGINS = np.linspace(-20, 20, 401)
# How each way to train is drawn: bars left, lines right.
METHODS = {
    "ppo": (LOOKS["ppo"], "--"),
    "dpo": (LOOKS["dpo"], "-"),
    "ppo_learned_reward": (Look("PPO, learned reward", BLUE, "s", "xx"), "-."),
}
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@styled
def optimal_policy_bars(
    beta: float = 0.5,
    best_mass: float = 0.05,
    *,
    rewards: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
    ref_probs: Sequence[float] = (0.25, 0.25, 0.2, 0.15, 0.1, 0.05),
) -> LiveFigure:
    """The optimum of E[r] - beta KL(pi || ref) beside the reference; and where it lies on the reward-KL frontier.

    Larger beta holds pi* closer to the reference. `best_mass` is the reference's probability of the reply of highest
    reward, the others sharing the rest in proportion: at 0, no beta brings that reply back.

    Args:
        rewards, ref_probs: (replies,).
    """
    rewards, ref_probs = np.asarray(rewards, dtype=float), np.asarray(ref_probs, dtype=float)
    best, at = int(rewards.argmax()), np.arange(len(rewards))
    others = np.where(at == best, 0.0, ref_probs) / (1 - ref_probs[best])
    figure, (left, right) = panels(7.8, 3.9, 1, 2, width_ratios=(1.2, 1))
    reference = bars(left, at - 0.2, ref_probs, 0.4, color=FAINT, label="reference")
    optimum = bars(left, at + 0.2, ref_probs, 0.4, color=BLUE, hatch="//", label="π* at this β")
    left.set_ylim(0, 1.02)
    left.set_xticks(at, [f"{name}\n{reward:g}" for name, reward in zip(NAMES, rewards, strict=False)])
    left.grid(axis="x", visible=False)
    left.set_xlabel("reply, and its reward (reward units)")
    left.set_ylabel("probability")
    left.legend(loc="upper left")
    line = curve(right, color=INK, linewidth=2, label="frontier: π* for every β")
    start = curve(right, color=FAINT, label="reference", **(MARK | {"marker": "s"}))
    point = curve(right, color=BLUE, label="π* at this β", **MARK)
    right.set_xlim(-0.15, 4.8)
    right.set_ylim(rewards.min() - 0.1, rewards.max() + 0.15)
    right.set_xlabel("KL(π* || reference) (nats)")
    right.set_ylabel("expected reward (reward units)")
    right.legend(loc="lower right")

    def update(beta: float, best_mass: float) -> str:
        ref = others * (1 - best_mass)
        ref[best] = best_mass
        policy = optimal_policy(ref, rewards, beta)
        set_heights(reference, ref)
        set_heights(optimum, policy)
        known = frontier(ref, rewards, BETAS)
        line.set_data(known.kl, known.reward)
        start.set_data([0], [reward_of(ref, rewards)])
        divergence, reward = kl(policy, ref), reward_of(policy, rewards)
        point.set_data([divergence], [reward])
        return (
            f"β = {beta:g}: reward {reward:.2f} at a KL of {divergence:.2f} nats, from {reward_of(ref, rewards):.2f} "
            f"at the reference; reply {NAMES[best]}, the best, goes from {best_mass:.2f} to {policy[best]:.2f}."
        )

    about = "Left: probabilities of each reply under the reference and under pi*. Right: the reward-KL frontier."
    return figure.start(about, update, beta=beta, best_mass=best_mass)


@styled
def dpo_curves(margin: float = 0.0, beta: float = 0.3) -> LiveFigure:
    """The DPO loss of one pair over h, the difference of its log-ratios; and the weight beta sigmoid(-beta h).

    h = log(pi(chosen) / ref(chosen)) - log(pi(rejected) / ref(rejected)). The weight is -d loss / d h, the factor on
    grad log pi(chosen) - grad log pi(rejected). Larger beta holds the policy closer to the reference: the weight is
    gone at a smaller h. The dotted line is where IPO's loss, with tau = beta, has its minimum.
    """
    figure, (left, right) = panels(7.6, 3.8, 1, 2)
    losses, weights = [], []
    for axes, store, usual in zip((left, right), (losses, weights), _dpo(MARGINS, 0.1), strict=True):
        axes.plot(MARGINS, usual, color=FAINT, linestyle="--", label="β = 0.1")
        store.append(curve(axes, MARGINS, MARGINS, color=BLUE, linewidth=2.2, label="this β"))
        store.append(curve(axes, color=GREEN, linestyle=":", linewidth=2, label="IPO's target, 1 / (2β)"))
        store.append(curve(axes, color=VERMILLION, label="this h", **MARK))
        axes.set_xlim(-20.6, 20.6)
        axes.set_xlabel("h = log-ratio of chosen - of rejected (nats)")
    legend_above(figure, left)
    told = [note_above(axes) for axes in (left, right)]
    left.set_ylim(0, 4)
    left.set_ylabel("loss -log σ(β h) (nats)")
    right.set_ylim(0, 0.52)
    right.set_ylabel("gradient weight β σ(-β h)")

    def update(margin: float, beta: float) -> str:
        loss, weight = _dpo(np.append(MARGINS, margin), beta)
        for (line, target, point), y in ((losses, loss), (weights, weight)):
            line.set_ydata(y[:-1])
            target.set_data([1 / (2 * beta)] * 2, [0, 10])
            point.set_data([margin], [y[-1]])
        told[0].set_text(f"loss {loss[-1]:.3f}")
        told[1].set_text(f"weight {weight[-1]:.3f}")
        return f"h = {margin:+.1f} nats, β = {beta:g}: loss {loss[-1]:.3f}, gradient weight {weight[-1]:.3f}."

    about = "The DPO loss and the weight of its gradient over the margin h between the log-ratios of a pair."
    return figure.start(about, update, margin=margin, beta=beta)


@styled
def coverage_endpoints(
    coverages: Sequence[float],
    policies: Mapping[str, Sequence[Sequence[float]]],
    optimum: Sequence[float],
    support: Sequence[Sequence[bool]],
    index: int = -1,
    *,
    ref_probs: Sequence[float] | None = None,
) -> LiveFigure:
    """Where training ends when only some replies occur in pairs: policies beside pi*, and their distance over coverage.

    Args:
        coverages: (n,), the share of replies that occur in a pair, ascending or descending.
        policies: "ppo", "dpo" and perhaps "ppo_learned_reward", each (n, replies): the policy that training ends in at
            each coverage.
        optimum: pi*, (replies,).
        support: (n, replies), True where a reply occurs in a pair.
        index: which of the coverages to show; -1 is the last.
        ref_probs: the reference, (replies,), drawn as ticks if given.
    """
    coverages, optimum, support = (
        np.asarray(coverages, dtype=float),
        np.asarray(optimum),
        np.asarray(support, dtype=bool),
    )
    policies = {name: np.asarray(probs, dtype=float) for name, probs in policies.items()}
    at, width = np.arange(len(optimum)), 0.8 / (1 + len(policies))
    figure, (left, right) = panels(8.4, 4.2, 1, 2, width_ratios=(1.55, 1))
    left.bar(at - 0.4 + width / 2, optimum, width, color=FAINT, label="π*")
    drawn = {}
    for place, (name, probs) in enumerate(policies.items(), start=1):
        style, _ = METHODS[name]
        where, shown = at - 0.4 + (place + 0.5) * width, {"color": style.colour, "hatch": style.hatch}
        drawn[name] = bars(left, where, probs[0], width, label=style.label, **shown)
    if ref_probs is not None:
        dashes = {"linestyle": "none", "marker": "_", "markersize": 176 / len(at), "zorder": 5}
        curve(left, at, ref_probs, color=INK, label="reference", **dashes)
    top = 1.05 * max(np.max(probs) for probs in (optimum, *policies.values(), [0] if ref_probs is None else ref_probs))
    left.set_ylim(0, top)
    left.set_xlim(-0.6, len(at) - 0.4)
    left.set_xticks(at, list(NAMES[: len(at)]))
    left.grid(axis="x", visible=False)
    left.set_xlabel("reply (× : occurs in no pair)")
    left.set_ylabel("probability")
    legend_above(figure, left)
    absent = curve(left, color=INK, linestyle="none", marker="x", markersize=8, markeredgewidth=2)
    distances = {name: total_variation(probs, optimum) for name, probs in policies.items()}
    points = {}
    for name, distance in distances.items():
        style, dashes = METHODS[name]
        right.plot(
            100 * coverages, distance, color=style.colour, linestyle=dashes, linewidth=2, label=style.label
        )  # fmt: skip
        points[name] = curve(right, color=style.colour, **(MARK | {"marker": style.marker}))
    right.set_xlim(min(100 * coverages.min(), 0), 103)
    room = 1.1 + 0.12 * len(distances)  # for the legend
    right.set_ylim(-0.03, room * max(0.2, *(distance.max() for distance in distances.values())))
    right.set_xlabel("coverage: replies that occur in a pair (%)")
    right.set_ylabel("total variation from π*")
    right.legend(loc="upper right", fontsize=9)

    def update(index: int) -> str:
        absent.set_data(at[~support[index]], np.full((~support[index]).sum(), 0.03 * top))
        for name, probs in policies.items():
            set_heights(drawn[name], probs[index])
            points[name].set_data([100 * coverages[index]], [distances[name][index]])
        far = ", ".join(f"{METHODS[name][0].label} {distance[index]:.3f}" for name, distance in distances.items())
        missing = int((~support[index]).sum())
        occur = f"{missing} of {len(at)} replies occur{'s' if missing == 1 else ''} in no pair"
        occur = occur if missing else f"All {len(at)} replies occur in pairs"
        return f"{occur} (coverage {coverages[index]:.0%}). Total variation from π*: {far}."

    about = "The policies that training ends in beside pi* for each reply, and their distance from pi* over coverage."
    return figure.start(about, update, index=index)


def _dpo(margins: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """(loss, -d loss / d h) of one pair at each margin h, by the loss that trains."""
    import torch

    from rlhf_lab.losses import dpo_loss

    h = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros_like(h)
    loss = dpo_loss(h, nothing, nothing, nothing, beta, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    return loss.detach().numpy(), -gradient.numpy()
