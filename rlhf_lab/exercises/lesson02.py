"""Exercises of lesson 02: Bradley-Terry, Elo, the loss that fits rewards, and what comparisons cannot tell."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np
import torch
import torch.nn.functional as F

from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.exercises.inputs import normal, tensor
from rlhf_lab.losses import reward_loss as package_reward_loss
from rlhf_lab.preferences import ELO_POINTS_PER_REWARD, bradley_terry_probability, fit_bradley_terry
from rlhf_lab.preferences import elo_probability as package_elo_probability
from rlhf_lab.preferences import plackett_luce_log_prob as package_plackett_luce


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


@function_exercise(
    lesson=2,
    title="Who is preferred, and how often",
    difficulty=1,
    importance=5,
    minutes=5,
    rows=(9, 11, 12),
    maths="P(a preferred to b) = exp(r_a) / (exp(r_a) + exp(r_b)) = sigmoid(r_a - r_b) = 1 / (1 + exp(-(r_a - r_b)))",
    reference=bradley_terry_probability,
    cases=lambda: [(1.0, 0.5), (2.0, 1.0), (-1.5, 2.0), (0.25, -3.0), (1000.0, 999.0)],
    hints=(
        "Divide numerator and denominator by exp(r_a). What is left depends on one number only.",
        "1 / (1 + exp(-(r_a - r_b))). Rewards of 1000 and 999 are as good as 1 and 0: do not take exp of each.",
    ),
    mistakes=(
        Mistake(
            "rewards in place of strengths",
            "r_a / (r_a + r_b) is not a probability once a reward is negative. A reward is the logarithm of a "
            "strength: exp(r_a) / (exp(r_a) + exp(r_b)).",
            lambda reward_a, reward_b: reward_a / (reward_a + reward_b),
        ),
        Mistake(
            "the sign of the difference",
            "This is the probability that b is preferred: sigmoid(r_a - r_b), not sigmoid(r_b - r_a).",
            lambda reward_a, reward_b: _sigmoid(reward_b - reward_a),
        ),
        Mistake(
            "exp overflows",
            "exp(1000) is inf, and inf / inf is nan. Only the difference counts: 1 / (1 + exp(-(r_a - r_b))).",
            lambda reward_a, reward_b: np.exp(reward_a) / (np.exp(reward_a) + np.exp(reward_b)),
        ),
        Mistake(
            "base 10",
            "Powers of 10 belong to Elo's scale. Rewards use e: 1 / (1 + exp(-(r_a - r_b))).",
            lambda reward_a, reward_b: 1 / (1 + 10 ** -(reward_a - reward_b)),
        ),
        Mistake(
            "a winner in place of a probability",
            "The higher reward is preferred more often, not always: how often is sigmoid(r_a - r_b).",
            lambda reward_a, reward_b: float(reward_a > reward_b),
        ),
        Mistake(
            "the ratio of the rewards",
            "Rewards are known up to a shift, so only their difference means something: sigmoid(r_a - r_b).",
            lambda reward_a, reward_b: _sigmoid(reward_a / reward_b),
        ),
    ),
)
def bradley_terry(reward_a, reward_b):
    """P(a is preferred to b) for two rewards, under Bradley and Terry's model: a number from 0 to 1."""
    ...


@function_exercise(
    lesson=2,
    title="Elo, done right",
    difficulty=1,
    importance=4,
    minutes=5,
    rows=(10,),
    errata=("E1",),
    maths="strength = 10^(R / 400), so P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400))",
    reference=package_elo_probability,
    cases=lambda: [(2000.0, 1600.0), (1200.0, 1700.0), (1850.0, 1790.0), (0.0, 100.0)],
    hints=(
        "By definition 400 points are odds of 10 to 1. What probability is that?",
        "Turn each rating into a strength, 10^(R / 400), and only then use strength_a / (strength_a + strength_b).",
    ),
    mistakes=(
        Mistake(
            "ratings in place of strengths",
            "The article computes 2000 / (2000 + 1600) = 0.556. A rating is a logarithm: strengths are 10^(R / 400), "
            "and 400 points are odds of 10 to 1, P = 10 / 11 = 0.909.",
            lambda rating_a, rating_b: rating_a / (rating_a + rating_b),
        ),
        Mistake(
            "e in place of 10",
            "Elo's odds are powers of 10: 10^((R_b - R_a) / 400). With e, 400 points would be odds of 2.7 to 1.",
            lambda rating_a, rating_b: 1 / (1 + math.exp((rating_b - rating_a) / 400)),
        ),
        Mistake(
            "400 forgotten",
            "Without / 400, four points would be odds of 10,000 to 1.",
            lambda rating_a, rating_b: 1 / (1 + 10.0 ** min(rating_b - rating_a, 300)),
        ),
        Mistake(
            "the sign of the difference",
            "This is the probability that b wins. The exponent is (R_b - R_a) / 400, so that a higher R_a makes it "
            "smaller.",
            lambda rating_a, rating_b: 1 / (1 + 10 ** ((rating_a - rating_b) / 400)),
        ),
        Mistake(
            "odds in place of a probability",
            "10^((R_a - R_b) / 400) are odds, 10 to 1. The probability is odds / (1 + odds).",
            lambda rating_a, rating_b: 10 ** ((rating_a - rating_b) / 400),
        ),
    ),
)
def elo_probability(rating_a, rating_b):
    """P(a beats b) for two Elo ratings, such as 2000 and 1600: a number from 0 to 1."""
    ...


def _elo_points() -> float:
    return float(ELO_POINTS_PER_REWARD)


elo_points_per_reward = value_exercise(
    name="elo_points_per_reward",
    question="A reward model gives reply a one unit of reward more than reply b. How many Elo points is that?",
    lesson=2,
    title="One unit of reward, in Elo points",
    difficulty=2,
    importance=2,
    minutes=4,
    rows=(10, 11),
    errata=("E1",),
    maths="exp(r_a - r_b) = 10^((R_a - R_b) / 400), so R_a - R_b = 400 / ln(10) * (r_a - r_b)",
    reference=_elo_points,
    tolerance=3e-3,
    hints=(
        "Both models give odds. Write the odds of a against b in each, and set them equal.",
        "exp(1) = 10^(x / 400). Take natural logarithms on both sides.",
    ),
    mistakes=(
        Mistake(
            "odds of 10 in place of e", "400 points are odds of 10. One unit of reward is odds of e = 2.718.", 400.0
        ),
        Mistake(
            "multiplied by ln(10)",
            "10^(x / 400) = exp(x ln(10) / 400). For that to be e, x is 400 divided by ln(10).",
            400 * math.log(10),
        ),
        Mistake(
            "the other way round",
            "That is the reward in one Elo point, ln(10) / 400. The question is its inverse.",
            math.log(10) / 400,
        ),
        Mistake("divided by 10", "The logarithm is missing: 400 / ln(10), not 400 / 10.", 40.0),
        Mistake("divided by e", "exp(1) = 10^(x / 400) needs a logarithm: x = 400 / ln(10).", 400 / math.e),
    ),
)


def _reward_cases() -> list[tuple]:
    return [
        (tensor(1.0), tensor(0.0)),
        (tensor(2.0, 0.0, -1.0), tensor(0.0, 0.5, 1.0)),
        (torch.tensor([-60.0, 1.0]), torch.tensor([60.0, 0.0])),  # fp32, as in training: sigmoid(-120) is 0 there
        tuple(normal(0, 2, 5)),
    ]


@function_exercise(
    lesson=2,
    title="The loss of a reward model, stable",
    difficulty=2,
    importance=5,
    minutes=8,
    rows=(9, 39),
    errata=("E19",),
    maths="L = mean over pairs of -log sigmoid(r_chosen - r_rejected), computed as -logsigmoid(difference)",
    reference=package_reward_loss,
    cases=_reward_cases,
    differentiable=("chosen", "rejected"),
    hints=(
        "It is the negative log-likelihood of the labels under Bradley-Terry: the first exercise, log, minus, mean.",
        "Try torch.log(torch.sigmoid(torch.tensor(-120.0))). There is a function that never leaves the logarithm.",
        "torch.nn.functional.logsigmoid.",
    ),
    mistakes=(
        Mistake(
            "missing logsigmoid",
            "As the article writes it, -log(sigmoid(x)) is inf at x = -120 in fp32 (and at -20 in fp16), and its "
            "gradient nan: sigmoid has become 0 before the log sees it. F.logsigmoid(x) gives the exact -120.",
            lambda chosen, rejected: -torch.log(torch.sigmoid(chosen - rejected)).mean(),
        ),
        Mistake(
            "the sign of the difference",
            "This loss falls when the rejected reply gets more reward. It is r_chosen - r_rejected inside the sigmoid.",
            lambda chosen, rejected: -F.logsigmoid(rejected - chosen).mean(),
        ),
        Mistake(
            "the minus forgotten",
            "log sigmoid is the log-likelihood, to be raised. A loss is lowered: put the minus in front.",
            lambda chosen, rejected: F.logsigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "sum in place of the mean",
            "With a sum the step grows with the batch. The loss is the mean over pairs.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected).sum(),
        ),
        Mistake(
            "the mean taken too early",
            "The mean is over the losses of the pairs, not over the differences: -logsigmoid(difference).mean().",
            lambda chosen, rejected: -F.logsigmoid((chosen - rejected).mean()),
        ),
        Mistake(
            "the logarithm forgotten",
            "Without log it is no likelihood, and a pair that is badly wrong has hardly any gradient.",
            lambda chosen, rejected: -torch.sigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "one loss a pair",
            "The loss to call backward on is one number: the mean over the pairs.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected),
        ),
    ),
)
def reward_loss(chosen, rejected):
    """Bradley-Terry loss of a reward model: a scalar tensor.

    chosen, rejected: rewards of the two replies of each pair, tensors of shape (batch,).
    It must stay finite, with a useful gradient, when a pair is badly wrong.
    """
    ...


def _centre_by_prompt(rewards: Sequence[float], prompts: Sequence[int]) -> np.ndarray:
    rewards, prompts = np.asarray(rewards, dtype=float), np.asarray(prompts)
    return rewards - np.array([rewards[prompts == prompt].mean() for prompt in prompts])


def _by_prompt(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def changed(rewards: Sequence[float], prompts: Sequence[int]) -> np.ndarray:
        rewards, prompts = np.asarray(rewards, dtype=float), np.asarray(prompts)
        out = rewards.copy()
        for prompt in set(prompts.tolist()):
            out[prompts == prompt] = change(rewards[prompts == prompt])
        return out

    return changed


@function_exercise(
    lesson=2,
    title="What comparisons cannot tell",
    difficulty=2,
    importance=4,
    minutes=8,
    rows=(11, 12),
    errata=("E2",),
    maths="r(x, y) + c(x) gives the same P(y1 preferred to y2 | x) for every function c of the prompt",
    reference=_centre_by_prompt,
    cases=lambda: [
        ([1.0, 3.0], [0, 0]),
        ([1.0, 3.0, 10.0, 14.0], [0, 0, 1, 1]),
        ([0.5, 7.0, -1.5, 9.0, 4.0], [2, 5, 2, 5, 2]),
    ],
    hints=(
        "Both replies of a comparison answer the same prompt. Which number cancels in r(x, y1) - r(x, y2)?",
        "One constant for each prompt is unknown, so take the mean of each prompt's own rewards away.",
    ),
    mistakes=(
        Mistake(
            "one constant for all prompts",
            "The shift may depend on the prompt, c(x): comparisons never cross prompts, so nothing ties their levels "
            "together. Subtract each prompt's own mean.",
            lambda rewards, prompts: np.asarray(rewards, float) - np.mean(rewards),
        ),
        Mistake(
            "nothing taken away",
            "Two reward models with the same preferences still differ here, by c(x). Subtract each prompt's mean.",
            lambda rewards, prompts: np.asarray(rewards, float),
        ),
        Mistake(
            "the scale taken away too",
            "The scale is known: sigmoid(2 (r1 - r2)) is not sigmoid(r1 - r2). Shift, and do not divide.",
            _by_prompt(lambda r: (r - r.mean()) / r.std()),
        ),
        Mistake(
            "the best at zero",
            "That is a right way to fix the shift, but another one: here the mean of each prompt is to be 0.",
            _by_prompt(lambda r: r - r.max()),
        ),
        Mistake(
            "the first at zero",
            "That is a right way to fix the shift, but another one: here the mean of each prompt is to be 0.",
            _by_prompt(lambda r: r - r[0]),
        ),
        Mistake(
            "each reply shifted by its own number",
            "If every reply has its own shift the preferences change: all rewards are 0 now and every P is 1/2.",
            lambda rewards, prompts: np.zeros(len(rewards)),
        ),
    ),
)
def centre_by_prompt(rewards, prompts):
    """Take out of the rewards what comparisons within prompts cannot tell: each prompt's mean becomes 0.

    rewards[i] is the reward of reply i, prompts[i] the number of its prompt. Returns rewards, in the same order.
    """
    ...


def _of_tallies(n_items: int, comparisons: Sequence[tuple[int, int]], score: Callable) -> np.ndarray:
    won, lost = np.zeros(n_items), np.zeros(n_items)
    for winner, loser in comparisons:
        won[winner] += 1
        lost[loser] += 1
    return score(won, lost) - np.mean(score(won, lost))


def _one_elo_pass(n_items: int, comparisons: Sequence[tuple[int, int]]) -> np.ndarray:
    rewards = np.zeros(n_items)
    for winner, loser in comparisons:
        step = 1 - bradley_terry_probability(rewards[winner], rewards[loser])
        rewards[winner] += step
        rewards[loser] -= step
    return rewards


def _fit_cases() -> list[tuple]:
    return [
        (2, [(0, 1)] * 3 + [(1, 0)]),
        (3, [(0, 1)] * 3 + [(1, 0)] + [(1, 2)] * 2 + [(2, 1)] + [(0, 2)] * 2 + [(2, 0)]),
        (4, [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (0, 1), (2, 1), (1, 3)]),
    ]


@function_exercise(
    lesson=2,
    title="Rewards from comparisons",
    difficulty=4,
    importance=4,
    minutes=20,
    rows=(7, 9, 12),
    errata=("E2",),
    maths="maximise sum over (w, l) of log sigmoid(r_w - r_l); its gradient for item i is wins_i - sum of P(i beats "
    "its opponent) over its games",
    reference=fit_bradley_terry,
    cases=_fit_cases,
    tolerance=5e-3,
    hints=(
        "Start from zeros and climb: the gradient for item i is its wins minus the wins that the rewards expect.",
        "A few thousand steps of 0.1 are enough here. Subtract the mean at the end: the likelihood does not know it.",
        "Check yourself: two items, 3 wins to 1. Then r_0 - r_1 = log 3.",
    ),
    mistakes=(
        Mistake(
            "win rates",
            "A win rate does not know who the opponents were, and is not on the scale of rewards: sigmoid(r_w - r_l) "
            "has to give back the observed shares.",
            lambda n_items, comparisons: _of_tallies(n_items, comparisons, lambda won, lost: won / (won + lost)),
        ),
        Mistake(
            "log-odds against the field",
            "log(wins / losses) treats all opponents as one player of reward 0. For two items it is twice too far "
            "apart.",
            lambda n_items, comparisons: _of_tallies(n_items, comparisons, lambda won, lost: np.log(won / lost)),
        ),
        Mistake(
            "the first at zero",
            "These rewards predict the same, but here the mean is to be 0: subtract it.",
            lambda n_items, comparisons: (lambda r: r - r[0])(fit_bradley_terry(n_items, comparisons)),
        ),
        Mistake(
            "the loser first",
            "Each comparison is (winner, loser). Yours ranks the items upside down.",
            lambda n_items, comparisons: -fit_bradley_terry(n_items, comparisons),
        ),
        Mistake(
            "one pass of Elo",
            "One pass of updates depends on the order of the games and has not arrived. Repeat until the gradient is "
            "0.",
            _one_elo_pass,
        ),
        Mistake(
            "net wins",
            "Wins minus losses is the gradient at 0 (twice over), not the place where it vanishes: keep climbing.",
            lambda n_items, comparisons: _of_tallies(n_items, comparisons, np.subtract),
        ),
    ),
)
def fit_rewards(n_items, comparisons):
    """The rewards that make the comparisons most likely under Bradley-Terry, with mean 0: n_items numbers.

    comparisons: list of (winner, loser), items numbered from 0; a pair may repeat. Right to 0.005 is right.
    """
    ...


def _log_sigmoid(x: float) -> float:
    return float(-np.logaddexp(0.0, -x))


def _log_softmax_sum(rewards: Sequence[float]) -> float:
    return float(np.sum(rewards) - len(rewards) * np.logaddexp.reduce(rewards))


@function_exercise(
    lesson=2,
    title="A whole ranking: Plackett-Luce",
    difficulty=3,
    importance=2,
    minutes=10,
    rows=(7, 9),
    errata=("E3",),
    maths="log P(ranking) = sum over k of [r_k - log(exp(r_k) + ... + exp(r_K))], over those not yet placed",
    reference=package_plackett_luce,
    cases=lambda: [
        ([1.0, 0.0],),
        ([0.0, 0.5, -1.0],),
        ([-0.3, 2.0, 0.7, 1.1],),
        ([0.2, 0.1, 0.0, -0.1, 3.0],),
    ],
    hints=(
        "The first is chosen from all by softmax, the second from those that are left, and so on.",
        "For each k: r_k minus the log-sum-exp of r_k and everything after it. With two items it is Bradley-Terry.",
    ),
    mistakes=(
        Mistake(
            "placed items stay in the race",
            "Once placed, an item leaves: the k-th denominator runs over k..K only.",
            _log_softmax_sum,
        ),
        Mistake(
            "the probability in place of its logarithm",
            "The answer is log P(ranking), a sum; exp of it is the probability.",
            lambda rewards: math.exp(package_plackett_luce(rewards)),
        ),
        Mistake(
            "the worst first",
            "The rewards come best-ranked first. The first factor is the softmax of the first over all.",
            lambda rewards: package_plackett_luce(list(rewards)[::-1]),
        ),
        Mistake(
            "all pairs as if independent",
            "The product of Bradley-Terry over all pairs is not a probability of rankings: over all orders it does not "
            "sum to 1. The pairs of one ranking share replies.",
            lambda rewards: sum(_log_sigmoid(a - b) for a, b in combinations(rewards, 2)),
        ),
        Mistake(
            "neighbours only",
            "Comparing each with the next one only forgets that the k-th was chosen from all that were left.",
            lambda rewards: sum(_log_sigmoid(a - b) for a, b in pairwise(rewards)),
        ),
        Mistake(
            "the minus of a loss",
            "This is the loss; the question is log P(ranking), which is at most 0.",
            lambda rewards: -package_plackett_luce(rewards),
        ),
    ),
)
def plackett_luce(rewards_in_ranked_order):
    """log P(ranking) under Plackett and Luce; rewards of the replies as they were ranked, best first. One number."""
    ...


def _fitted_cycle() -> float:
    comparisons = [pair for a, b in ((0, 1), (1, 2), (2, 0)) for pair in [(a, b)] * 8 + [(b, a)] * 2]
    rewards = fit_bradley_terry(3, comparisons)
    return round(bradley_terry_probability(rewards[0], rewards[1]), 9)


cycle = value_exercise(
    name="cycle",
    question="A is preferred to B in 8 of 10 comparisons, B to C in 8 of 10, and C to A in 8 of 10. "
    "What does the best Bradley-Terry fit to these 30 comparisons give for P(A preferred to B)?",
    lesson=2,
    title="Preferences that go in a circle",
    difficulty=3,
    importance=3,
    minutes=5,
    rows=(12,),
    errata=("E2",),
    maths="one number each for A, B and C: r_A > r_B > r_C > r_A is impossible; by symmetry r_A = r_B = r_C",
    reference=_fitted_cycle,
    tolerance=2e-3,
    hints=(
        "How many wins does each of the three have, and out of how many games?",
        "Nothing in the data tells the three apart. What does Bradley-Terry say of two equal rewards?",
    ),
    mistakes=(
        Mistake(
            "the observed share",
            "0.8 for all three needs r_A > r_B > r_C > r_A. One number a reply forces transitivity, and these data "
            "have none: the fit cannot give the shares back.",
            0.8,
        ),
        Mistake(
            "the path through C alone",
            "Odds of 1/4 from C and 1/4 again give 1/17, but the direct comparisons count too, and pull the other way.",
            1 / 17,
        ),
        Mistake(
            "the direct comparisons twice",
            "16/17 multiplies odds of 4 by 4, as if C stood between A and B. The cycle turns the other way.",
            16 / 17,
        ),
        Mistake("the other way round", "0.2 is the share of B's wins. Count all wins of each reply first.", 0.2),
    ),
)
