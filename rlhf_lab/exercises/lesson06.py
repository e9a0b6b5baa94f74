"""Exercises of lesson 06: where the score is read, the loss of a ranking, accuracy, its ceiling, calibration."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lab import evaluate, preferences
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.exercises.inputs import normal, tensor


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# --- where the score is read --------------------------------------------------------------------------------------


def _last_token_index(input_ids: Tensor, pad_id: int) -> Tensor:
    places = torch.arange(input_ids.shape[1])
    return (places * (input_ids != pad_id)).argmax(dim=1)


def _token_rows() -> list[tuple]:
    return [
        (torch.tensor([[5, 6, 7]]), 0),
        (torch.tensor([[5, 6, 0]]), 0),
        (torch.tensor([[9, 9, 5, 6]]), 9),
        (torch.tensor([[5, 2, 6, 7, 2]]), 2),  # the padding token stands inside the text too
        (torch.tensor([[5, 6, 7, 1, 1, 1], [1, 1, 8, 5, 6, 4], [3, 4, 5, 6, 7, 8]]), 1),
    ]


@function_exercise(
    lesson=6,
    title="Where the score is read",
    difficulty=2,
    importance=5,
    minutes=8,
    rows=(38,),
    errata=("E23",),
    maths="the largest t with input_ids[t] != pad_id, wherever the padding stands",
    reference=_last_token_index,
    cases=_token_rows,
    hints=(
        "The padding may stand on the right, on the left, or nowhere. You want the rightmost token that is none.",
        "Multiply the places 0, 1, 2, ... by (input_ids != pad_id) and take the argmax of each row.",
    ),
    mistakes=(
        Mistake(
            "the token before the first padding",
            "That was transformers' rule until early 2025 (pull request 35911). It breaks with padding on the left, "
            "and where the padding token stands inside the text it reads the score there. Look for the last token "
            "that is no padding.",
            lambda input_ids, pad_id: (input_ids == pad_id).int().argmax(dim=1) - 1,
        ),
        Mistake(
            "the number of real tokens",
            "Count minus 1 is the last place only if all padding stands on the right.",
            lambda input_ids, pad_id: (input_ids != pad_id).sum(dim=1) - 1,
        ),
        Mistake(
            "the last column",
            "In a padded row the last column is padding: the score would be that of a token nobody wrote.",
            lambda input_ids, pad_id: torch.full((len(input_ids),), input_ids.shape[1] - 1),
        ),
        Mistake(
            "the first real token",
            "argmax of the mask alone finds its first 1. In a causal model the first token has seen nothing of the "
            "reply. Weigh the mask with the places.",
            lambda input_ids, pad_id: (input_ids != pad_id).int().argmax(dim=1),
        ),
        Mistake(
            "one too far",
            "Places count from 0: this one is past the last token.",
            lambda input_ids, pad_id: _last_token_index(input_ids, pad_id) + 1,
        ),
    ),
)
def last_token_index(input_ids, pad_id):
    """The place of the last token of each row that is not padding, counted from 0: tensor of integers (batch,).

    input_ids: (batch, seq). The padding may stand on the right, on the left, or nowhere. No row is all padding.
    """
    ...


# --- rankings -----------------------------------------------------------------------------------------------------


def _pair_losses(row: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    better, worse = (list(side) for side in zip(*pairs, strict=True))
    return -F.logsigmoid(row[better] - row[worse])


def _ranking_loss(rewards: Tensor, counts: Tensor) -> Tensor:
    by_prompt = [
        _pair_losses(row, preferences.rankings_to_pairs(range(k))).mean()
        for row, k in zip(rewards, counts.tolist(), strict=True)
    ]
    return torch.stack(by_prompt).mean()


def _ranked(loss_of_prompt: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A ranking loss: the mean over prompts of `loss_of_prompt(its real rewards)`."""
    return lambda rewards, counts: torch.stack(
        [loss_of_prompt(row[:k]) for row, k in zip(rewards, counts.tolist(), strict=True)]
    ).mean()


def _every_pair(row: Tensor) -> Tensor:
    return _pair_losses(row, list(combinations(range(len(row)), 2)))


def _rankings() -> list[tuple]:
    return [
        (tensor([1.0, 0.2]), torch.tensor([2])),
        (tensor([2.0, 1.0, 1.5]), torch.tensor([3])),
        (tensor([0.5, 1.0, 7.0], [1.0, -1.0, 0.5]), torch.tensor([2, 3])),
        (torch.tensor([[-150.0, 0.0, 1.0]]), torch.tensor([2])),  # fp32, as in training: sigmoid(-150) is 0 there
        (normal(60, 3, 5), torch.tensor([5, 2, 4])),
    ]


@function_exercise(
    lesson=6,
    title="The loss of a ranking",
    difficulty=3,
    importance=4,
    minutes=15,
    rows=(6, 7, 39),
    errata=("E3", "E19"),
    maths="L = mean over prompts of 1 / (K choose 2) sum over i < j <= K of -log sigmoid(r_i - r_j), replies ranked "
    "best first (InstructGPT, eq. 1)",
    reference=_ranking_loss,
    cases=_rankings,
    differentiable=("rewards",),
    hints=(
        "A ranking of K replies is K(K-1)/2 pairs, the better reply first. One prompt at a time: row[:k].",
        "torch.triu_indices(k, k, offset=1) gives the places of better and worse. -F.logsigmoid of their difference.",
        "Take the mean over the pairs of a prompt first, then over prompts: a prompt with nine replies is one prompt.",
    ),
    mistakes=(
        Mistake(
            "all pairs in one pot",
            "The mean over all pairs of the batch lets a prompt with nine replies (36 pairs) outweigh one with four (6 "
            "pairs). First the mean over a prompt's pairs, then over prompts.",
            lambda rewards, counts: torch.cat(
                [_every_pair(row[:k]) for row, k in zip(rewards, counts.tolist(), strict=True)]
            ).mean(),
        ),
        Mistake(
            "neighbours only",
            "A ranking says that the first reply beats the last as well: all K(K-1)/2 pairs, not K-1.",
            _ranked(lambda row: -F.logsigmoid(row[:-1] - row[1:]).mean()),
        ),
        Mistake(
            "worst first",
            "The rewards stand best reply first: r_i - r_j with i before j.",
            _ranked(lambda row: _every_pair(row.flip(0)).mean()),
        ),
        Mistake(
            "padding compared",
            "Only the first counts[i] rewards of a row are of real replies.",
            lambda rewards, counts: torch.stack([_every_pair(row).mean() for row in rewards]).mean(),
        ),
        Mistake(
            "sum over the pairs",
            "Divide by K(K-1)/2: a prompt counts once, however many replies were ranked.",
            _ranked(lambda row: _every_pair(row).sum()),
        ),
        Mistake(
            "missing logsigmoid",
            "-log(sigmoid(x)) is inf at -150 in fp32 and its gradient nan. F.logsigmoid gives the exact value.",
            _ranked(
                lambda row: torch.stack(
                    [-torch.log(torch.sigmoid(row[i] - row[j])) for i, j in combinations(range(len(row)), 2)]
                ).mean()
            ),
        ),
        Mistake(
            "the likelihood of the whole ranking",
            "That is Plackett-Luce: the best of all, then the best of the rest. A fine loss too, but another one: "
            "InstructGPT's is Bradley-Terry on pairs.",
            _ranked(lambda row: (row.flip(0).logcumsumexp(0).flip(0) - row).sum()),
        ),
    ),
)
def ranking_loss(rewards, counts):
    """The reward model's loss on whole rankings: a scalar tensor.

    rewards: (prompts, K), the replies to each prompt ranked best first. counts: (prompts,), how many replies each
    prompt has, 2 at least; what stands in a row after them is padding.
    """
    ...


# --- accuracy and its ceiling -------------------------------------------------------------------------------------


def _margin_accuracy(margins: np.ndarray, gold_gaps: np.ndarray) -> float:
    decided = np.abs(gold_gaps) > evaluate.TIE
    margins, gold_gaps = margins[decided], gold_gaps[decided]
    return float(np.where(margins == 0, 0.5, np.sign(margins) == np.sign(gold_gaps)).mean())


def _decided(of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable:
    """The mean of `of` over the pairs that gold decides."""
    return lambda margins, gold_gaps: of(margins[gold_gaps != 0], gold_gaps[gold_gaps != 0]).mean()


@function_exercise(
    lesson=6,
    title="Agreement with gold, ties and all",
    difficulty=2,
    importance=4,
    minutes=8,
    rows=(7, 53),
    errata=("E25",),
    maths="over pairs with gold gap != 0: the mean of 1 if margin * gap > 0, 1/2 if margin = 0, else 0",
    reference=_margin_accuracy,
    cases=lambda: [
        (np.array([0.5, -0.2]), np.array([1.0, 0.3])),
        (np.array([0.0, 2.0]), np.array([0.4, 1.0])),
        (np.array([1.0, -1.0, 0.3]), np.array([0.5, 0.0, 0.5])),
        (np.array([0.7, 0.0, -1.5, 0.2, 0.0]), np.array([0.3, 0.0, -0.9, 0.0, 1.1])),
    ],
    hints=(
        "Two kinds of tie. A pair that gold finds equal has no right answer: leave it out.",
        "A model that gives both replies one score has guessed: half a point.",
    ),
    mistakes=(
        Mistake(
            "gold's ties counted as errors",
            "Where gold finds both replies equal there is nothing to be right about: leave those pairs out.",
            lambda margins, gold_gaps: (
                np.where(margins * gold_gaps == 0, 0.5 * (gold_gaps != 0), margins * gold_gaps > 0).astype(float).mean()
            ),
        ),
        Mistake(
            "the model's ties counted as errors",
            "One score for both replies is a coin toss, worth 1/2. A model that scores everything 0 would have "
            "accuracy 0 in place of 0.5.",
            _decided(lambda margins, gaps: margins * gaps > 0),
        ),
        Mistake(
            "the model's ties counted as right",
            "With >= a model that gives every reply the same score is perfect. A tie is worth 1/2.",
            _decided(lambda margins, gaps: margins * gaps >= 0),
        ),
        Mistake(
            "gold forgotten",
            "The sign of the margin alone says which reply the model prefers, not whether gold does.",
            lambda margins, gold_gaps: np.where(margins == 0, 0.5, margins > 0).mean(),
        ),
        Mistake(
            "every tie counted half",
            "Half a point is for a model that cannot tell. A pair that gold cannot tell is no question: leave it out.",
            lambda margins, gold_gaps: np.where(margins * gold_gaps == 0, 0.5, margins * gold_gaps > 0).mean(),
        ),
    ),
)
def margin_accuracy(margins, gold_gaps):
    """The share of pairs on which a reward model prefers the reply that gold prefers: a number from 0 to 1.

    margins, gold_gaps: score and gold of the first reply less those of the second, arrays (pairs,). Pairs that gold
    finds equal do not count; where the model finds them equal it gets half a point.
    """
    ...


def _oracle_ceiling(gaps: np.ndarray, temperature: float, flip_rate: float) -> float:
    sides_with_gold = preferences.bradley_terry_probability(np.abs(gaps) / temperature, 0.0)
    return float(np.mean(sides_with_gold * (1 - flip_rate) + (1 - sides_with_gold) * flip_rate))


@function_exercise(
    lesson=6,
    title="The ceiling that label noise puts",
    difficulty=3,
    importance=5,
    minutes=10,
    rows=(7, 53),
    maths="p = sigmoid(|gap| / temperature): the annotator sides with gold; after a flip with probability f it is "
    "p (1 - f) + (1 - p) f; the ceiling is its mean",
    reference=_oracle_ceiling,
    cases=lambda: [
        (np.array([0.0]), 0.3, 0.1),
        (np.array([0.6]), 0.3, 0.0),
        (np.array([-0.6, 0.3]), 0.5, 0.0),
        (np.array([1.0, -0.2, 0.4, -1.5]), 0.3, 0.03),
        (np.array([2.0, -1.0, 0.5]), 1.0, 0.2),
    ],
    hints=(
        "The best judge always names the reply that gold prefers. With what probability does the annotator say so?",
        "That depends on the size of the gap, not on its sign: sigmoid(|gap| / temperature). Then the flips.",
    ),
    mistakes=(
        Mistake(
            "the sign of the gap kept",
            "Which reply stands first is chance. The best judge sides with gold either way: |gap|.",
            lambda gaps, temperature, flip_rate: np.mean(
                _sigmoid(gaps / temperature) * (1 - 2 * flip_rate) + flip_rate
            ),
        ),
        Mistake(
            "the mean taken too early",
            "The sigmoid of the mean gap is not the mean of the sigmoids: the curve bends, and hard pairs lose more "
            "than easy ones gain.",
            lambda gaps, temperature, flip_rate: (
                _sigmoid(np.abs(gaps).mean() / temperature) * (1 - 2 * flip_rate) + flip_rate
            ),
        ),
        Mistake(
            "the temperature turned round",
            "A higher temperature is a noisier annotator: divide by it.",
            lambda gaps, temperature, flip_rate: np.mean(
                _sigmoid(np.abs(gaps) * temperature) * (1 - 2 * flip_rate) + flip_rate
            ),
        ),
        Mistake(
            "flips forgotten",
            "After the judgement the label is turned round with probability f: p (1 - f) + (1 - p) f.",
            lambda gaps, temperature, flip_rate: np.mean(_sigmoid(np.abs(gaps) / temperature)),
        ),
        Mistake(
            "flips only harm",
            "p (1 - f) leaves out that a flip also turns some wrong labels right: + (1 - p) f.",
            lambda gaps, temperature, flip_rate: np.mean(_sigmoid(np.abs(gaps) / temperature) * (1 - flip_rate)),
        ),
        Mistake(
            "flips alone",
            "Even without flips an annotator errs where the gap is small: sigmoid(|gap| / temperature).",
            lambda gaps, temperature, flip_rate: 1 - flip_rate,
        ),
    ),
)
def oracle_ceiling(gaps, temperature, flip_rate):
    """The highest accuracy that any judge can expect on an annotator's labels: a number from 0.5 to 1.

    gaps: gold of one reply less gold of the other, an array (pairs,). The annotator prefers the first reply with
    probability sigmoid(gap / temperature); then the label is turned round with probability flip_rate, at most 0.5.
    """
    ...


# --- calibration --------------------------------------------------------------------------------------------------


def _bins(margins: np.ndarray, labels: np.ndarray, n_bins: int, both_ways: bool = True) -> tuple[np.ndarray, ...]:
    """Gap |observed - predicted| and count of each bin that is not empty."""
    p, y = _sigmoid(margins), labels
    if both_ways:
        p, y = np.concatenate([p, 1 - p]), np.concatenate([y, 1 - y])
    at = np.minimum((p * n_bins).astype(int), n_bins - 1)
    filled = np.unique(at)
    return np.array([(y - p)[at == b].mean() for b in filled]), np.array([(at == b).sum() for b in filled])


def _calibration_cases() -> list[tuple]:
    rng = np.random.default_rng(6)
    margins = 3 * rng.normal(size=40)
    noisy = (rng.random(40) < _sigmoid(margins / 3)).astype(float)  # three times too sure
    return [
        (np.array([2.0]), np.array([1.0]), 2),
        (np.array([2.0, -1.0, 0.5]), np.array([1.0, 1.0, 0.0]), 2),
        (np.array([3.0, 2.5, 0.3, -0.4]), np.array([1.0, 0.0, 1.0, 0.0]), 5),
        (margins, noisy, 10),
    ]


@function_exercise(
    lesson=6,
    title="Expected calibration error",
    difficulty=3,
    importance=4,
    minutes=15,
    rows=(7, 53),
    errata=("E25",),
    maths="p = sigmoid(margin); ECE = sum over bins of (predictions in it / all) |mean label - mean p|, each pair "
    "counted both ways",
    reference=evaluate.expected_calibration_error,
    cases=_calibration_cases,
    hints=(
        "Turn margins into probabilities, and append (1 - p, 1 - label) to (p, label): each pair, both ways.",
        "bin = min(int(p * n_bins), n_bins - 1). In each bin that holds something: |mean label - mean p|.",
        "Weigh each bin by its share of the predictions.",
    ),
    mistakes=(
        Mistake(
            "each pair one way only",
            "If the chosen reply always stands first, every label is 1 and calibration means nothing. Count the pair "
            "both ways: (p, label) and (1 - p, 1 - label).",
            lambda margins, labels, n_bins: np.average(
                np.abs(_bins(margins, labels, n_bins, both_ways=False)[0]),
                weights=_bins(margins, labels, n_bins, both_ways=False)[1],
            ),
        ),
        Mistake(
            "bins not weighted",
            "A bin with one prediction must not count as much as one with a hundred: weigh by its count.",
            lambda margins, labels, n_bins: np.abs(_bins(margins, labels, n_bins)[0]).mean(),
        ),
        Mistake(
            "the worst bin",
            "That is the maximum calibration error, which one unlucky bin decides. The mean over bins is asked for.",
            lambda margins, labels, n_bins: np.abs(_bins(margins, labels, n_bins)[0]).max(),
        ),
        Mistake(
            "the sign kept",
            "Too sure in one bin and too unsure in another cancel. Take |mean label - mean p| before the mean.",
            lambda margins, labels, n_bins: np.average(
                _bins(margins, labels, n_bins)[0], weights=_bins(margins, labels, n_bins)[1]
            ),
        ),
        Mistake(
            "no bins",
            "|label - p| of single predictions measures noise too: a perfectly calibrated 70 % is off by 0.3 or 0.7 "
            "each time. Means within bins first.",
            lambda margins, labels, n_bins: np.abs(labels - _sigmoid(margins)).mean(),
        ),
        Mistake(
            "squared",
            "ECE is of absolute differences.",
            lambda margins, labels, n_bins: np.average(
                _bins(margins, labels, n_bins)[0] ** 2, weights=_bins(margins, labels, n_bins)[1]
            ),
        ),
    ),
)
def expected_calibration_error(margins, labels, n_bins):
    """The expected calibration error of a reward model: a number from 0 to 1, 0 is calibrated.

    margins: score of the first reply less that of the second, array (pairs,). labels: 1 where the first is preferred,
    else 0. Bins are n_bins equal parts of 0 .. 1; each pair is counted both ways round.
    """
    ...


# --- diagnosis ----------------------------------------------------------------------------------------------------


_STUCK = {
    "same": "up to where the score is read, chosen and rejected are the same tokens",
    "rate": "the learning rate is far too small",
    "labels": "the labels are coin tosses",
    "head": "the score head is frozen at its random start",
    "swapped": "chosen and rejected are swapped",
}

stuck_at_log_2 = value_exercise(
    name="stuck_at_log_2",
    question="A reward model trains for 200 steps. At every step its loss is 0.693147, the margin of every pair is "
    "exactly 0 and so is the gradient. The replies differ. What is wrong?",
    lesson=6,
    title="The loss that is exactly 0.6931",
    difficulty=2,
    importance=5,
    minutes=4,
    rows=(38, 39),
    errata=("E23",),
    maths="-log sigmoid(0) = log 2 = 0.693147, and a margin that is 0 whatever the weights are has no gradient",
    reference=lambda: "same",
    options=_STUCK,
    hints=(
        "Near 0.69 and exactly log 2 are different diseases. What makes a margin 0 whatever the weights are?",
        "The score is a function of the tokens up to one place. When are two such scores equal for all weights?",
    ),
    mistakes=(
        Mistake(
            "slow taken for stuck",
            "With a small rate the weights still move, and the margins of a random head are not 0 to begin with.",
            "rate",
        ),
        Mistake(
            "noise taken for no signal",
            "On coin tosses the loss hovers about 0.69 or above, with margins and gradients that are not 0.",
            "labels",
        ),
        Mistake(
            "the head blamed",
            "A random head still gives two different replies two different scores, and the body below it can learn.",
            "head",
        ),
        Mistake(
            "the sign blamed",
            "Swapped columns train as well as right ones, on the opposite taste: the loss falls.",
            "swapped",
        ),
    ),
)


def _largest_batch() -> int:
    """Comparisons in 64 rankings of nine replies."""
    return 64 * len(preferences.rankings_to_pairs(range(9)))


comparisons_in_a_batch = value_exercise(
    name="comparisons_in_a_batch",
    question="InstructGPT trained its reward model on 64 prompts a batch, each with up to 9 ranked replies. How many "
    "comparisons can one batch hold at most?",
    lesson=6,
    title="Rankings by the batch",
    difficulty=1,
    importance=3,
    minutes=3,
    rows=(7,),
    errata=("E3",),
    maths="64 * (9 choose 2) = 64 * 36 = 2,304 comparisons, from 576 forward passes (arXiv 2203.02155, appendix C.2)",
    reference=_largest_batch,
    hints=("K replies make K(K-1)/2 pairs.", "64 times 9 choose 2."),
    mistakes=(
        Mistake("replies counted", "576 are the replies, each scored once. Nine of them make 36 pairs.", 576),
        Mistake("each pair twice", "9 * 8 counts (a, b) and (b, a). Divide by 2.", 4608),
        Mistake("a reply against itself", "9 * 9 has a reply beat itself, and each pair twice.", 5184),
        Mistake("one prompt", "That is one prompt. The batch holds 64.", 36),
        Mistake("neighbours only", "A ranking decides all 36 pairs, not only the 8 of neighbours.", 512),
    ),
)
