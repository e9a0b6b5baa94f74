"""The two figures of a report: how far one agrees with whom, and on which pairs with gold."""

from __future__ import annotations

from rlhf_lab.annotate.agreement import Report
from rlhf_lab.figures.base import ERROR_BARS, FAINT, INK, LabFigure, described, new_figure, spread, styled

MINE, OTHERS = "#0072B2", "#767676"  # Okabe and Ito's blue for the annotator, grey for the simulated ones


@styled
def kappas(report: Report) -> LabFigure:
    """Cohen's kappa with each rater, filled; below, hollow, that of the simulated annotators with gold."""
    rows = [(f"{_who(report)} – {name}", found, True) for name, found in report.against.items()]
    rows += [(f"simulated, {name} – gold", found, False) for name, found in report.peers.items()]
    rows = [(label, found.kappa, mine) for label, found, mine in rows if found.kappa]
    figure, axes = new_figure(7.0, 1.3 + 0.34 * max(1, len(rows)))
    for row, (_, kappa, mine) in enumerate(rows):
        colour = MINE if mine else OTHERS
        axes.errorbar(
            kappa.value, row, xerr=spread([kappa]), fmt="o" if mine else "s", color=colour, markersize=8,
            markerfacecolor=colour if mine else "white", **(ERROR_BARS | {"ecolor": INK if mine else OTHERS}),
        )  # fmt: skip
    axes.axvline(0, color=FAINT, linestyle="--", linewidth=1.2)
    axes.annotate(
        "chance", (0, 1), (4, -3), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        color=FAINT, va="top", fontsize=9,
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.9)
    axes.set_xlim(min([-0.35, *(kappa.low - 0.05 for _, kappa, _ in rows)]), 1.03)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Cohen's kappa (1 = always alike, 95 % interval)")
    axes.set_ylabel("who – with whom")
    told = "; ".join(f"{label}: {kappa}" for label, kappa, _ in rows)
    return described(figure, f"Cohen's kappa, 0 being chance and 1 full agreement: {told}.")


@styled
def kinds(report: Report) -> LabFigure:
    """The share of pairs that agrees with gold, by kind of pair, with Wilson intervals and the number of pairs."""
    rows: list[tuple[str, str, float]] = []  # question, kind, place on the y axis
    place = 0.0
    for question, by_kind in report.kinds.items():
        for kind in by_kind:
            rows.append((question, kind, place))
            place += 1
        place += 0.6
    figure, axes = new_figure(7.0, 1.2 + 0.3 * max(1.0, place))
    for question, kind, at in rows:
        share = report.kinds[question][kind]
        axes.errorbar(share.value, at, xerr=spread([share]), fmt="o", color=MINE, markersize=8, **ERROR_BARS)
    overall = report.against["gold"].share.value if "gold" in report.against else 0.5
    axes.axvline(overall, color=FAINT, linestyle="--", linewidth=1.2)
    axes.annotate(
        "all pairs", (overall, 1), (-4, -3), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        color=FAINT, va="top", ha="right", fontsize=9,
    )  # fmt: skip
    axes.set_yticks([at for *_, at in rows], [f"{q}: {k} ({report.counts[q][k]})" for q, k, _ in rows])
    axes.set_ylim(place - 0.9, -1.1)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share that agrees with gold (ties half, 95 % interval)")
    axes.set_ylabel("kind of pair (number of pairs)")
    told = "; ".join(f"{q} {k}: {report.kinds[q][k]} of {report.counts[q][k]}" for q, k, _ in rows)
    return described(figure, f"{report.who}: share of pairs that agrees with gold. {told}.")


def _who(report: Report) -> str:
    return "simulated, usual" if report.simulated else report.who.lower()
