"""The report in plain sentences: for a notebook's output and for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_lab.annotate.agreement import Agreement, Report


FEW = 10  # decided pairs below which nothing is concluded


def told(report: Report) -> str:
    """The report, a sentence or two a line."""
    return "\n".join(sentences(report))


def sentences(report: Report) -> list[str]:
    """What the labels say, numbers and all."""
    if not report.answers:
        return ["No labels yet."]
    lines = []
    if report.simulated:
        lines.append(
            "No labels of yours yet, so a simulated annotator speaks here. Answer some pairs above, and run this again."
        )
    n, decided = len(report.answers), len(report.answers) - report.ties
    lines.append(f"{report.who}: {n} pairs answered, {decided} decided, {report.ties} tied.")
    lines += caution(report)
    lines += [f"Agreement with {name}: {_agreement(found)}" for name, found in report.against.items()]
    for name, found in report.peers.items():
        lines.append(
            f"For comparison, simulated ({name}) with gold: kappa {found.kappa}, {found.share.value:.0%} of the pairs "
            f"alike; {report.expected[name]:.0%} on average over its noise."
        )
    lines += habits(report)
    for question, by_kind in report.kinds.items():
        counts = report.counts[question]
        shares = ", ".join(f"{kind} {share} of {counts[kind]}" for kind, share in by_kind.items())
        lines.append(f"Agreeing with gold, by {question}: {shares}.")
    return [*lines, report.note] if report.note else lines


def caution(report: Report) -> list[str]:
    """A warning where too few pairs are decided to read anything into the numbers."""
    decided = len(report.answers) - report.ties
    if decided >= FEW:
        return []
    return [f"With {decided} decided pairs the intervals are wide: read nothing into the numbers yet."]


def _agreement(found: Agreement) -> str:
    raw = f"{found.share.value:.0%} of {found.n} pairs alike [{found.share.low:.0%}, {found.share.high:.0%}]"
    if found.decided == found.n:
        return f"kappa {found.kappa or 'undefined'}; {raw}."
    return (
        f"kappa {found.kappa or 'undefined'} over the {found.decided} pairs that both decided "
        f"({found.kappa_with_ties:.2f} with tie as a third answer); {raw}, a tie counting half."
    )


def habits(report: Report) -> list[str]:
    """How often the left and the longer reply were chosen, beside how often gold chooses them."""
    names = {"left": "The left reply was chosen in", "longer": "The longer reply was chosen in"}
    lines = []
    for name, share in report.habits.items():
        beside = f"; gold chooses it in {report.gold_habits[name]:.0%}" if name in report.gold_habits else ""
        lines.append(
            f"{names[name]} {share.value:.0%} of the decided pairs [{share.low:.0%}, {share.high:.0%}]{beside}."
        )
    return lines
