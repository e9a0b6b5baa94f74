"""Exercises of lesson 07: from a sampled batch to one minibatch's loss, in the engine's layout, and reading its curves.

The engine's layout: a row a reply, which ends in the last column, so that padding is on the left.
"""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab import losses, returns
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.exercises.inputs import in_padding, normal, tensor
from rlhf_lab.ppo.rollout import response_mask

MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])


# --- phase 1: what is reply ---------------------------------------------------------------------------------------


def _after_first_stop(responses: Tensor, stop_id: int) -> Tensor:
    return (responses == stop_id).cumsum(1) > 0


@function_exercise(
    lesson=7,
    title="Which tokens are the reply",
    difficulty=2,
    importance=5,
    minutes=8,
    rows=(8, 19),
    errata=("E20",),
    maths="mask_t = 1 up to and with the first stop token; ended = there is one",
    reference=response_mask,
    cases=lambda: [
        (torch.tensor([[7, 2, 0, 0]]), 2),
        (torch.tensor([[7, 8, 9]]), 2),
        (torch.tensor([[5, 2, 2, 2]]), 2),
        (torch.tensor([[2, 9, 9, 0]]), 2),
        (torch.tensor([[7, 2, 9, 2], [2, 0, 0, 0], [4, 5, 6, 7], [4, 5, 6, 2]]), 2),
    ],
    hints=(
        "(responses == stop_id).cumsum(1) counts the stop tokens up to and with each position.",
        "Before the first stop the count is 0. At the first stop it is 1, and there the token itself is a stop: count "
        "minus (responses == stop_id) is 0 exactly up to and with the first stop.",
    ),
    mistakes=(
        Mistake(
            "the end left out",
            "The stop token is an action of the policy like any other, and the one that is learned worst without a "
            "gradient: left out, nothing teaches the policy to end. mask = 1 up to AND WITH the first stop.",
            lambda responses, stop_id: (~_after_first_stop(responses, stop_id), (responses == stop_id).any(1)),
        ),
        Mistake(
            "padding taken for reply",
            "All ones: what stands behind the end was never chosen by the policy, and is now trained on.",
            lambda responses, stop_id: (
                torch.ones_like(responses, dtype=torch.bool),
                (responses == stop_id).any(1),
            ),
        ),
        Mistake(
            "whatever is no stop token",
            "responses != stop_id keeps what stands behind the end, and drops the end itself.",
            lambda responses, stop_id: (responses != stop_id, (responses == stop_id).any(1)),
        ),
        Mistake(
            "up to the last stop token",
            "The reply is over at the first stop; where pad = eos, the last one is at the end of the row.",
            lambda responses, stop_id: (
                ((responses == stop_id).flip(1).cumsum(1).flip(1) > 0) | ~(responses == stop_id).any(1, keepdim=True),
                (responses == stop_id).any(1),
            ),
        ),
        Mistake(
            "every reply has ended",
            "A reply that met the length limit has no stop token: ended is False, and missing_eos_penalty is due.",
            lambda responses, stop_id: (
                response_mask(responses, stop_id)[0],
                torch.ones(len(responses), dtype=torch.bool),
            ),
        ),
        Mistake(
            "ended read from the last column",
            "A short reply ends early and its last column is padding. ended: is there a stop token anywhere in it?",
            lambda responses, stop_id: (response_mask(responses, stop_id)[0], responses[:, -1] == stop_id),
        ),
    ),
)
def reply_mask(responses, stop_id):
    """(mask, ended): which tokens belong to each reply, (batch, seq) bool, and whether it ended by itself, (batch,).

    responses: sampled token ids, (batch, seq). Behind the first stop_id stands anything: padding, or more stop_ids.
    """
    ...


# --- phase 2: how far from the reference --------------------------------------------------------------------------


def _mean_reply_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Tensor:
    """What the engine logs as objective/kl."""
    k1 = returns.kl_estimate(logps, ref_logps, "k1")
    return k1.masked_fill(mask == 0, 0.0).sum(1).mean()


def _kl_cases() -> list[tuple]:
    logps, ref = -normal(20, 3, 4).abs(), -normal(21, 3, 4).abs()
    return [
        (tensor([-0.5]), tensor([-1.5]), torch.tensor([[1]])),
        (tensor([-2.0, -0.5]), tensor([-0.4, -1.0]), torch.tensor([[1, 1]])),
        (tensor([-0.1, -0.5], [-2.0, -1.0]), tensor([-7.0, -1.5], [-2.5, -1.4]), torch.tensor([[0, 1], [1, 1]])),
        (in_padding(logps, MASK, -9.0), in_padding(ref, MASK, -1.0), MASK),
    ]


@function_exercise(
    lesson=7,
    title="The KL on the dashboard, and its sign",
    difficulty=2,
    importance=5,
    minutes=8,
    rows=(8, 41),
    errata=("E17",),
    maths="objective/kl = mean over replies of (sum over the reply's tokens of log pi - log pi_ref), in nats a reply",
    reference=_mean_reply_kl,
    cases=_kl_cases,
    hints=(
        "log pi(y|x) is a sum over tokens, so the KL of a reply is a sum too. The mean is over replies.",
        "Zero the padding before the sum: (...).masked_fill(mask == 0, 0).sum(1).mean().",
    ),
    mistakes=(
        Mistake(
            "reference minus policy",
            "On samples of the policy, log pi - log pi_ref has the KL as its mean. Turned round, a healthy run shows a "
            "negative KL, and a penalty made of it pays for drifting away.",
            lambda logps, ref_logps, mask: _mean_reply_kl(ref_logps, logps, mask),
        ),
        Mistake(
            "the mean over tokens",
            "That is nats a token. A reply's log-prob is the sum over its tokens: sum over each row, then the mean.",
            lambda logps, ref_logps, mask: losses.masked_mean(logps - ref_logps, mask),
        ),
        Mistake(
            "padding counted",
            "What stands where mask is 0 is nobody's choice. Put 0 there before the sum.",
            lambda logps, ref_logps, mask: (logps - ref_logps).sum(1).mean(),
        ),
        Mistake(
            "made positive by abs",
            "Single terms may be negative; only their mean is a KL. |.| hides the very sign that tells of a bug.",
            lambda logps, ref_logps, mask: (logps - ref_logps).abs().masked_fill(mask == 0, 0.0).sum(1).mean(),
        ),
        Mistake(
            "the sum over the batch",
            "It grows with the number of replies. The mean over replies does not.",
            lambda logps, ref_logps, mask: (logps - ref_logps).masked_fill(mask == 0, 0.0).sum(),
        ),
        Mistake(
            "k3 in place of k1",
            "k3 has the same mean and is never negative; the engine logs k1, whose sign is a check on the sampling.",
            lambda logps, ref_logps, mask: (
                returns.kl_estimate(logps, ref_logps, "k3").masked_fill(mask == 0, 0.0).sum(1).mean()
            ),
        ),
    ),
)
def mean_reply_kl(logps, ref_logps, mask):
    """KL(policy || reference) in nats a reply, as PPO logs it: a scalar tensor.

    logps, ref_logps: log-probs of the sampled tokens, (batch, seq). mask: 1 on real tokens, 0 on padding (which holds
    anything).
    """
    ...


# --- phase 3: rewards and advantages ------------------------------------------------------------------------------


def _scored_rewards(
    scores: Tensor,
    ended: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    kl_coef: float,
    missing_eos_penalty: float,
) -> Tensor:
    scores = scores - missing_eos_penalty * (~ended.bool())
    return returns.per_token_rewards(scores, logps, ref_logps, mask, kl_coef)


def _scored_cases() -> list[tuple]:
    logps, ref = -normal(22, 3, 4).abs(), -normal(23, 3, 4).abs()
    batch = (in_padding(logps, MASK, -9.0), in_padding(ref, MASK, -1.0), MASK)
    yes, no = torch.tensor([True]), torch.tensor([False])
    return [
        (tensor(2.0), yes, tensor([-1.0]), tensor([-3.0]), torch.tensor([[1]]), 0.1, 1.0),
        (tensor(2.0), no, tensor([-1.0]), tensor([-3.0]), torch.tensor([[1]]), 0.1, 1.0),
        (tensor(1.0), yes, tensor([-5.0, -0.5]), tensor([-1.0, -0.2]), torch.tensor([[0, 1]]), 0.5, 2.0),
        (tensor(1.0, -0.5, 2.0), torch.tensor([True, False, True]), *batch, 0.1, 1.0),
        (tensor(-1.0, 0.3, 0.0), torch.tensor([False, False, True]), *batch, 0.5, 0.5),
    ]


def _score_where_right_padding_ends(
    scores: Tensor, ended: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float, penalty: float
) -> Tensor:
    rewards = _scored_rewards(torch.zeros_like(scores), torch.ones_like(ended), logps, ref_logps, mask, kl_coef, 0.0)
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores - penalty * (~ended)
    return rewards


@function_exercise(
    lesson=7,
    title="Token rewards, with the penalty for no end",
    difficulty=3,
    importance=5,
    minutes=12,
    rows=(8, 19),
    errata=("E20",),
    maths="r_t = -beta (log pi - log pi_ref) at every real token; at the last one also + score - penalty if the reply "
    "has no end",
    reference=_scored_rewards,
    cases=_scored_cases,
    hints=(
        "First the scores: take missing_eos_penalty off where ended is False (~ended).",
        "Then -kl_coef * (logps - ref_logps), 0 at the padding. In the engine's layout every reply ends in the same "
        "column.",
    ),
    mistakes=(
        Mistake(
            "the last token of a reply padded on the right",
            "mask.sum(1) - 1 counts from the left, as in lesson 03. Here padding is on the left, and every reply ends "
            "in the last column: rewards[:, -1].",
            _score_where_right_padding_ends,
        ),
        Mistake(
            "the penalty on those that ended",
            "It is for replies WITHOUT an end: ~ended.",
            lambda scores, ended, *rest: _scored_rewards(scores, ~ended, *rest),
        ),
        Mistake(
            "the penalty added",
            "A penalty is taken off the score.",
            lambda scores, ended, logps, ref_logps, mask, kl_coef, penalty: _scored_rewards(
                scores, ended, logps, ref_logps, mask, kl_coef, -penalty
            ),
        ),
        Mistake(
            "no penalty",
            "A reply that met the length limit was never finished, and the reward model has read half a thought.",
            lambda scores, ended, *rest: _scored_rewards(scores, torch.ones_like(ended), *rest),
        ),
        Mistake(
            "the KL with its sign turned",
            "The penalty is -beta (log pi - log pi_ref). Turned round, drifting away is paid for.",
            lambda scores, ended, logps, ref_logps, mask, kl_coef, penalty: _scored_rewards(
                scores, ended, logps, ref_logps, mask, -kl_coef, penalty
            ),
        ),
        Mistake(
            "KL on padding",
            "Padding is nobody's choice and costs nothing: 0 where mask is 0.",
            lambda scores, ended, logps, ref_logps, mask, kl_coef, penalty: (
                _scored_rewards(scores, ended, logps, ref_logps, mask, 0.0, penalty) - kl_coef * (logps - ref_logps)
            ),
        ),
        Mistake(
            "the score at every token",
            "The reply is scored once, when it is finished: only the last real token gets it.",
            lambda scores, ended, logps, ref_logps, mask, kl_coef, penalty: (
                _scored_rewards(torch.zeros_like(scores), ended, logps, ref_logps, mask, kl_coef, 0.0)
                + (scores - penalty * (~ended))[:, None] * mask
            ),
        ),
    ),
)
def scored_rewards(scores, ended, logps, ref_logps, mask, kl_coef, missing_eos_penalty):
    """Rewards of the tokens of each reply in the engine's layout: (batch, seq), 0 at the padding.

    scores: (batch,). ended: bool, (batch,). logps, ref_logps: (batch, seq). mask: 0 on padding, which is on the LEFT,
    then 1 to the last column. kl_coef: beta; larger holds the policy closer to the reference.
    """
    ...


def _whitened_advantages(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return returns.whiten(returns.gae(rewards, values, mask, 1.0, 1.0)[0], mask)


def _advantage_cases() -> list[tuple]:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]])
    rewards, values = in_padding(normal(24, 3, 4), mask, 8.0), in_padding(normal(25, 3, 4), mask, -6.0)
    ones = torch.ones(1, 3)
    return [
        (tensor([0.0, 0.0, 1.0]), tensor([0.5, 0.2, 0.9]), ones),
        (tensor([0.1, -0.2, 1.0]), tensor([0.5, 0.3, -0.4]), ones),
        (rewards, values, mask),
    ]


def _by_reply(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    plain = returns.gae(rewards, values, mask, 1.0, 1.0)[0]
    return torch.cat([returns.whiten(row[None], m[None]) for row, m in zip(plain, mask, strict=True)])


def _whitened_with_padding(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    plain = returns.gae(rewards, values, mask, 1.0, 1.0)[0]
    return returns.whiten(plain, torch.ones_like(mask)).masked_fill(mask == 0, 0.0)


def _summed_from_the_front(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    so_far = rewards.masked_fill(mask == 0, 0.0).cumsum(1)
    return returns.whiten(so_far - values.masked_fill(mask == 0, 0.0), mask)


@function_exercise(
    lesson=7,
    title="Advantages, whitened over the batch",
    difficulty=3,
    importance=4,
    minutes=12,
    rows=(8, 19),
    errata=("E20",),
    maths="gamma = lambda = 1: A_t = (r_t + r_{t+1} + ... to the end) - V_t; then (A - mean) / std over all real "
    "tokens of the batch",
    reference=_whitened_advantages,
    cases=_advantage_cases,
    constants=("values",),
    hints=(
        "Rewards to come: zero the padding, then flip(1).cumsum(1).flip(1). Take the values off.",
        "Mean and standard deviation over a[mask.bool()], of the whole batch; 0 at the padding at the end.",
    ),
    mistakes=(
        Mistake(
            "whitened reply by reply",
            "Then a bad reply has advantages as high as a good one. One mean and one deviation for the whole batch. "
            "(GRPO compares replies of one prompt; it does not whiten inside a reply either.)",
            _by_reply,
        ),
        Mistake(
            "padding counted",
            "The zeros at the padding pull the mean to 0 and shrink the deviation: both over mask == 1 only.",
            _whitened_with_padding,
        ),
        Mistake(
            "not whitened",
            "The advantages are right; they still have to be shifted and scaled.",
            lambda rewards, values, mask: returns.gae(rewards, values, mask, 1.0, 1.0)[0],
        ),
        Mistake(
            "no baseline",
            "An advantage is what is better than expected: take V_t off.",
            lambda rewards, values, mask: _whitened_advantages(rewards, torch.zeros_like(values), mask),
        ),
        Mistake(
            "rewards of the past",
            "A token is judged by what comes after it: sum from the token to the end, not from the start.",
            _summed_from_the_front,
        ),
        Mistake(
            "one step only",
            "r_t + V_{t+1} - V_t is lambda = 0. Here lambda = 1: the whole sum of rewards to come.",
            lambda rewards, values, mask: returns.whiten(returns.gae(rewards, values, mask, 1.0, 0.0)[0], mask),
        ),
        Mistake(
            "missing detach",
            "Advantages are constants to the policy loss: a path through the values would train the critic to flatter "
            "the policy. Compute them under torch.no_grad().",
            lambda rewards, values, mask: returns.whiten(
                returns.gae.__wrapped__(rewards, values, mask, 1.0, 1.0)[0], mask
            ),
        ),
    ),
)
def whitened_advantages(rewards, values, mask):
    """Advantages with gamma = lambda = 1, whitened: (batch, seq), 0 at the padding, without gradient.

    rewards, values, mask: (batch, seq), padding anywhere (and anything in it).
    """
    ...


# --- phase 4: the update ------------------------------------------------------------------------------------------


def _clip_fraction(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip_range: float) -> Tensor:
    return losses.ppo_policy_stats(logps, old_logps, advantages, mask, clip_range)["clipfrac"]


def _clip_cases() -> list[tuple]:
    def one(ratio: float, advantage: float) -> tuple:
        return tensor([math.log(ratio)]), tensor([0.0]), tensor([advantage]), torch.ones(1, 1), 0.2

    old, advantages = -1.5 + 0.3 * normal(26, 3, 4), normal(27, 3, 4)
    logps = old + 0.4 * normal(28, 3, 4)
    batch = (in_padding(logps, MASK, -0.5), in_padding(old, MASK, -3.0), in_padding(advantages, MASK, 7.0), MASK)
    return [one(1.5, 1.0), one(1.5, -1.0), one(0.5, -1.0), one(0.5, 1.0), one(1.1, 1.0), (*batch, 0.2), (*batch, 0.05)]


def _share(clipped: Callable, mean: Callable = losses.masked_mean) -> Callable:
    def wrong(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip_range: float) -> Tensor:
        return mean(clipped((logps - old_logps).exp(), advantages, clip_range).double(), mask)

    return wrong


def _clipped(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    return ((advantages > 0) & (ratio > 1 + clip_range)) | ((advantages < 0) & (ratio < 1 - clip_range))


@function_exercise(
    lesson=7,
    title="The clip fraction",
    difficulty=3,
    importance=4,
    minutes=10,
    rows=(8, 41),
    errata=("E17",),
    maths="share of real tokens whose gradient the clip removes: A > 0 and ratio > 1 + eps, or A < 0 and ratio < "
    "1 - eps",
    reference=_clip_fraction,
    cases=_clip_cases,
    hints=(
        "Which of the four corners of lesson 03 has gradient 0? The sign of the advantage chooses the side.",
        "A bool tensor of clipped tokens, as floats, then the masked mean.",
    ),
    mistakes=(
        Mistake(
            "either side, whatever the advantage",
            "|ratio - 1| > eps counts tokens that keep their whole gradient: with A < 0 a ratio of 1.5 is not clipped.",
            _share(lambda ratio, advantages, eps: (ratio - 1).abs() > eps),
        ),
        Mistake(
            "the wrong side",
            "Past the clip the way the advantage asks: above 1 + eps when A > 0, below 1 - eps when A < 0.",
            _share(lambda ratio, advantages, eps: _clipped(ratio, -advantages, eps)),
        ),
        Mistake(
            "padding counted",
            "Padding has a ratio too, of nothing. Count real tokens only, above and below the line.",
            _share(_clipped, lambda x, mask: x.mean()),
        ),
        Mistake(
            "padding in the denominator",
            "Divide by the number of real tokens.",
            _share(_clipped, lambda x, mask: (x * mask).mean()),
        ),
        Mistake(
            "a count in place of a share",
            "Divide by the number of real tokens.",
            _share(_clipped, lambda x, mask: (x * mask).sum()),
        ),
        Mistake(
            "only the upper side",
            "Tokens with A < 0 are clipped too, below 1 - eps.",
            _share(lambda ratio, advantages, eps: (advantages > 0) & (ratio > 1 + eps)),
        ),
    ),
)
def clip_fraction(logps, old_logps, advantages, mask, clip_range):
    """Share of real tokens whose gradient PPO's clip removes: a scalar tensor between 0 and 1.

    logps, old_logps, advantages: (batch, seq). mask: 1 on real tokens, 0 on padding (which holds anything).
    """
    ...


_TARGET_KL = {
    "sampler": "KL between the policy now and the policy that sampled this batch; above it, this batch's passes end",
    "reference": "KL between the policy and the reference; above it, training ends",
    "beta": "KL between the policy and the reference; beta follows it",
    "tokens": "KL of single tokens to the reference; tokens above it get no gradient",
    "ratio": "the distance of the ratio from 1; above it, a token gets no gradient",
}

what_target_kl_watches = value_exercise(
    name="what_target_kl_watches",
    question="The article sets early_stopping=True and target_kl=0.1 with the comment 'KL divergence limit'. What does "
    "that limit watch, and what happens above it?",
    lesson=7,
    title="What target_kl limits",
    difficulty=2,
    importance=4,
    minutes=4,
    rows=(41,),
    errata=("E17",),
    maths="approxkl = mean of (log pi - log pi_old)^2 / 2, new policy against the one that sampled; above target_kl "
    "the passes over this batch end",
    reference=lambda: "sampler",
    options=_TARGET_KL,
    hints=(
        "PPO has two other policies beside the one being trained. Which of them changes with every batch?",
        "Look at what the engine's update compares with target_kl: policy/approxkl_avg. Which log-probs is it made of?",
    ),
    mistakes=(
        Mistake(
            "the reference in place of the old policy",
            "A run can drift 10 nats from the reference in steps that are each far below 0.1 from the last policy. "
            "The distance to the reference is the work of kl_coef (beta: larger holds the policy closer to it).",
            "reference",
        ),
        Mistake(
            "the adaptive controller",
            "That is adap_kl_ctrl with `target`, another field: it moves beta so that the KL to the reference holds "
            "the target. target_kl moves nothing, it ends a batch's passes.",
            "beta",
        ),
        Mistake(
            "a limit for single tokens",
            "It is one mean over the batch, and it is not of the reference: no token is singled out.",
            "tokens",
        ),
        Mistake("the clip", "That is cliprange. target_kl is a KL, in nats a token, averaged over the batch.", "ratio"),
    ),
)


# --- reading curves -----------------------------------------------------------------------------------------------

FAULTS = ("no kl", "sampling", "rate", "padding", "end", "value")


def _four_words(answer: object) -> tuple[str, ...]:
    words = [answer] if isinstance(answer, str) else answer
    if not isinstance(words, (list, tuple)) or len(words) != 4 or not all(isinstance(word, str) for word in words):
        raise TypeError('Four words are asked for, one a run in the order P, Q, R, S: ["...", "...", "...", "..."]')
    found = tuple(word.strip().lower() for word in words)
    if unknown := [word for word in found if word not in FAULTS]:
        raise TypeError(f"{unknown[0]!r} is none of the faults: {', '.join(FAULTS)}.")
    return found


def _faults_of_the_four() -> list[str]:
    return [
        "padding",
        "value",
        "sampling",
        "end",
    ]  # as the lesson shows the third seed of data/records/ppo_failures.json


diagnose_four_runs = value_exercise(
    name="diagnose_four_runs",
    question="Which fault has each of the runs P, Q, R, S above? A list of four words in that order, each one of: "
    "'no kl' (kl_coef 0), 'sampling' (sampled unlike scored), 'rate' (learning rate x 30), 'padding' (padding taken "
    "for reply), 'end' (no reply ever ends), 'value' (the value never trained).",
    lesson=7,
    title="Four runs, four faults",
    difficulty=4,
    importance=5,
    minutes=12,
    rows=(8, 42),
    errata=("E20",),
    maths="P: replies end, yet each counts as the longest of its batch. Q: all in order but a value loss that does not "
    "fall. R: KL below 0 for good, at ordinary lengths. S: no reply ends, the length stands at the limit",
    reference=_faults_of_the_four,
    canonical=_four_words,
    hints=(
        "Begin with length and with the replies that ended: two of the four are told by these two panels.",
        "Of the other two, one has a KL that cannot be one. The last has everything in order but one panel: which?",
    ),
    mistakes=(
        Mistake(
            "padding and no end confused",
            "Both have long replies. But where padding is taken for reply, replies do end (the last panel says so), "
            "and only their counted length is wrong; where no reply ends, the last panel is at 0.",
            ["end", "value", "sampling", "padding"],
        ),
        Mistake(
            "padding and sampling confused",
            "Both have a KL below 0. Padding makes it of tens and hundreds of nats, and each reply counts as the "
            "longest of its batch. Replies that are not the policy's have usual lengths and a score that stands still.",
            ["sampling", "value", "padding", "end"],
        ),
        Mistake(
            "a KL that is paid for blamed",
            "Q's KL is no higher than a healthy run's. Look at the panel of the value: it says what is expected of a "
            "reply, and here it never gets better at it.",
            ["padding", "no kl", "sampling", "end"],
        ),
        Mistake(
            "Q and R confused",
            "It is R whose KL lies below 0: a mean over replies that are not the policy's. Q's KL is an ordinary one.",
            ["padding", "sampling", "value", "end"],
        ),
    ),
)


# --- from blank ---------------------------------------------------------------------------------------------------


def _minibatch_loss(
    logits: Tensor,
    values: Tensor,
    tokens: Tensor,
    old_logps: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    targets: Tensor,
    mask: Tensor,
    temperature: float,
    cliprange: float,
    cliprange_value: float,
    vf_coef: float,
) -> Tensor:
    logps = losses.token_logps(logits / temperature, tokens)
    policy_loss = losses.ppo_policy_loss(logps, old_logps, advantages, mask, cliprange)
    return policy_loss + vf_coef * losses.ppo_value_loss(values, old_values, targets, mask, cliprange_value)


def _minibatch_cases() -> list[tuple]:
    def case(seed: int, mask: Tensor, vocabulary: int, *numbers: float) -> tuple:
        shape = mask.shape
        logits = 1.5 * normal(seed, *shape, vocabulary)
        tokens = torch.arange(shape.numel()).view(shape) % vocabulary
        old_logps = losses.token_logps(logits / numbers[0], tokens) - 0.3 * normal(seed + 1, *shape)
        known = [normal(seed + i, *shape) for i in (2, 3, 4, 5)]
        filled = (in_padding(x, mask, junk) for x, junk in zip(known, (5, -5, 7, 3), strict=True))
        values, old_values, advantages, targets = filled
        old_logps = in_padding(old_logps, mask, -0.5)
        return logits, values, tokens, old_logps, old_values, advantages, targets, mask, *numbers

    return [
        case(30, torch.ones(1, 1), 2, 1.0, 0.2, 0.2, 0.1),
        case(40, torch.ones(1, 2), 3, 0.7, 0.2, 0.2, 0.1),
        case(50, MASK, 5, 0.7, 0.2, 0.5, 0.1),
        case(60, MASK, 5, 1.3, 0.1, 0.2, 1.0),
    ]


def _wrong_loss(policy=losses.ppo_policy_loss, value=losses.ppo_value_loss, logps=losses.token_logps) -> Callable:
    def wrong(logits, values, tokens, old_logps, old_values, advantages, targets, mask, temperature, *numbers):
        cliprange, cliprange_value, vf_coef = numbers
        new = logps(logits / temperature, tokens)
        loss = policy(new, old_logps, advantages, mask, cliprange)
        return loss + vf_coef * value(values, old_values, targets, mask, cliprange_value)

    return wrong


def _over_everything(loss: Callable) -> Callable:
    """The loss with padding averaged in."""
    return lambda new, old, x, mask, clip: loss(new, old, x, torch.ones_like(mask), clip)


@function_exercise(
    lesson=7,
    title="A minibatch's loss from blank",
    difficulty=4,
    importance=5,
    minutes=25,
    rows=(8, 19, 42),
    errata=("E20",),
    maths="log pi = log_softmax(logits / T) at the sampled token; ratio = exp(log pi - log pi_old); L = masked mean of "
    "max(-ratio A, -clip(ratio) A) + vf_coef * 1/2 masked mean of max((V - R)^2, (clip(V) - R)^2)",
    reference=_minibatch_loss,
    cases=_minibatch_cases,
    differentiable=("logits", "values"),
    hints=(
        "Log-probs first: (logits / temperature).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1). The logits "
        "are already in line with the tokens.",
        "Then two losses you know from lesson 03: clipped policy loss, clipped value loss; both are masked means.",
        "The value's clip: old_values + (values - old_values).clamp(-cliprange_value, cliprange_value).",
    ),
    mistakes=(
        Mistake(
            "the temperature forgotten",
            "The replies were sampled from softmax(logits / T), so the ratio has to be of that policy: else it is not "
            "1 before the first step.",
            lambda *x: _minibatch_loss(*x[:8], 1.0, *x[9:]),
        ),
        Mistake(
            "multiplied by the temperature",
            "Sampling divides the logits by T.",
            lambda *x: _minibatch_loss(*x[:8], 1 / x[8], *x[9:]),
        ),
        Mistake(
            "vf_coef forgotten",
            "The value loss is weighted by vf_coef before it is added.",
            lambda *x: _minibatch_loss(*x[:11], 1.0),
        ),
        Mistake(
            "no value loss",
            "Without it the value is never trained, and advantages stay as noisy as the returns.",
            lambda *x: _minibatch_loss(*x[:11], 0.0),
        ),
        Mistake(
            "half of the value loss forgotten",
            "The engine's value loss has 1/2 in front, as TRL's.",
            lambda *x: _minibatch_loss(*x[:11], 2 * x[11]),
        ),
        Mistake(
            "the sign of the policy loss",
            "The clipped objective is to be raised, the loss lowered: -ratio A.",
            _wrong_loss(policy=lambda *x: -losses.ppo_policy_loss(*x)),
        ),
        Mistake(
            "padding averaged in",
            "Both losses are means over real tokens.",
            _wrong_loss(_over_everything(losses.ppo_policy_loss), _over_everything(losses.ppo_value_loss)),
        ),
        Mistake(
            "probabilities in place of log-probs",
            "old_logps are log-probabilities: log_softmax, not softmax.",
            _wrong_loss(logps=lambda logits, tokens: losses.token_logps(logits, tokens).exp()),
        ),
        Mistake(
            "the ratio upside down",
            "New over old: exp(log pi - log pi_old).",
            _wrong_loss(policy=lambda new, old, *rest: losses.ppo_policy_loss(old, new, *rest)),
        ),
    ),
)
def ppo_minibatch_loss(
    logits,
    values,
    tokens,
    old_logps,
    old_values,
    advantages,
    returns,
    mask,
    temperature,
    cliprange,
    cliprange_value,
    vf_coef,
):
    """Everything PPO minimises on one minibatch: clipped policy loss + vf_coef * clipped value loss, a scalar tensor.

    logits: (batch, seq, vocab), those at [:, t] are for tokens[:, t]. All other tensors: (batch, seq). mask: 1 on real
    tokens; the padding of all others but logits and tokens holds anything.
    """
    ...
