"""Exercises of lesson 09: how to compare two methods, and which to choose when."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

import math

import numpy as np
from scipy import stats

from rlhf_lab import exact, shares, versus
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise


def _array(*values: float) -> np.ndarray:
    return np.array(values)


# --- the frontier -------------------------------------------------------------------------------------------------


def _weights(rewards: np.ndarray, beta: float) -> tuple[np.ndarray, float]:
    tilted = np.exp((rewards - rewards.max()) / beta)
    weights = tilted / tilted.sum()
    return weights, 1 / np.sum(weights**2)


def _weighed(rewards: np.ndarray, beta: float, size) -> tuple[np.ndarray, float]:
    """A wrong effective sample size on the right weights."""
    weights, _ = _weights(rewards, beta)
    return weights, size(weights)


@function_exercise(
    lesson=9,
    title="Importance weights, and how many samples they leave",
    difficulty=3,
    importance=4,
    minutes=12,
    rows=(21, 22),
    errata=("E6",),
    maths="w_i = exp(r_i / beta) / sum_j exp(r_j / beta) for replies of pi_ref; effective samples 1 / sum w_i^2",
    reference=_weights,
    cases=lambda: [
        (_array(0.0, 0.0, 0.0, 0.0), 1.0),
        (_array(1.0, 0.0), 0.5),
        (_array(2.0, 3.0, 1.0), 0.002),  # rewards of 1500 in units of beta
        (np.random.default_rng(0).normal(size=12), 0.7),
    ],
    hints=(
        "pi* / pi_ref is exp(r / beta) / Z. The replies come from pi_ref, so each counts exp(r / beta), and Z is what "
        "makes the weights sum to 1.",
        "Equal weights 1/n must give n effective samples, and one weight of 1 must give 1: 1 / sum of squares does. "
        "Subtract the largest reward before exp.",
    ),
    mistakes=(
        Mistake(
            "beta turned round",
            "exp(r / beta), not exp(beta r): larger beta holds pi* closer to the reference, so weights must become "
            "equal as beta grows.",
            lambda rewards, beta: _weights(rewards, 1 / beta),
        ),
        Mistake(
            "exp overflows",
            "exp(1500) is inf. Subtract the largest reward first: it cancels between numerator and sum.",
            lambda rewards, beta: (
                (w := np.exp(rewards / beta)) / w.sum(),
                1 / np.sum((w / w.sum()) ** 2),
            ),
        ),
        Mistake(
            "weights that do not sum to 1",
            "Z is unknown, so the weights are divided by their own sum: that is what self-normalised means.",
            lambda rewards, beta: (
                (w := np.exp((rewards - rewards.max()) / beta)),
                1 / np.sum((w / w.sum()) ** 2),
            ),
        ),
        Mistake(
            "all samples counted",
            "n replies were drawn, but most may carry no weight. 1 / sum w_i^2 is n only if all weights are equal.",
            lambda rewards, beta: _weighed(rewards, beta, len),
        ),
        Mistake(
            "the sum of squares not turned over",
            "sum w_i^2 is 1/n for equal weights: effective samples are 1 over it.",
            lambda rewards, beta: _weighed(rewards, beta, lambda w: np.sum(w**2)),
        ),
        Mistake(
            "the largest weight alone",
            "1 / max w is another, harsher measure. The variance of a weighted mean goes with sum w_i^2.",
            lambda rewards, beta: _weighed(rewards, beta, lambda w: 1 / w.max()),
        ),
    ),
)
def importance_weights(rewards, beta):
    """(weights, effective samples) that turn replies of the reference into an estimate of pi*: (array (n,), number).

    rewards: array (n,), of replies to one prompt drawn from the reference. beta > 0, as small as 0.002.
    """
    ...


def _interpolated(kl: float, kls: np.ndarray, start: float, rewards: np.ndarray) -> float:
    return np.interp(kl, [0.0, *kls], [start, *rewards])


@function_exercise(
    lesson=9,
    title="A share of what the frontier allows",
    difficulty=2,
    importance=5,
    minutes=8,
    rows=(30, 33, 66),
    errata=("E11",),
    maths="share = (reward - start) / (F(KL) - start), F the frontier, start the reference's reward",
    reference=shares.share_of_frontier,
    cases=lambda: [
        (1.5, 1.0, 1.0, _array(1.0, 2.0), _array(2.0, 2.5)),
        (0.9, 0.25, 0.7, _array(0.5, 1.0, 2.0), _array(1.1, 1.5, 1.9)),
        (1.6, 1.5, 0.7, _array(0.5, 1.0, 2.0), _array(1.1, 1.5, 1.9)),
        (-0.2, 0.6, 0.1, _array(0.5, 1.0, 2.0), _array(1.1, 1.5, 1.9)),
    ],
    hints=(
        "Both numerator and denominator are gains over the reference's own reward.",
        "The denominator is read off the frontier at the policy's KL: np.interp, with the reference (KL 0, reward "
        "start) as the first point.",
    ),
    mistakes=(
        Mistake(
            "the frontier's end in place of the policy's KL",
            "A policy at KL 0.5 cannot have what is possible at KL 2. Read the frontier at the policy's own KL.",
            lambda reward, kl, start, kls, rewards: (reward - start) / (rewards[-1] - start),
        ),
        Mistake(
            "levels in place of gains",
            "Where a reward's zero lies means nothing. Subtract the reference's reward above and below.",
            lambda reward, kl, start, kls, rewards: reward / _interpolated(kl, kls, start, rewards),
        ),
        Mistake(
            "a gain over a level",
            "Subtract the reference's reward below the line too.",
            lambda reward, kl, start, kls, rewards: (reward - start) / _interpolated(kl, kls, start, rewards),
        ),
        Mistake(
            "the start forgotten",
            "The frontier begins at KL 0 with the reference's reward. Without that point np.interp is level to "
            "the left of the first one.",
            lambda reward, kl, start, kls, rewards: (reward - start) / (np.interp(kl, kls, rewards) - start),
        ),
        Mistake(
            "the nearest point",
            "Between two points the frontier goes on: interpolate.",
            lambda reward, kl, start, kls, rewards: (
                (reward - start) / (rewards[np.abs(np.asarray(kls) - kl).argmin()] - start)
            ),
        ),
        Mistake(
            "gain per nat",
            "Gain over KL rewards small steps: the frontier is concave, its first nat is its cheapest. Divide by what "
            "is possible there.",
            lambda reward, kl, start, kls, rewards: (reward - start) / kl,
        ),
    ),
)
def share_of_frontier(reward, kl, start, kls, rewards):
    """A policy's gain over the reference as a share of the most that any policy can gain at its KL: one number.

    reward, kl: the policy's. start: the reference's reward (its KL is 0). kls, rewards: points of the frontier, arrays
    (n,), KL ascending and above 0; straight lines between them.
    """
    ...


# --- best of n ----------------------------------------------------------------------------------------------------


@function_exercise(
    lesson=9,
    title="How far best-of-n can be from its reference",
    difficulty=1,
    importance=4,
    minutes=4,
    rows=(32,),
    maths="KL(best of n || reference) <= log n - (n - 1) / n, in nats; equal when no two replies have the same reward",
    reference=exact.best_of_n_kl_bound,
    cases=lambda: [(1,), (2,), (4,), (16,), (100,)],
    hints=(
        "If no two replies tie, the kept one's place u in the reference's ranking has density n u^(n-1) on [0, 1].",
        "KL is the integral of n u^(n-1) log(n u^(n-1)): log n + (n - 1) E[log u], and E[log u] = -1/n.",
    ),
    mistakes=(
        Mistake(
            "log n alone",
            "log n is the KL of a policy that says one reply of n. The best of n varies more: (n - 1) / n comes off.",
            lambda n: math.log(n),
        ),
        Mistake(
            "bits in place of nats",
            "KL in nats takes the natural logarithm.",
            lambda n: math.log2(n) - (n - 1) / n,
        ),
        Mistake(
            "plus in place of minus",
            "E[log u] is below 0, as u is below 1: log n - (n - 1) / n.",
            lambda n: math.log(n) + (n - 1) / n,
        ),
        Mistake(
            "1 taken off",
            "log n - 1 is the limit for large n. For n = 1 nothing has moved, and the KL must be 0.",
            lambda n: math.log(n) - 1,
        ),
        Mistake(
            "1 / n taken off",
            "(n - 1) E[log u] with E[log u] = -1/n: it is (n - 1) / n that comes off.",
            lambda n: math.log(n) - 1 / n,
        ),
    ),
)
def best_of_n_kl_bound(n):
    """The most that the KL of best-of-n from its reference can be, in nats. n: a whole number of at least 1."""
    ...


def _best_of_n_reward(ref_probs: np.ndarray, rewards: np.ndarray, n: int) -> float:
    return exact.reward_of(exact.best_of_n(ref_probs, rewards, n), rewards)


def _by_reward(ref_probs: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rewards ascending, probability of at most that one)."""
    order = np.argsort(rewards, kind="stable")
    return rewards[order], np.cumsum(ref_probs[order])


@function_exercise(
    lesson=9,
    title="What best-of-n earns, exactly",
    difficulty=3,
    importance=4,
    minutes=15,
    rows=(32,),
    maths="P(the best has reward at most r) = F(r)^n, so E = sum over rewards r of r (F(r)^n - F(the reward below)^n)",
    reference=_best_of_n_reward,
    cases=lambda: [
        (_array(0.5, 0.5), _array(1.0, 0.0), 2),
        (_array(0.7, 0.1, 0.2), _array(0.0, 3.0, 1.0), 3),
        (_array(0.25, 0.25, 0.3, 0.2), _array(1.0, -1.0, 1.0, 2.0), 4),  # a tie
        (np.random.default_rng(1).dirichlet(np.ones(6)), np.random.default_rng(2).normal(size=6), 5),
    ],
    hints=(
        "The best of n is at most r exactly when all n are: F(r)^n, with F(r) the reference's probability of a reward "
        "of at most r.",
        "Sort by reward, take the cumulative sum of the probabilities, raise it to the n-th power, take differences.",
    ),
    mistakes=(
        Mistake(
            "the best reply there is",
            "The best of n drawn is not the best of all: a rare one may not be among the n.",
            lambda ref_probs, rewards, n: rewards[ref_probs > 0].max(),
        ),
        Mistake(
            "the reference's mean",
            "That is n = 1. Keeping the best of n lifts it.",
            lambda ref_probs, rewards, n: ref_probs @ rewards,
        ),
        Mistake(
            "not sorted by reward",
            "F(r) sums the probabilities of all replies with reward at most r: sort by reward before cumsum.",
            lambda ref_probs, rewards, n: np.diff(np.cumsum(ref_probs) ** n, prepend=0.0) @ rewards,
        ),
        Mistake(
            "the worst of n",
            "1 - (1 - F)^n is about the smallest. The largest is at most r when all are: F^n.",
            lambda ref_probs, rewards, n: (
                np.diff(1 - (1 - _by_reward(ref_probs, rewards)[1]) ** n, prepend=0.0) @ np.sort(rewards)
            ),
        ),
        Mistake(
            "probabilities to the n",
            "p(y)^n is the chance that all n are y. The best is y when all n are at most as good and one is y.",
            lambda ref_probs, rewards, n: (ref_probs**n / np.sum(ref_probs**n)) @ rewards,
        ),
        Mistake(
            "F^n in place of its differences",
            "F(r)^n is the chance of at most r; of exactly r it is the difference to the reward below.",
            lambda ref_probs, rewards, n: _by_reward(ref_probs, rewards)[1] ** n @ np.sort(rewards),
        ),
    ),
)
def best_of_n_reward(ref_probs, rewards, n):
    """Expected reward of the best of n replies drawn from the reference: one number, no sampling.

    ref_probs, rewards: arrays (replies,); rewards may tie, and are the ones that choose. n: at least 1.
    """
    ...


# --- seeds --------------------------------------------------------------------------------------------------------


def _mean_over_seeds(values: np.ndarray) -> tuple[float, float, float]:
    found = versus.mean_over_seeds(values)
    return found.value, found.low, found.high


def _around(values: np.ndarray, half: float) -> tuple[float, float, float]:
    mean = float(np.mean(values))
    return mean, mean - half, mean + half


@function_exercise(
    lesson=9,
    title="Three seeds and their interval",
    difficulty=2,
    importance=5,
    minutes=8,
    rows=(30,),
    maths="mean -+ t_{0.975, n-1} s / sqrt(n), s^2 = sum (x - mean)^2 / (n - 1); for n = 3 t is 4.30, not 1.96",
    reference=_mean_over_seeds,
    tolerance=1e-4,  # 1.96 is as good as all its digits
    cases=lambda: [
        (_array(1.0, 3.0),),
        (_array(1.0, 2.0, 3.0),),
        (_array(1.31, 1.52, 1.47),),
        (np.random.default_rng(5).normal(size=8),),
    ],
    hints=(
        "The spread of the seeds is s, with n - 1 below the line; the spread of their mean is s / sqrt(n).",
        "scipy.stats.t.ppf(0.975, n - 1) is how many of those a 95 % interval reaches to each side.",
    ),
    mistakes=(
        Mistake(
            "1.96 in place of t",
            "s itself is a guess from n values. For 3 seeds Student's t is 4.30: with 1.96 such an interval misses the "
            "mean about one time in five.",
            lambda values: _around(values, 1.959963984540054 * np.std(values, ddof=1) / np.sqrt(len(values))),
        ),
        Mistake(
            "n in place of n - 1",
            "np.std divides by n unless told ddof=1, and comes out too small: by a fifth for 3 seeds.",
            lambda values: _around(values, stats.t.ppf(0.975, len(values) - 1) * np.std(values) / np.sqrt(len(values))),
        ),
        Mistake(
            "the seeds' spread, not their mean's",
            "t s would hold the next seed, nearly. The mean of n is steadier: s / sqrt(n).",
            lambda values: _around(values, stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1)),
        ),
        Mistake(
            "n degrees of freedom",
            "One is used up by the mean: t has n - 1 degrees of freedom.",
            lambda values: _around(
                values, stats.t.ppf(0.975, len(values)) * np.std(values, ddof=1) / np.sqrt(len(values))
            ),
        ),
        Mistake(
            "one tail",
            "A 95 % interval leaves 2.5 % on each side: the quantile is 0.975, not 0.95.",
            lambda values: _around(
                values, stats.t.ppf(0.95, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
            ),
        ),
    ),
)
def mean_over_seeds(values):
    """(mean, low, high): the mean of one result a seed and its 95 % interval. values: array (n,), n at least 2."""
    ...


# --- what is held, and what to choose -----------------------------------------------------------------------------


def _weights_of_seven_billion() -> list[float]:
    held = versus.weights_held(base=13.5, policy=0.05, value=0.05, reward=0.05)
    return [gb for way, gb in held.items() if way != "DPO, reference precomputed"]


value_exercise(
    name="weights_held",
    question="A Llama of 7 billion parameters is 13.5 GB in 16 bits; a LoRA adapter for it, with a head where one is "
    "needed, 0.05 GB. How many GB of weights do these hold while they train? A list of four numbers: [RLHF with four "
    "separate models, RLHF with one base and adapters, DPO with a second model as its reference, DPO with one base and "
    "an adapter].",
    lesson=9,
    title="Weights in memory",
    difficulty=2,
    importance=5,
    minutes=5,
    rows=(32,),
    errata=("E9",),
    maths="RLHF: policy, reference, reward, value. On one base the reference is that base with its adapters off: "
    "4 * 13.5, 13.5 + 3 * 0.05, 2 * 13.5, 13.5 + 0.05.",
    reference=_weights_of_seven_billion,
    hints=(
        "RLHF plays four roles: policy, reference, reward and value. Which of them need weights of their own once "
        "there is one base under all?",
        "The reference is the base without an adapter: it costs nothing. Policy, value, reward cost an adapter each.",
    ),
    mistakes=(
        Mistake(
            "the value forgotten",
            "PPO's advantages come from a value model: policy, reference, reward and value are four.",
            [40.5, 13.6, 27.0, 13.55],
        ),
        Mistake(
            "DPO without a reference",
            "DPO's loss holds log pi - log pi_ref: a second model, precomputed numbers, or the adapters off.",
            [54.0, 13.65, 13.5, 13.55],
        ),
        Mistake(
            "an adapter for the reference",
            "The reference is the base as it is. Adapters are for what differs from it: policy, value, reward.",
            [54.0, 13.7, 27.0, 13.6],
        ),
        Mistake(
            "a base for each adapter",
            "Adapters of several roles sit on one and the same base: it is counted once.",
            [54.0, 54.15, 27.0, 27.05],
        ),
    ),
)

value_exercise(
    name="dpos_reference",
    question="The article's table says that DPO needs a single model. You train a LoRA adapter with DPO and pass no "
    "ref_model. Where do the reference's log-probs in the loss come from?",
    lesson=9,
    title="DPO's reference",
    difficulty=1,
    importance=5,
    minutes=2,
    rows=(32,),
    errata=("E9",),
    maths="margin = beta (log pi/pi_ref of chosen - log pi/pi_ref of rejected); pi_ref: the base, adapters off",
    options={
        "nowhere": "there is no reference in DPO's loss",
        "adapters_off": "from a second pass through the same model with its adapter switched off",
        "last_step": "from the policy as it was one step earlier",
        "reward_model": "from the reward model",
        "uniform": "they are taken to be the same for both replies, and cancel",
    },
    reference=lambda: "adapters_off",
    hints=(
        "Write the loss down: which two models are in it?",
        "A LoRA adapter is a sum on top of the base's weights. What is left when it is taken away?",
    ),
    mistakes=(
        Mistake(
            "no reference",
            "Without log pi_ref the optimum is no longer pi_ref exp(r / beta) / Z: nothing holds the policy near SFT.",
            "nowhere",
        ),
        Mistake(
            "the last step",
            "That is PPO's old policy, in its ratio. DPO's reference is SFT and stays there.",
            "last_step",
        ),
        Mistake(
            "a reward model",
            "A reward model gives scores, not log-probs, and DPO has none.",
            "reward_model",
        ),
        Mistake(
            "a uniform reference",
            "It cancels only if SFT gave both replies the same probability, which it does not.",
            "uniform",
        ),
    ),
)

value_exercise(
    name="choose_fixed_pairs",
    question="30,000 pairs, sampled from your own SFT model and labelled by people, cover well what it says. Nothing "
    "can score a new reply, one GPU with 16 GB is there, and the model is to be trained again every week. What first?",
    lesson=9,
    title="Which would you choose (1)",
    difficulty=2,
    importance=5,
    minutes=3,
    rows=(66,),
    errata=("E11",),
    maths="Pairs from the policy's own reference that cover what it says: there DPO's optimum is RLHF's, for less.",
    options={
        "dpo": "DPO on those pairs",
        "ppo": "a reward model and PPO",
        "best_of_n": "no training: best of n at the time of answering",
        "sft": "SFT on the chosen replies",
        "more_pairs": "no training yet: ten times as many pairs first",
    },
    reference=lambda: "dpo",
    hints=(
        "When do DPO and RLHF have the same optimum (lesson 04)? Do the conditions hold here?",
        "What would PPO add? A reward learned from the same pairs, and a second stage to pay for every week.",
    ),
    mistakes=(
        Mistake(
            "PPO without a better reward",
            "PPO needs something that scores new replies. A reward model from the same pairs can be trained, but where "
            "the pairs cover what the policy says, begin with what costs less and measure what it leaves.",
            "ppo",
        ),
        Mistake(
            "best of n without a judge",
            "Best of n needs a score for each new reply, and costs n replies for every answer.",
            "best_of_n",
        ),
        Mistake(
            "the rejected replies thrown away",
            "Half of each label is which reply is worse. SFT on the chosen learns to answer as they do, no better.",
            "sft",
        ),
        Mistake(
            "labels before a measurement",
            "Labels are the dearest part. Train on the pairs there are, measure, and then say what is missing.",
            "more_pairs",
        ),
    ),
)

value_exercise(
    name="choose_live_reward",
    question="The pairs at hand were written by another company's model and look little like what yours says. But unit "
    "tests can judge any reply your model gives, you have GPUs to sample with, and latency rules out more than one "
    "reply for each question. What first?",
    lesson=9,
    title="Which would you choose (2)",
    difficulty=2,
    importance=5,
    minutes=3,
    rows=(66,),
    errata=("E11",),
    maths="A reward that holds where no pair reaches is what sampling methods can use and a fixed set of pairs cannot.",
    options={
        "these_pairs": "DPO on the pairs at hand",
        "learned_reward": "a reward model fitted to the pairs at hand, and PPO against it",
        "sampling": "PPO, or another method that samples from the policy, against the unit tests",
        "best_of_many": "no training: best of n at the time of answering",
        "imitation": "SFT on the chosen replies",
    },
    reference=lambda: "sampling",
    hints=(
        "What does DPO's loss say of a reply that is in no pair (lesson 04)?",
        "Where would a reward be right that was not learned from those pairs?",
    ),
    mistakes=(
        Mistake(
            "DPO for everything",
            "DPO's loss says nothing of replies that no pair holds, and these pairs are not of what your model says. "
            "Here something scores what it does say.",
            "these_pairs",
        ),
        Mistake(
            "a reward learned from the wrong pairs",
            "A reward model knows what its pairs showed. Off them it guesses, and PPO will find where it guesses high.",
            "learned_reward",
        ),
        Mistake(
            "latency forgotten",
            "Best of n samples n replies for each question. It is a fine baseline, but ruled out here.",
            "best_of_many",
        ),
        Mistake(
            "imitation of another model",
            "SFT on their replies teaches to sound like them. The unit tests know what is right.",
            "imitation",
        ),
    ),
)
