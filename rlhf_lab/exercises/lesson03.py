"""Exercises of lesson 03: the ratio, the clip, the value, KL as a reward, advantages, and ppo_loss from blank."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lab import losses, returns
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.exercises.inputs import in_padding, normal, tensor

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])


# --- the clipped objective ----------------------------------------------------------------------------------------


def _ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    return (logps - old_logps.detach()).exp()


@function_exercise(
    lesson=3,
    title="The probability ratio",
    difficulty=1,
    importance=5,
    minutes=5,
    rows=(16, 18),
    errata=("E20",),
    maths="ratio = pi(a|s) / pi_old(a|s) = exp(log pi - log pi_old); pi_old is a constant",
    reference=_ratio,
    cases=lambda: [
        (tensor(-0.5), tensor(-1.5)),
        (tensor(-1.0, -2.0, -0.3), tensor(-1.0, -1.2, -2.3)),
        (-normal(2, 2, 3).abs(), -normal(3, 2, 3).abs()),
    ],
    differentiable=("logps",),
    constants=("old_logps",),
    hints=(
        "log(p / q) = log p - log q. How do you come back from the logarithm?",
        "The old policy took the sample; nothing is to be learned through it: old_logps.detach().",
    ),
    mistakes=(
        Mistake(
            "the log-ratio",
            "log pi - log pi_old is 0 where nothing has changed; the ratio is 1 there. exp is missing.",
            lambda logps, old_logps: logps - old_logps.detach(),
        ),
        Mistake(
            "a quotient of log-probs",
            "log a / log b is not log(a / b). Subtract, then exp.",
            lambda logps, old_logps: logps / old_logps.detach(),
        ),
        Mistake(
            "upside down",
            "New over old: exp(logps - old_logps).",
            lambda logps, old_logps: (old_logps.detach() - logps).exp(),
        ),
        Mistake(
            "a difference of probabilities",
            "exp(log pi) - exp(log pi_old) is a difference. The importance weight is a ratio.",
            lambda logps, old_logps: logps.exp() - old_logps.detach().exp(),
        ),
        Mistake(
            "missing detach",
            "The ratio is pi / pi_old with pi_old fixed when the reply was sampled. A gradient through old_logps "
            "pushes the other way, and where both come from the same weights it cancels the update to exactly 0. Use "
            "old_logps.detach(), or compute it under torch.no_grad().",
            lambda logps, old_logps: (logps - old_logps).exp(),
        ),
    ),
)
def probability_ratio(logps, old_logps):
    """pi(a|s) / pi_old(a|s) for each token, of the shape of logps.

    logps, old_logps: log-probs of the sampled tokens under the policy now and under the one that sampled.
    Only logps may carry a gradient, even if the caller forgot to detach old_logps.
    """
    ...


def _clip_gradients() -> list[list[float]]:
    """d ppo_policy_loss / d logps for one token, at three ratios, for both signs of the advantage."""
    rows = []
    for advantage in (1.0, -1.0):
        logps = tensor([0.5], [1.0], [1.5]).log().requires_grad_()
        one, mask = torch.full_like(logps, advantage), torch.ones_like(logps)
        loss = 3 * losses.ppo_policy_loss(logps, torch.zeros_like(logps), one, mask, clip_range=0.2)
        gradient = torch.autograd.grad(loss, logps)[0]  # 3 *: the loss is a mean over three tokens
        rows.append([round(x, 9) + 0.0 for x in gradient.flatten().tolist()])
    return rows


clip_gradients = value_exercise(
    name="clip_gradients",
    question="PPO's clipped loss for one token, clip range 0.2. What is d loss / d log pi at ratio 0.5, 1 and 1.5? "
    "Two rows: advantage +1, then advantage -1, as in [[a, b, c], [d, e, f]]. (ratio = exp(log pi - log pi_old).)",
    lesson=3,
    title="When the clip is felt, for both signs",
    difficulty=3,
    importance=5,
    minutes=10,
    rows=(15, 16, 17),
    errata=("E4",),
    maths="loss = -min(ratio A, clip(ratio, 0.8, 1.2) A); unclipped, d loss / d log pi = -A ratio; where the clipped "
    "term is the smaller one, 0",
    reference=_clip_gradients,
    hints=(
        "d ratio / d log pi = ratio. So without any clip, d loss / d log pi = -A * ratio.",
        "For each of the six compute ratio * A and clip(ratio) * A. If the second is the smaller, the gradient is 0.",
        "A = +1 at ratio 0.5: min(0.5, 0.8) is the unclipped 0.5, so the gradient lives. A = -1 there: min(-0.5, "
        "-0.8).",
    ),
    mistakes=(
        Mistake(
            "clipped on both sides",
            "The article's reading: outside 0.8 to 1.2, nothing. But min keeps the worse value: with A = +1 a ratio of "
            "0.5 still has its gradient, and with A = -1 one of 1.5, since the token has to come back.",
            [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]],
        ),
        Mistake(
            "no clip",
            "That is -A * ratio everywhere. At A = +1, ratio 1.5 and at A = -1, ratio 0.5 the clipped term is the "
            "smaller one, and it is constant: gradient 0.",
            [[-0.5, -1.0, -1.5], [0.5, 1.0, 1.5]],
        ),
        Mistake(
            "the objective in place of the loss",
            "All signs are turned: the loss is minus the objective.",
            [[0.5, 1.0, 0.0], [0.0, -1.0, -1.5]],
        ),
        Mistake(
            "the derivative by the ratio",
            "d loss / d ratio is -A; for log pi it is multiplied by d ratio / d log pi = ratio.",
            [[-1.0, -1.0, 0.0], [0.0, 1.0, 1.0]],
        ),
        Mistake(
            "max for min",
            "With max the gradient lives where the ratio is already past the clip, and dies where it should come back.",
            [[0.0, -1.0, -1.5], [0.5, 1.0, 0.0]],
        ),
        Mistake(
            "the loss itself",
            "These are the values of the loss, -min(...). Its derivative by log pi is -A * ratio, or 0 where clipped.",
            [[-0.5, -1.0, -1.2], [0.8, 1.0, 1.5]],
        ),
    ),
)


_CLIP = {
    "gradient": "it removes the gradient of tokens whose ratio has gone far enough the way the advantage asks",
    "ratio": "it keeps every ratio between 0.8 and 1.2",
    "elimination": "it keeps the probability of every token above 0",
    "reference": "it keeps the policy close to the reference model",
    "reward": "it keeps the reward between fixed limits",
}

what_the_clip_does = value_exercise(
    name="what_the_clip_does",
    question="Training takes many gradient steps on one batch of samples. What does PPO's clip at 0.2 do?",
    lesson=3,
    title="What the clip does, and what it does not",
    difficulty=2,
    importance=5,
    minutes=4,
    rows=(13, 14, 17),
    errata=("E4",),
    maths="d/d theta of min(ratio A, clip(ratio) A) = 0 past the clip; nothing in it pushes a ratio back",
    reference=lambda: "gradient",
    options=_CLIP,
    hints=(
        "Past the clip the objective is flat. What does a flat objective do to a ratio that is already at 3?",
        "All weights are shared: other tokens' gradients go on moving this token's ratio.",
    ),
    mistakes=(
        Mistake(
            "the clip as a bound",
            "It bounds nothing: past the clip the gradient is 0, and a ratio that other tokens' updates carry to 3 "
            "stays there. A run with many steps shows it.",
            "ratio",
        ),
        Mistake(
            "the clip against elimination",
            "The article says so. With A < 0 the gradient stops once the ratio is below 0.8, but only for this batch: "
            "the next one has a new pi_old and the probability goes on falling.",
            "elimination",
        ),
        Mistake(
            "pi_old taken for the reference",
            "The ratio is against the policy that sampled this batch. Closeness to the reference is the work of beta "
            "KL.",
            "reference",
        ),
        Mistake("the clip on the reward", "It is the ratio that is clipped, inside the loss.", "reward"),
    ),
)


# --- averages over tokens -----------------------------------------------------------------------------------------


@function_exercise(
    lesson=3,
    title="The mean over real tokens",
    difficulty=1,
    importance=4,
    minutes=5,
    rows=(18,),
    errata=("E21",),
    maths="masked mean = (sum of x where mask is 1) / (number of ones in mask)",
    reference=losses.masked_mean,
    cases=lambda: [
        (tensor([2.0, 4.0, 9.0]), torch.tensor([[1, 1, 0]])),
        (tensor([1.0, 5.0], [2.0, 7.0]), torch.tensor([[1, 1], [1, 0]])),
        (tensor([0.5, -1.0, math.nan]), torch.tensor([[1, 1, 0]])),
        (in_padding(normal(0, 3, 4), MASK, 30.0), MASK),
    ],
    differentiable=("x",),
    hints=(
        "What has to be in the denominator: all positions, or the ones that count?",
        "Padding can hold anything, even nan, and nan * 0 is nan: choose with x[mask] or masked_fill, do not multiply.",
    ),
    mistakes=(
        Mistake(
            "padding averaged in",
            "x.mean() reads padding too, so the loss depends on how far the batch was padded.",
            lambda x, mask: x.mean(),
        ),
        Mistake(
            "padding in the denominator",
            "The sum leaves padding out and the count does not: divide by mask.sum().",
            lambda x, mask: x.masked_fill(mask == 0, 0.0).mean(),
        ),
        Mistake(
            "0 times nan",
            "Multiplying by the mask does not remove nan or inf, since 0 * nan is nan. Use x[mask.bool()] or "
            "masked_fill.",
            lambda x, mask: (x * mask).sum() / mask.sum(),
        ),
        Mistake(
            "the mean of the rows' means",
            "That weighs a token of a short reply more than one of a long reply. One sum, one count.",
            lambda x, mask: (x.masked_fill(mask == 0, 0.0).sum(1) / mask.sum(1)).mean(),
        ),
        Mistake("sum in place of the mean", "Divide by mask.sum().", lambda x, mask: x[mask.bool()].sum()),
        Mistake(
            "divided by the number of rows",
            "The mean is over tokens: divide by mask.sum(), not by the batch size.",
            lambda x, mask: x[mask.bool()].sum() / len(x),
        ),
    ),
)
def masked_mean(x, mask):
    """Mean of x where mask is 1, over the whole batch: a scalar tensor.

    x, mask: tensors (batch, seq). What stands at the padding, where mask is 0, may be anything.
    """
    ...


def _whiten(x: Tensor, mask: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((x - mean) / scale).masked_fill(mask == 0, 0.0)


@function_exercise(
    lesson=3,
    title="Whitening",
    difficulty=2,
    importance=2,
    minutes=8,
    rows=(19,),
    errata=("E20",),
    maths="(x - mean) / std over the real tokens of the whole batch; std from the unbiased variance, divided by n - 1",
    reference=returns.whiten,
    cases=lambda: [
        (tensor([1.0, 4.0]), torch.tensor([[1, 1]])),
        (tensor([1.0, 4.0, 7.0, 50.0]), torch.tensor([[1, 1, 1, 0]])),
        (in_padding(2 + 3 * normal(1, 3, 4), MASK, 30.0), MASK),
    ],
    hints=(
        "Mean and standard deviation first, both over x[mask.bool()].",
        "torch's .std() and .var() divide by n - 1. Put 0 at the padding at the end.",
    ),
    mistakes=(
        Mistake(
            "padding counted",
            "Mean and standard deviation are taken over padding as well. Use x[mask.bool()] for both.",
            lambda x, mask: _whiten(x, mask, x.mean(), x.std()),
        ),
        Mistake(
            "variance in place of the standard deviation",
            "Divide by the square root of the variance, or the result does not have variance 1.",
            lambda x, mask: _whiten(x, mask, x[mask.bool()].mean(), x[mask.bool()].var()),
        ),
        Mistake(
            "the biased variance",
            "TRL, and this exercise, divide by n - 1 (torch's default; numpy's default is n).",
            lambda x, mask: _whiten(x, mask, x[mask.bool()].mean(), x[mask.bool()].std(unbiased=False)),
        ),
        Mistake(
            "the mean kept",
            "Advantages are to have mean 0 too: subtract it.",
            lambda x, mask: _whiten(x, mask, x.new_zeros(()), x[mask.bool()].std()),
        ),
        Mistake(
            "shifted and not scaled",
            "The mean is gone, the scale is not: divide by the standard deviation.",
            lambda x, mask: _whiten(x, mask, x[mask.bool()].mean(), x.new_ones(())),
        ),
        Mistake(
            "padding left in the result",
            "Put 0 where mask is 0, or the padding goes on into the next sum.",
            lambda x, mask: (x - x[mask.bool()].mean()) / x[mask.bool()].std(),
        ),
    ),
)
def whiten(x, mask):
    """x shifted to mean 0 and scaled to variance 1 over the real tokens of the whole batch, 0 at the padding.

    x, mask: tensors (batch, seq). Same shape back.
    """
    ...


# --- advantages and the critic ------------------------------------------------------------------------------------


def _gae_cases() -> list[tuple]:
    rewards, values = in_padding(normal(14, 3, 4), MASK, 8.0), in_padding(normal(15, 3, 4), MASK, -6.0)
    ones = torch.ones(1, 3)
    return [
        (tensor([0.0, 1.0]), tensor([0.5, 0.25]), torch.ones(1, 2), 1.0, 0.5),
        (tensor([0.0, 0.0, 1.0]), tensor([0.5, 0.4, 0.3]), ones, 0.9, 0.5),
        (tensor([0.1, -0.2, 1.0]), tensor([0.5, 0.3, -0.4]), ones, 0.9, 0.95),
        (rewards, values, MASK, 0.99, 0.9),
    ]


def _rewards_to_go(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float) -> Tensor:
    return returns.gae(rewards, torch.zeros_like(values), mask, gamma, 1.0)[0]


def _without_next_value(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple:
    following = F.pad((values * mask)[:, 1:], (0, 1))
    return returns.gae(rewards - gamma * following, values, mask, gamma, lam)


def _reading_padding(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple:
    both = returns.gae(rewards, values, torch.ones_like(mask), gamma, lam)
    return tuple(x.masked_fill(mask == 0, 0.0) for x in both)


def _running_forward(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple:
    delta = returns.gae(rewards, values, mask, gamma, 0.0)[0]
    advantages = [delta[:, 0]]
    for t in range(1, delta.shape[1]):
        advantages.append(delta[:, t] + gamma * lam * advantages[-1])
    stacked = torch.stack(advantages, dim=1).masked_fill(mask == 0, 0.0)
    return stacked, (stacked + values).masked_fill(mask == 0, 0.0)


@function_exercise(
    lesson=3,
    title="Generalised advantage estimation",
    difficulty=4,
    importance=5,
    minutes=20,
    rows=(16, 19),
    errata=("E5",),
    maths="delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1},  return_t = A_t + V_t; after "
    "the last real token V = A = 0",
    reference=returns.gae,
    cases=_gae_cases,
    constants=("values", "rewards"),
    hints=(
        "Go through the tokens from the last to the first and carry two things: A_{t+1} and V_{t+1}.",
        "At the last real token V_{t+1} is 0. At padding leave both at 0, or multiply by the mask.",
        "The value net gets its gradient from the value loss, not from here: torch.no_grad(). Return (A, A + V).",
    ),
    mistakes=(
        Mistake(
            "no baseline",
            "The article calls the reward model's output the advantage. The advantage is what is better than expected: "
            "V_t is subtracted in delta_t.",
            lambda rewards, values, mask, gamma, lam: (_rewards_to_go(rewards, values, mask, gamma),) * 2,
        ),
        Mistake(
            "lambda forgotten",
            "With A_t = delta_t + gamma A_{t+1} this is return minus value (lambda = 1). It is gamma lambda A_{t+1}.",
            lambda rewards, values, mask, gamma, lam: returns.gae(rewards, values, mask, gamma, 1.0),
        ),
        Mistake(
            "one step only",
            "This is delta_t alone (lambda = 0). Later deltas count too: + gamma lambda A_{t+1}.",
            lambda rewards, values, mask, gamma, lam: returns.gae(rewards, values, mask, gamma, 0.0),
        ),
        Mistake(
            "gamma forgotten",
            "The next value is discounted too: r_t + gamma V_{t+1} - V_t, and gamma lambda A_{t+1}.",
            lambda rewards, values, mask, gamma, lam: returns.gae(rewards, values, mask, 1.0, lam),
        ),
        Mistake(
            "V_{t+1} forgotten",
            "delta_t = r_t + gamma V_{t+1} - V_t. Without the next value, a token in the middle looks worse than it "
            "is.",
            _without_next_value,
        ),
        Mistake(
            "a value read from the padding",
            "After the last real token the episode is over: V_{t+1} = 0 there, whatever stands in the padding.",
            _reading_padding,
        ),
        Mistake(
            "returns without the baseline",
            "The value's target is A_t + V_t, which uses lambda as A_t does, not the plain sum of rewards.",
            lambda rewards, values, mask, gamma, lam: (
                returns.gae(rewards, values, mask, gamma, lam)[0],
                _rewards_to_go(rewards, values, mask, gamma),
            ),
        ),
        Mistake(
            "advantages and returns swapped",
            "Return (advantages, returns), in this order.",
            lambda rewards, values, mask, gamma, lam: returns.gae(rewards, values, mask, gamma, lam)[::-1],
        ),
        Mistake(
            "run forward",
            "A_t uses A_{t+1}, the future: start at the last token. Forward, a token is praised for what came before "
            "it.",
            _running_forward,
        ),
        Mistake(
            "missing detach",
            "Advantages and returns are constants to both losses. With a path through the values, the policy loss "
            "would train the value net, to make its own advantages larger. Compute them under torch.no_grad().",
            returns.gae.__wrapped__,
        ),
    ),
)
def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation: (advantages, returns), both (batch, seq), 0 at the padding, without gradient.

    rewards, values: (batch, seq). mask: 1 on real tokens, then 0 (padding on the right).
    """
    ...


def _value_cases() -> list[tuple]:
    def one(value: float, old: float, target: float) -> tuple:
        return tensor([value]), tensor([old]), tensor([target]), torch.ones(1, 1), 0.2

    values, old, targets = (
        in_padding(0.6 * normal(seed, 3, 4), MASK, junk) for seed, junk in ((7, 5.0), (8, -5.0), (9, 0))
    )
    return [one(1.0, 0.0, 2.0), one(0.1, 0.0, 1.0), one(-1.0, 0.0, 2.0), (values, old, targets, MASK, 0.2)]


def _value(combine: Callable, mean: Callable = losses.masked_mean) -> Callable:
    """A wrong value_loss: mean(combine(error of V, error of the clipped V), mask)."""

    def wrong(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float) -> Tensor:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        return mean(combine(values - returns, clipped - returns), mask)

    return wrong


@function_exercise(
    lesson=3,
    title="The value loss",
    difficulty=2,
    importance=3,
    minutes=8,
    rows=(16, 19),
    errata=("E5",),
    maths="L = 1/2 masked mean of max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)",
    reference=losses.ppo_value_loss,
    cases=_value_cases,
    differentiable=("values",),
    hints=(
        "Two squared errors: of V, and of V held within clip_range of its old value. The larger one counts.",
        "clamp takes tensors as limits: values.clamp(old_values - clip_range, old_values + clip_range).",
    ),
    mistakes=(
        Mistake(
            "min for max",
            "The pessimistic one is the larger error: max. With min the clip hides errors.",
            _value(lambda a, b: 0.5 * torch.min(a**2, b**2)),
        ),
        Mistake("one half forgotten", "L = 1/2 ... , as in TRL.", _value(lambda a, b: torch.max(a**2, b**2))),
        Mistake(
            "no clip",
            "This is plain regression, 1/2 (V - R)^2. PPO's value loss takes the larger of this and the clipped one's.",
            _value(lambda a, b: 0.5 * a**2),
        ),
        Mistake(
            "the clip alone",
            "Only the clipped value's error: its gradient is 0 wherever V has moved by more than clip_range. Take max.",
            _value(lambda a, b: 0.5 * b**2),
        ),
        Mistake(
            "absolute errors",
            "Squares, so that the minimum is the mean return.",
            _value(lambda a, b: 0.5 * torch.max(a.abs(), b.abs())),
        ),
        Mistake(
            "clipped like a ratio",
            "1 - eps to 1 + eps is for the ratio. A value is held near its own old value: V_old - eps to V_old + eps.",
            lambda values, old_values, returns, mask, clip_range: losses.ppo_value_loss(
                values, torch.ones_like(values), returns, mask, clip_range
            ),
        ),
        Mistake(
            "padding averaged in",
            "Mean over mask == 1 only.",
            _value(lambda a, b: 0.5 * torch.max(a**2, b**2), lambda x, mask: x.mean()),
        ),
    ),
)
def value_loss(values, old_values, returns, mask, clip_range):
    """PPO's clipped value loss: a scalar tensor. The article has no critic; its advantages need one.

    values, old_values: V now and when the batch was sampled, (batch, seq). returns: the targets. mask: 1 on tokens.
    """
    ...


# --- KL and rewards -----------------------------------------------------------------------------------------------


@function_exercise(
    lesson=3,
    title="Three estimators of the KL",
    difficulty=2,
    importance=3,
    minutes=8,
    rows=(19,),
    errata=("E18",),
    maths="with d = log pi - log pi_ref on tokens sampled from pi: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d",
    reference=returns.kl_estimate,
    cases=lambda: [
        (logps, ref_logps, kind)
        for logps, ref_logps in (
            (tensor(-0.5), tensor(-1.5)),
            (tensor(-1.0, -2.0), tensor(-1.6, -0.4)),
            (-normal(10, 2, 3).abs(), -normal(11, 2, 3).abs()),
        )
        for kind in returns.KL_KINDS
    ],
    hints=(
        "All three are functions of d = logps - ref_logps, element by element.",
        "k3 uses r = pi_ref / pi = exp(-d): it is r - 1 - log r, never negative.",
    ),
    mistakes=(
        Mistake(
            "reference minus policy",
            "d = log pi - log pi_ref. KL(pi || pi_ref) is its mean over samples of pi, and is positive.",
            lambda logps, ref_logps, kind: returns.kl_estimate(ref_logps, logps, kind),
        ),
        Mistake(
            "k2 without its half",
            "k2 = d^2 / 2: the second-order term of KL has a half.",
            lambda logps, ref_logps, kind: returns.kl_estimate(logps, ref_logps, kind) * (2 if kind == "k2" else 1),
        ),
        Mistake(
            "k3 with the ratio upside down",
            "k3 = exp(-d) - 1 + d, with exp(-d) = pi_ref / pi. With exp(d) - 1 - d it estimates nothing on these "
            "samples: E_pi[exp(d)] is not 1.",
            lambda logps, ref_logps, kind: (
                returns.kl_estimate(ref_logps, logps, kind)
                if kind == "k3"
                else returns.kl_estimate(logps, ref_logps, kind)
            ),
        ),
        Mistake(
            "k3 without its 1",
            "k3 is 0 where the two agree: exp(0) - 1 + 0.",
            lambda logps, ref_logps, kind: returns.kl_estimate(logps, ref_logps, kind) + (1 if kind == "k3" else 0),
        ),
        Mistake(
            "k1 made positive",
            "Single values of k1 may be negative; only their mean is a KL. |d| has another mean.",
            lambda logps, ref_logps, kind: (
                (logps - ref_logps).abs() if kind == "k1" else returns.kl_estimate(logps, ref_logps, kind)
            ),
        ),
        Mistake(
            "k1 whatever the kind",
            "kind chooses among three formulas.",
            lambda logps, ref_logps, kind: logps - ref_logps,
        ),
    ),
)
def kl_estimate(logps, ref_logps, kind):
    """KL(pi || pi_ref) estimated at each sampled token; kind is "k1", "k2" or "k3" (Schulman's names).

    logps, ref_logps: log-probs of the sampled tokens, of one shape, which is also that of the result.
    """
    ...


def _kl_reward_cases() -> list[tuple]:
    logps, ref = -normal(12, 3, 4).abs(), -normal(13, 3, 4).abs()
    batch = (in_padding(logps, MASK, -9.0), in_padding(ref, MASK, -1.0), MASK)
    return [
        (tensor(2.0), tensor([-1.0]), tensor([-3.0]), torch.tensor([[1]]), 0.1),
        (tensor(1.0), tensor([-1.0, -0.5]), tensor([-1.5, -0.2]), torch.tensor([[1, 1]]), 0.1),
        (tensor(1.0, -0.5, 2.0), *batch, 0.1),
        (tensor(-1.0, 0.3, 0.0), *batch, 0.5),
    ]


def _kl_part(logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    return (-kl_coef * (logps - ref_logps)).masked_fill(mask == 0, 0.0)


def _whole_kl_at_the_end(scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    total = scores + _kl_part(logps, ref_logps, mask, kl_coef).sum(1)
    return returns.per_token_rewards(total, logps, ref_logps, mask, 0.0)


def _score_in_the_last_column(scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    rewards = _kl_part(logps, ref_logps, mask, kl_coef)
    return torch.cat([rewards[:, :-1], rewards[:, -1:] + scores[:, None]], dim=1)


@function_exercise(
    lesson=3,
    title="The KL penalty, token by token",
    difficulty=3,
    importance=5,
    minutes=12,
    rows=(19, 48),
    errata=("E18",),
    maths="r_t = -beta (log pi(a_t) - log pi_ref(a_t)), and at the last real token also + score",
    reference=returns.per_token_rewards,
    cases=_kl_reward_cases,
    constants=("logps", "ref_logps"),
    hints=(
        "Start with -kl_coef * (logps - ref_logps) and 0 at the padding. Then add one number a row.",
        "With padding on the right the last real token of a row is number mask.sum(1) - 1.",
        "A reward is a number the policy is judged by, not a path for its gradient: detach, or torch.no_grad().",
    ),
    mistakes=(
        Mistake(
            "the KL with its sign turned",
            "The penalty is -beta (log pi - log pi_ref): a token that the policy likes more than the reference does "
            "costs. Turned round, drifting away is paid for.",
            lambda scores, logps, ref_logps, mask, kl_coef: returns.per_token_rewards(
                scores, logps, ref_logps, mask, -kl_coef
            ),
        ),
        Mistake(
            "the score at every token",
            "The reply is scored once, when it is finished: the score goes to its last real token only.",
            lambda scores, logps, ref_logps, mask, kl_coef: (
                _kl_part(logps, ref_logps, mask, kl_coef) + scores[:, None] * mask
            ),
        ),
        Mistake(
            "the score in the last column",
            "The last column of a short reply is padding, so its score is lost. The last real token is at mask.sum(1) "
            "- 1.",
            _score_in_the_last_column,
        ),
        Mistake(
            "the whole KL at the last token",
            "Then no token knows what it cost. Each one pays its own -beta (log pi - log pi_ref).",
            _whole_kl_at_the_end,
        ),
        Mistake(
            "F.kl_div on log-probs",
            "The article calls F.kl_div(old_logprobs, ref_logprobs). It wants log-probs and then probabilities, of "
            "whole distributions; given two log-probs it takes the log of a negative number: nan. Use the sampled "
            "tokens: log pi - log pi_ref.",
            lambda scores, logps, ref_logps, mask, kl_coef: scores - kl_coef * F.kl_div(logps, ref_logps),
        ),
        Mistake(
            "KL on padding",
            "Padding is nobody's choice and costs nothing: put 0 where mask is 0.",
            lambda scores, logps, ref_logps, mask, kl_coef: (
                returns.per_token_rewards(scores, logps, ref_logps, mask, 0.0) - kl_coef * (logps - ref_logps)
            ),
        ),
        Mistake(
            "the score alone",
            "The KL is missing. Without it nothing holds the policy near the reference.",
            lambda scores, logps, ref_logps, mask, kl_coef: returns.per_token_rewards(
                scores, logps, ref_logps, mask, 0.0
            ),
        ),
        Mistake(
            "k3 as the reward",
            "As a reward, k1 gives the exact gradient of the KL and k3 does not. r_t = -beta (log pi - log pi_ref).",
            partial(returns.per_token_rewards, kind="k3"),
        ),
        Mistake(
            "missing detach",
            "Rewards are constants to policy gradient: it differentiates log pi, weighted by them. A path through the "
            "reward adds a second gradient that nobody asked for. Compute rewards under torch.no_grad().",
            returns.per_token_rewards.__wrapped__,
        ),
    ),
)
def kl_rewards(scores, logps, ref_logps, mask, kl_coef):
    """Rewards of the tokens of each reply, (batch, seq), 0 at the padding, without gradient.

    scores: the reward model's, one a reply, (batch,). logps, ref_logps: log-probs of the sampled tokens, (batch, seq).
    mask: 1 on real tokens, then 0 (padding on the right).
    kl_coef: beta; larger holds the policy closer to the reference.
    """
    ...


# --- from blank ---------------------------------------------------------------------------------------------------


def _ppo_cases() -> list[tuple]:
    def one(ratio: float, advantage: float) -> tuple:
        return tensor([math.log(0.4 * ratio)]), tensor([math.log(0.4)]), tensor([advantage]), torch.ones(1, 1), 0.2

    old, advantages = -1.5 + 0.3 * normal(4, 3, 4), 2 * normal(5, 3, 4)
    logps = old + 0.4 * normal(6, 3, 4)
    batch = (in_padding(logps, MASK, -0.5), in_padding(old, MASK, -1.0), in_padding(advantages, MASK, 7.0), MASK)
    return [one(1.5, 1.0), one(0.5, -1.0), one(0.5, 1.0), one(1.5, -1.0), one(1.1, 2.0), (*batch, 0.2), (*batch, 0.05)]


def _ppo_parts(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    ratio = (logps - old_logps).exp()
    return ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages


def _ppo(objective: Callable[[Tensor, Tensor], Tensor], mean: Callable = losses.masked_mean) -> Callable:
    """A wrong ppo_loss: -mean(objective(unclipped, clipped), mask)."""
    return lambda logps, old_logps, advantages, mask, clip_range: (
        -mean(objective(*_ppo_parts(logps, old_logps, advantages, clip_range)), mask)
    )


@function_exercise(
    lesson=3,
    title="ppo_loss from blank",
    difficulty=3,
    importance=5,
    minutes=15,
    rows=(15, 16, 17, 18),
    errata=("E4", "E21"),
    maths="L = - masked mean of min(ratio A, clip(ratio, 1 - eps, 1 + eps) A),  ratio = exp(log pi - log pi_old)",
    reference=losses.ppo_policy_loss,
    cases=_ppo_cases,
    differentiable=("logps",),
    hints=(
        "Four lines: the ratio, the two products with the advantage, the smaller of them, the masked mean with a "
        "minus.",
        "torch.clamp for the clip, torch.min (element by element) for the pessimistic one of the two.",
        "The mean is over real tokens only: masked_mean of the exercise above.",
    ),
    mistakes=(
        Mistake(
            "max for min",
            "PPO is pessimistic: min(ratio A, clip(ratio) A). With max the clip acts where it should not, and not "
            "where it should. (Written as a loss, the minus turns min into max: max(-ratio A, -clip(ratio) A).)",
            _ppo(torch.max),
        ),
        Mistake(
            "the minus forgotten",
            "The clipped objective is to be raised; an optimiser lowers. L = -masked mean(min(...)).",
            _ppo(lambda a, b: -torch.min(a, b)),
        ),
        Mistake(
            "the clip alone",
            "Without min the gradient also dies where the token has to come back: A > 0 at a ratio below 1 - eps, A < "
            "0 above 1 + eps. It is min(ratio A, clip(ratio) A).",
            _ppo(lambda a, b: b),
        ),
        Mistake(
            "no clip",
            "This is the plain surrogate, -ratio A. min with clip(ratio, 1 - eps, 1 + eps) A is missing.",
            _ppo(lambda a, b: a),
        ),
        Mistake(
            "padding averaged in",
            "The article's .mean() reads padding too, so the loss depends on how far the batch was padded. Mean over "
            "mask == 1.",
            _ppo(torch.min, lambda x, mask: x.mean()),
        ),
        Mistake(
            "padding in the denominator",
            "Divide by mask.sum(), not by all positions.",
            _ppo(torch.min, lambda x, mask: (x * mask).mean()),
        ),
        Mistake(
            "the mean of the replies' means",
            "That weighs a token of a short reply more than one of a long reply. Here it is one mean over all tokens.",
            _ppo(torch.min, lambda x, mask: ((x * mask).sum(1) / mask.sum(1)).mean()),
        ),
        Mistake(
            "sum in place of the mean",
            "With a sum the step grows with the number of tokens in the batch.",
            _ppo(torch.min, lambda x, mask: (x * mask).sum()),
        ),
        Mistake(
            "the log-ratio in place of the ratio",
            "exp is missing: ratio = exp(logps - old_logps), 1 where nothing has changed.",
            lambda logps, old_logps, advantages, mask, clip_range: (
                -losses.masked_mean(
                    torch.min(
                        (logps - old_logps) * advantages,
                        (logps - old_logps).clamp(1 - clip_range, 1 + clip_range) * advantages,
                    ),
                    mask,
                )
            ),
        ),
        Mistake(
            "the ratio upside down",
            "New over old: exp(logps - old_logps).",
            lambda logps, old_logps, *rest: losses.ppo_policy_loss(old_logps, logps, *rest),
        ),
    ),
)
def ppo_loss(logps, old_logps, advantages, mask, clip_range):
    """PPO's clipped policy loss: a scalar tensor.

    logps, old_logps: log-probs of the sampled tokens under the policy now and under the one that sampled, (batch, seq).
    advantages: (batch, seq). mask: 1 on real tokens, 0 on padding. clip_range: epsilon, such as 0.2.
    """
    ...
