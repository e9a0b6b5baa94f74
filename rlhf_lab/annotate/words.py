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
    """What the labels say, numbers and all; the kinds of pair are in the figure, and the least alike are named here."""
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
    if report.ties:
        lines.append("Kappa is over the pairs that both decided. In the share that is alike, a tie counts half.")
    lines += [f"With {name}: {_agreement(found)}" for name, found in report.against.items()]
    if report.peers:
        peers = ", ".join(f"{name} {found.kappa or 'undefined'}" for name, found in report.peers.items())
        lines.append(f"Simulated annotators with gold, on the same pairs, for comparison: kappa {peers}.")
        expected = ", ".join(f"{name} {share:.0%}" for name, share in report.expected.items())
        lines.append(f"Pairs on which each is alike with gold, on average over its noise: {expected}.")
    lines += habits(report)
    if report.kinds:
        least = ", ".join(_least(report, question) for question, by_kind in report.kinds.items() if by_kind)
        lines.append(f"Least alike with gold, of each kind: {least}.")
    return [*lines, report.note] if report.note else lines


def caution(report: Report) -> list[str]:
    """A warning where too few pairs are decided to read anything into the numbers."""
    decided = len(report.answers) - report.ties
    if decided >= FEW:
        return []
    return [f"With {decided} decided pairs the intervals are wide: read nothing into the numbers yet."]


def _least(report: Report, question: str) -> str:
    by_kind = report.kinds[question]
    kind = min(by_kind, key=lambda kind: by_kind[kind].value)
    return f"{question} {kind} ({by_kind[kind]} of {report.counts[question][kind]})"


def _agreement(found: Agreement) -> str:
    raw = f"{found.share.value:.0%} of {found.n} pairs alike [{found.share.low:.0%}, {found.share.high:.0%}]"
    if found.decided == found.n:
        return f"kappa {found.kappa or 'undefined'}; {raw}."
    kappa = f"kappa {found.kappa or 'undefined'} over {found.decided} pairs"
    return f"{kappa}, {found.kappa_with_ties:.2f} with tie as a third answer; {raw}."


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
