"""Every loss of the course as a pure function of tensors.

Shapes: logits (batch, seq, vocab); tokens, masks and per-token log-probs (batch, seq); anything about a whole
reply (batch,). A mask is 1 on the tokens that count. Log-probs of a reply ("logps") are SUMS over its tokens, as
sequence_logps gives them; a loss that wants averages takes the lengths too and divides by itself.

beta: the larger it is, the closer the policy is held to the reference. It is the same beta as in
max E[r] - beta KL(policy || reference). The two losses without a reference, ORPO and SimPO, use the letter for
something else, and say so.

Sources
    PPO: arXiv 1707.06347, eq. 7; value clipping as in TRL 1.12 and arXiv 2403.17031;
    reward model: InstructGPT, arXiv 2203.02155, eq. 1, with Llama 2's margin, arXiv 2307.09288, eq. 2;
    DPO: arXiv 2305.18290, eq. 7; cDPO: Mitchell 2023, "A note on DPO with noisy preferences";
    robust DPO: arXiv 2403.00409; IPO: arXiv 2310.12036, eq. 17; KTO: arXiv 2402.01306;
    ORPO: arXiv 2403.07691; SimPO: arXiv 2405.14734.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SelectedLogSoftmax(torch.autograd.Function):
    """log_softmax(logits)[labels], with the backward written out.

    Autograd would keep the whole log_softmax for it. For 8 x 64 tokens and 16k words that is 101 MB at the peak
    against 72 MB here (85 against 60 in bf16), and forward with backward takes 1.3 to 2 times as long.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
        # A row at a time, so that half-precision logits are never held in fp32 all at once.
        normaliser = torch.stack([_at_least_fp32(row).logsumexp(-1) for row in logits])
        ctx.save_for_backward(logits, labels, normaliser)
        return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).to(normaliser.dtype) - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels, normaliser = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for out, row, label, z, g in zip(grad_logits, logits, labels, normaliser, grad, strict=True):
            # d log p(label) / d logits = onehot(label) - softmax
            d_row = (_at_least_fp32(row) - z.unsqueeze(-1)).exp_().mul_(-g.unsqueeze(-1))
            out.copy_(d_row.scatter_add_(-1, label.unsqueeze(-1), g.unsqueeze(-1)))
        return grad_logits, None


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(label) at each position, without any shift: logits[:, t] score labels[:, t].

    Args:
        logits: (batch, seq, vocab), any precision; the sum over the vocabulary is done in fp32 at least.
        labels: (batch, seq), all in 0 .. vocab - 1 (sequence_logps takes -100 on masked positions, this does not).

    Returns:
        (batch, seq), fp32, or fp64 for fp64 logits. Differentiable once.
    """
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels must have the shape of logits without the vocabulary: logits {tuple(logits.shape)}, "
            f"labels {tuple(labels.shape)}"
        )
    return _SelectedLogSoftmax.apply(logits, labels)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution at each position, in nats: (batch, seq, vocab) -> (batch, seq)."""
    rows = []
    for row in logits:  # a row at a time, as above
        logps = _at_least_fp32(row).log_softmax(-1)
        rows.append(-(logps.exp() * logps).sum(-1))
    return torch.stack(rows)


def sequence_logps(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """log p(reply | prompt): the SUM of log p(label) over the masked-in positions.

    labels and mask are aligned with input_ids; the shift happens here (logits[:, t] score labels[:, t + 1]), so the
    first position is never scored, whatever the mask says there.

    Args:
        logits: (batch, seq, vocab). labels, mask: (batch, seq); labels may be -100 where mask is 0.

    Returns:
        (batch,). DPO needs this sum. The mean over tokens is another quantity: it forgets the length.
    """
    logps, mask = _shifted_token_logps(logits, labels, mask)
    return logps.masked_fill(~mask, 0.0).sum(dim=-1)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of x where mask is 1, over everything or along dim. Masked entries may be anything, NaN too.

    Raises:
        ValueError: nothing is unmasked, so there is no mean.
    """
    _require_same_shape(x=x, mask=mask)
    mask = mask.bool()
    total, count = x.masked_fill(~mask, 0.0), mask
    total, count = (total.sum(), count.sum()) if dim is None else (total.sum(dim), count.sum(dim))
    if (count == 0).any():
        raise ValueError("cannot take a masked mean: the mask is 0 everywhere" + ("" if dim is None else " in a row"))
    return total / count


def masked_var(x: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance of x where mask is 1, a scalar; unbiased divides by n - 1."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    if not unbiased:
        return variance
    n = mask.bool().sum()
    if n < 2:
        raise ValueError("an unbiased variance needs at least 2 unmasked entries, got 1")
    return variance * n / (n - 1)


def sft_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy averaged over the unmasked tokens of the whole batch, so a long reply weighs more than a short.

    Args:
        logits: (batch, seq, vocab). labels, mask: (batch, seq), aligned with input_ids; shifted here.
    """
    logps, mask = _shifted_token_logps(logits, labels, mask)
    return -masked_mean(logps, mask)


def reward_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """Bradley-Terry negative log-likelihood: mean of -log sigmoid(chosen - rejected - margin).

    -log(sigmoid(x)) is inf at x = -90 in fp32, and its gradient NaN; logsigmoid is 90 there, gradient -1.

    Args:
        chosen, rejected: rewards of the two replies, (batch,).
        margin: how far apart they should at least be, (batch,) (Llama 2).
    """
    _require_same_shape(chosen=chosen, rejected=rejected)
    gap = chosen - rejected
    return -F.logsigmoid(gap if margin is None else gap - margin).mean()


def ppo_policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip_range: float) -> Tensor:
    """Masked mean of max(-A ratio, -A clip(ratio, 1 - clip_range, 1 + clip_range)), ratio = exp(logps - old_logps).

    The gradient is zero where the ratio has already gone past the clip in the direction the advantage asks for:
    above 1 + clip_range when A > 0, below 1 - clip_range when A < 0. Past it the other way, the gradient is whole.

    Args:
        logps, old_logps, advantages, mask: (batch, seq). Only logps should carry a gradient.

    Returns:
        a scalar. To accumulate micro-batches into the gradient of their union, weight each one's loss by its share
        of the unmasked tokens: the mean of means over replies of unequal length is another number.
    """
    unclipped, clipped = _ppo_policy_objectives(logps, old_logps, advantages, mask, clip_range)
    return masked_mean(torch.max(unclipped, clipped), mask)


@torch.no_grad()
def ppo_policy_stats(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> dict[str, Tensor]:
    """What to watch beside the policy loss; all masked means, scalars, named as in TRL 1.12's log.

    clipfrac: share of tokens whose gradient the clip removes.
    approxkl: mean of (logps - old_logps)^2 / 2, the new policy against the one that sampled (not the reference).
    ratio: mean of the ratio; 1 before the first update.
    """
    unclipped, clipped = _ppo_policy_objectives(logps, old_logps, advantages, mask, clip_range)
    log_ratio = (logps - old_logps).masked_fill(~mask.bool(), 0.0)
    return {
        "clipfrac": masked_mean((clipped > unclipped).to(log_ratio), mask),
        "approxkl": masked_mean(0.5 * log_ratio.square(), mask),
        "ratio": masked_mean(log_ratio.exp(), mask),
    }


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float) -> Tensor:
    """0.5 * masked mean of max((V - R)^2, (V clipped to old V +- clip_range - R)^2); no vf_coef in it.

    Args:
        values, old_values, returns, mask: (batch, seq). Only values should carry a gradient.
    """
    unclipped, clipped = _ppo_value_objectives(values, old_values, returns, mask, clip_range)
    return 0.5 * masked_mean(torch.max(unclipped, clipped), mask)


@torch.no_grad()
def ppo_value_stats(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> dict[str, Tensor]:
    """clipfrac: share of tokens whose value gradient the clip removes."""
    unclipped, clipped = _ppo_value_objectives(values, old_values, returns, mask, clip_range)
    return {"clipfrac": masked_mean((clipped > unclipped).to(values), mask)}


def implicit_rewards(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """beta * (log pi(y|x) - log ref(y|x)): the reward DPO fits, up to a constant for each prompt (DPO, eq. 5)."""
    return beta * (policy_logps - ref_logps)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """-log sigmoid of the margin between the implicit rewards of chosen and rejected. log 2 when policy = reference.

    Args:
        policy_*_logps, ref_*_logps: summed log-probs of the replies, (batch,).
        beta: larger holds the policy closer to the reference.
        label_smoothing: probability that a label is flipped; not 0 is cDPO. (TRL 1.16 uses this number for its
            "robust" and "exo_pair" losses only, and leaves it out of "sigmoid".)
        reduction: "mean", "sum" or "none" (then (batch,)).
    """
    margin = _reward_margin(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    _require_flip_rate(label_smoothing)
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return _reduce(loss, reduction)


def cdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: str = "mean",
) -> Tensor:
    """Conservative DPO: cross-entropy against 1 - label_smoothing in place of 1.

    Lowest where sigmoid(margin) = 1 - label_smoothing, so the margin stops growing. It takes noise as
    smaller preferences; robust_dpo_loss takes the noise away.
    """
    return dpo_loss(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta,
        label_smoothing,
        reduction,
    )


def robust_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: str = "mean",
) -> Tensor:
    """DPO whose expectation over flipped labels is exactly the DPO loss on clean ones (rDPO).

    ((1 - e) l(margin) - e l(-margin)) / (1 - 2e), with l(m) = -log sigmoid(m) and e = label_smoothing in [0, 0.5),
    the flip rate. On one pair it is not bounded below.
    """
    margin = _reward_margin(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    _require_flip_rate(label_smoothing)
    as_labelled, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    loss = ((1 - label_smoothing) * as_labelled - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return _reduce(loss, reduction)


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    tau: float,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """(h - 1 / (2 tau))^2, h the difference of the two log-ratios: the margin settles at 1 / (2 tau).

    Args:
        policy_*_logps, ref_*_logps: summed log-probs of the replies, (batch,).
        tau: the paper's name for beta; larger holds the policy closer to the reference.
        chosen_lengths, rejected_lengths: tokens in each reply, (batch,). Without them this is eq. 17 of the paper,
            on sums. With them each log-ratio is averaged over its tokens first, which is what TRL does (on the
            authors' word): h is then per token, so the same tau allows a reply of 50 tokens 50 times the margin.
    """
    _require_positive(tau=tau)
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("give both chosen_lengths and rejected_lengths, or neither")
    _require_same_shape(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    if chosen_lengths is not None:
        chosen_logratios = _average_logps(chosen_logratios, chosen_lengths)
        rejected_logratios = _average_logps(rejected_logratios, rejected_lengths)
    return _reduce((chosen_logratios - rejected_logratios - 1 / (2 * tau)).square(), reduction)


def kto_kl(policy_kl_logps: Tensor, ref_kl_logps: Tensor) -> Tensor:
    """KTO's reference point z_0: max(0, mean log-ratio over replies paired with prompts they do not belong to).

    A scalar without gradient. Biased, and the paper says so: it is there to centre, not to be minimised.
    """
    return (policy_kl_logps - ref_kl_logps).mean().clamp(min=0).detach()


def kto_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    kl: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """KTO, for replies marked good or bad with no partner.

    weight * (1 - sigmoid(+-(beta (log pi/ref - kl)))), plus for desirable replies, minus for others.

    Args:
        policy_logps, ref_logps: summed log-probs, (batch,). desirable: bool, (batch,).
        kl: the reference point, from kto_kl.
        beta: larger holds the policy closer to the reference.
    """
    _require_positive(beta=beta)
    _require_same_shape(policy_logps=policy_logps, ref_logps=ref_logps, desirable=desirable)
    desirable = desirable.bool()
    gain = beta * (policy_logps - ref_logps - kl)
    # sigmoid(-x) for 1 - sigmoid(x), which is 0 beyond x = 17 in fp32
    loss = torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))
    return _reduce(loss, reduction)


def orpo_odds_ratio_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """-log sigmoid(log odds(chosen) - log odds(rejected)), odds(y) = P / (1 - P), log P the mean log-prob a token."""
    chosen = _average_logps(policy_chosen_logps, chosen_lengths)
    rejected = _average_logps(policy_rejected_logps, rejected_lengths)
    log_odds_ratio = (chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected))
    return _reduce(-F.logsigmoid(log_odds_ratio), reduction)


def orpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    reduction: str = "mean",
) -> Tensor:
    """ORPO: SFT on the chosen reply plus beta times the odds-ratio loss. It has no reference.

    Args:
        policy_*_logps: summed log-probs, (batch,). *_lengths: tokens in each reply, (batch,).
        beta: the paper's lambda, the weight of the preference term. Here larger means more preference, less SFT.
    """
    sft = -_average_logps(policy_chosen_logps, chosen_lengths)
    odds_ratio = orpo_odds_ratio_loss(
        policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, reduction="none"
    )
    return _reduce(sft + beta * odds_ratio, reduction)


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    gamma: float,
    reduction: str = "mean",
) -> Tensor:
    """SimPO: -log sigmoid(beta (mean log-prob of chosen - of rejected) - gamma). It has no reference.

    Args:
        policy_*_logps: summed log-probs, (batch,). *_lengths: tokens in each reply, (batch,).
        beta: the scale of the reward, 2 to 10 in the paper. It holds the policy to nothing.
        gamma: the margin asked for, on the scale of the reward (after beta).
    """
    _require_positive(beta=beta)
    chosen = _average_logps(policy_chosen_logps, chosen_lengths)
    rejected = _average_logps(policy_rejected_logps, rejected_lengths)
    return _reduce(-F.logsigmoid(beta * (chosen - rejected) - gamma), reduction)


def _shifted_token_logps(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """log p of the next label at every position, and where that counts: both (batch, seq), the last never does."""
    _require_same_shape(labels=labels, mask=mask)
    # Shift labels left, not logits right: the backward pass of logits[:, :-1] would copy all of their gradient.
    mask = F.pad(mask[:, 1:].bool(), (0, 1), value=False)
    labels = F.pad(labels[:, 1:], (0, 1)).masked_fill(~mask, 0)  # -100 is no index
    return token_logps(logits, labels), mask


def _ppo_policy_objectives(logps, old_logps, advantages, mask, clip_range) -> tuple[Tensor, Tensor]:
    _require_same_shape(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
    _require_positive(clip_range=clip_range)
    padding = ~mask.bool()
    # Fill before exp: a huge difference on padding gives inf, and inf * 0 in the backward pass is NaN.
    ratio = (logps - old_logps).masked_fill(padding, 0.0).exp()
    advantages = advantages.masked_fill(padding, 0.0)
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)


def _ppo_value_objectives(values, old_values, returns, mask, clip_range) -> tuple[Tensor, Tensor]:
    _require_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    _require_positive(clip_range=clip_range)
    padding = ~mask.bool()
    values, old_values, returns = (x.masked_fill(padding, 0.0) for x in (values, old_values, returns))
    clipped = values.clamp(old_values - clip_range, old_values + clip_range)
    return (values - returns).square(), (clipped - returns).square()


def _reward_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta) -> Tensor:
    _require_same_shape(
        policy_chosen_logps=policy_chosen,
        policy_rejected_logps=policy_rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
    )
    _require_positive(beta=beta)
    return implicit_rewards(policy_chosen, ref_chosen, beta) - implicit_rewards(policy_rejected, ref_rejected, beta)


def _average_logps(logps: Tensor, lengths: Tensor) -> Tensor:
    _require_same_shape(logps=logps, lengths=lengths)
    if (lengths < 1).any():
        raise ValueError("a reply has no tokens: lengths must be at least 1")
    return logps / lengths


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation on either side of x = -log 2."""
    near_zero = x > -0.6931471805599453
    # Each branch sees only inputs it is good for: torch.where would pass on the other one's inf as a NaN gradient.
    # A reply of probability exactly 1 has infinite odds; the largest finite ones stand in for them.
    close = x.clamp(max=-torch.finfo(x.dtype).tiny).masked_fill(~near_zero, -0.5)
    far = x.masked_fill(near_zero, -1.0)
    return torch.where(near_zero, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be > 0, got {number}")


def _require_flip_rate(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is a flip rate in [0, 0.5), got {label_smoothing}: at 0.5 labels say nothing"
        )


def _require_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("expected one shape, got " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
