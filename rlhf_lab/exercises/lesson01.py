"""Exercises of lesson 01: what imitation finds, what a label says, and how far labels can be trusted."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np

from rlhf_lab.evaluate import preference_outcomes
from rlhf_lab.exact import reward_of
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.preferences import cohen_kappa, rankings_to_pairs


def _imitators_gold(counts: Sequence[int], gold: Sequence[float]) -> float:
    counts = np.asarray(counts, dtype=float)
    return reward_of(counts / counts.sum(), gold)


def _softmax(x: Sequence[float]) -> np.ndarray:
    weights = np.exp(np.asarray(x, dtype=float) - np.max(x))
    return weights / weights.sum()


@function_exercise(
    lesson=1,
    title="What imitation finds",
    difficulty=2,
    importance=4,
    minutes=6,
    rows=(1,),
    maths="cross-entropy is lowest at pi(y) = count(y) / N, so E_pi[gold] = sum over y of count(y) / N * gold(y)",
    reference=_imitators_gold,
    cases=lambda: [
        ([1, 3], [2.0, -1.0]),
        ([4, 3, 3], [2.0, 0.5, -1.0]),
        ([10, 0, 30, 2], [3.0, 9.0, 1.0, -1.5]),
    ],
    hints=(
        "Which probabilities make the demonstrations most likely? Does gold occur in that question?",
        "pi(y) is the share of demonstrations that are y. Then take the expectation of gold under pi.",
    ),
    mistakes=(
        Mistake(
            "the best reply",
            "Imitation never sees gold, so it cannot find the maximum. It copies shares: pi(y) = count(y) / N.",
            lambda counts, gold: max(gold),
        ),
        Mistake(
            "the commonest reply",
            "The likeliest model is not a copy of the mode: it gives every reply its share, pi(y) = count(y) / N.",
            lambda counts, gold: gold[int(np.argmax(counts))],
        ),
        Mistake(
            "all replies alike",
            "A reply shown three times as often is three times as likely. Weigh by count(y) / N, not by 1 / K.",
            lambda counts, gold: float(np.mean(gold)),
        ),
        Mistake(
            "counts not divided by N",
            "Probabilities sum to 1: divide the counts by their sum N.",
            lambda counts, gold: float(np.dot(counts, gold)),
        ),
        Mistake(
            "shares weighted by gold",
            "That is what preference learning does, later: pi(y) proportional to count(y) exp(gold(y)). SFT's loss has "
            "no gold in it.",
            lambda counts, gold: float(np.dot(_softmax(np.log(np.maximum(counts, 1e-300)) + np.array(gold)), gold)),
        ),
    ),
)
def imitators_gold(counts, gold):
    """Mean gold reward of a model that imitates its demonstrations perfectly.

    counts[y]: how many demonstrations are reply y. gold[y]: the gold reward of reply y, which SFT never sees.
    The model is the one with the lowest cross-entropy on these demonstrations. Returns one number.
    """
    ...


_LABEL = {
    "which": "this annotator preferred this reply to that one, this time",
    "why": "the reason for which the chosen reply is better",
    "how much": "by how much the chosen reply is better",
    "true": "what the chosen reply says is true",
    "good": "the chosen reply is a good one",
}

what_a_label_says = value_exercise(
    name="what_a_label_says",
    question="An annotator marks one of two replies as chosen and writes no comment. What does this one label say?",
    lesson=1,
    title="What a label says",
    difficulty=1,
    importance=4,
    minutes=2,
    rows=(3, 7, 34),
    errata=("E3", "E14"),
    maths="a label is one draw from P(y1 preferred to y2 | x); all else is inferred from many of them",
    reference=lambda: "which",
    options=_LABEL,
    hints=(
        "Write down the row of the data set: prompt, chosen, rejected. What else is in it?",
        "Could two annotators give the same label for opposite reasons?",
    ),
    mistakes=(
        Mistake(
            "a label that explains",
            "The article says annotators teach which and why. A label only says which: reasons would need "
            "text, as a critique has, and a reward model has to guess them from many labels.",
            "why",
        ),
        Mistake(
            "a label that measures",
            "One label has no size. A gap shows only in how often the label comes out the same: P = sigmoid(r1 - r2).",
            "how much",
        ),
        Mistake(
            "preferred taken for true",
            "In the article's own pair the chosen reply repeats a misconception (a quantum computer tries all answers "
            "at once) and is longer by half (63 words against 40). Preferred is not the same as true.",
            "true",
        ),
        Mistake(
            "a comparison taken for a grade",
            "Both replies may be bad. Only the difference r1 - r2 enters; the level never does.",
            "good",
        ),
    ),
)


def _sorted_pairs(pairs: Any) -> list[tuple]:
    if isinstance(pairs, (str, dict)) or not hasattr(pairs, "__len__"):
        raise TypeError(f"expected a list of (winner, loser) pairs, got {type(pairs).__name__}")
    if any(isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2 for pair in pairs):
        raise TypeError("expected a list of (winner, loser) pairs, each of two items")
    return sorted(tuple(str(item) for item in pair) for pair in pairs)


@function_exercise(
    lesson=1,
    title="Pairs from a ranking",
    difficulty=1,
    importance=3,
    minutes=5,
    rows=(7,),
    errata=("E3",),
    maths="K replies, best first, give a pair (i, j) for every i < j: K (K - 1) / 2 of them",
    reference=rankings_to_pairs,
    canonical=_sorted_pairs,
    cases=lambda: [(["a", "b"],), (["c", "a", "b"],), (["d", "b", "a", "c"],), ([7, 3, 9, 1, 4],)],
    hints=(
        "The first of the ranking beats how many others? And the second?",
        "Two loops, the inner one from i + 1; or itertools.combinations, which keeps the order.",
    ),
    mistakes=(
        Mistake(
            "neighbours only",
            "The first also beats the third. Every i < j is a pair: K (K - 1) / 2 of them, not K - 1.",
            lambda ranking: list(pairwise(ranking)),
        ),
        Mistake(
            "the loser first",
            "A pair is (winner, loser), and the ranking has its best first. So (i, j) with i before j.",
            lambda ranking: [(b, a) for a, b in combinations(ranking, 2)],
        ),
        Mistake(
            "both orders",
            "(a, b) says that a beat b. With (b, a) beside it the reward model is told the opposite, and learns "
            "nothing: 2 * (K (K - 1) / 2) pairs that cancel.",
            lambda ranking: list(permutations(ranking, 2)),
        ),
        Mistake(
            "the best against the rest only",
            "The second beats the third too. Every i < j is a pair, whichever i.",
            lambda ranking: [(ranking[0], other) for other in ranking[1:]],
        ),
        Mistake(
            "a reply against itself",
            "No reply beats itself: i < j, not i <= j.",
            lambda ranking: [(a, b) for i, a in enumerate(ranking) for b in ranking[i:]],
        ),
    ),
)
def pairs_from_ranking(ranking):
    """All (winner, loser) pairs that a ranking holds, best reply first: a list of tuples, in any order.

    InstructGPT lets an annotator rank K replies and trains on all pairs of one prompt together.
    """
    ...


def _longer_reply_wins(chosen_lengths: Sequence[int], rejected_lengths: Sequence[int]) -> float:
    return float(preference_outcomes(chosen_lengths, rejected_lengths).mean())


def _counting_ties(chosen: Sequence[int], rejected: Sequence[int], tie: float) -> float:
    return float(np.mean([1.0 if c > r else tie if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)]))


@function_exercise(
    lesson=1,
    title="The baseline that reads nothing",
    difficulty=1,
    importance=4,
    minutes=5,
    rows=(34, 53),
    errata=("E14",),
    maths="accuracy = mean over pairs of 1 if chosen is longer, 1/2 if equally long, 0 otherwise",
    reference=_longer_reply_wins,
    cases=lambda: [
        ([40, 10, 30], [20, 20, 10]),
        ([12, 16, 30, 7], [12, 14, 11, 7]),
        ([5, 5, 5, 5, 60], [5, 5, 5, 9, 5]),
    ],
    hints=(
        "Compare the two lists pair by pair. What would a coin score on a tie?",
        "A tie counts one half: (longer + 0.5 * equal) / n.",
    ),
    mistakes=(
        Mistake(
            "ties lost",
            "The judge has no opinion on a tie and tosses a coin: 1/2, not 0.",
            lambda chosen, rejected: _counting_ties(chosen, rejected, 0.0),
        ),
        Mistake(
            "ties won",
            "The judge has no opinion on a tie and tosses a coin: 1/2, not 1. With >= a judge that says 'equal' to "
            "everything would be perfect.",
            lambda chosen, rejected: _counting_ties(chosen, rejected, 1.0),
        ),
        Mistake(
            "ties left out",
            "Left out, ties change the number of pairs n, and two judges are no longer compared on the same pairs. "
            "Count them 1/2.",
            lambda chosen, rejected: (
                sum(c > r for c, r in zip(chosen, rejected, strict=True))
                / max(1, sum(c != r for c, r in zip(chosen, rejected, strict=True)))
            ),
        ),
        Mistake(
            "the shorter reply wins",
            "The judge picks the longer reply: 1 where len(chosen) > len(rejected).",
            lambda chosen, rejected: 1 - _counting_ties(chosen, rejected, 0.5),
        ),
        Mistake(
            "share of words in place of share of pairs",
            "Accuracy counts pairs, 1 or 0 each; how much longer a reply is does not matter.",
            lambda chosen, rejected: float(sum(chosen) / (sum(chosen) + sum(rejected))),
        ),
    ),
)
def longer_reply_wins(chosen_lengths, rejected_lengths):
    """Accuracy of a judge that always picks the longer reply, ties counted one half: a number from 0 to 1.

    chosen_lengths, rejected_lengths: lists of words in each reply, one entry a pair. Any reward model has to beat this.
    """
    ...


def _by_chance(a: Sequence, b: Sequence) -> float:
    return float(sum(np.mean([x == k for x in a]) * np.mean([y == k for y in b]) for k in {*a, *b}))


def _share(a: Sequence, b: Sequence) -> float:
    return float(np.mean([x == y for x, y in zip(a, b, strict=True)]))


def _pooled_chance(a: Sequence, b: Sequence) -> float:
    both = [*a, *b]
    return float(sum(np.mean([x == k for x in both]) ** 2 for k in set(both)))


@function_exercise(
    lesson=1,
    title="Agreement beyond chance",
    difficulty=2,
    importance=4,
    minutes=10,
    rows=(2, 7),
    maths="kappa = (p_o - p_e) / (1 - p_e),  p_e = sum over labels k of P(rater a says k) * P(rater b says k)",
    reference=cohen_kappa,
    cases=lambda: [
        (["l", "l", "r", "r"], ["l", "r", "r", "r"]),
        ([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]),
        (list("lllrrrtt"), list("llrrtrtl")),
        ([1] * 9 + [0], [1] * 8 + [0, 1]),
    ],
    hints=(
        "p_o is the share of equal labels. What share would two raters reach who toss coins with their own habits?",
        "For each label k: the share of k in a, times the share of k in b. p_e is the sum of these products.",
        "Then (p_o - p_e) / (1 - p_e): the part of the possible gain over chance that was reached.",
    ),
    mistakes=(
        Mistake(
            "raw agreement",
            "That is p_o. Two raters who both say 'left' nine times in ten agree 82 % of the time by chance; subtract "
            "p_e and divide by 1 - p_e.",
            _share,
        ),
        Mistake(
            "no division by 1 - p_e",
            "p_o - p_e cannot reach 1. Divide by what was left to gain, 1 - p_e.",
            lambda a, b: _share(a, b) - _by_chance(a, b),
        ),
        Mistake(
            "chance as if all labels were equally likely",
            "p_e uses how often each rater really says each label, not 1 / K.",
            lambda a, b: (_share(a, b) - 1 / len({*a, *b})) / (1 - 1 / len({*a, *b})),
        ),
        Mistake(
            "both raters pooled",
            "With the two raters' labels in one heap, p_e = sum of squares, this is Scott's pi. Cohen's kappa keeps "
            "each rater's own habits: P(a says k) * P(b says k).",
            lambda a, b: (_share(a, b) - _pooled_chance(a, b)) / (1 - _pooled_chance(a, b)),
        ),
        Mistake(
            "divided by p_e",
            "The denominator is 1 - p_e, the most that could be gained over chance.",
            lambda a, b: (_share(a, b) - _by_chance(a, b)) / _by_chance(a, b),
        ),
    ),
)
def kappa(a, b):
    """Cohen's kappa of two raters: a and b are equally long lists of labels. 1 is perfect, 0 is chance. One number."""
    ...
