"""From the score of a reply to the advantage of each of its tokens: KL, rewards, whitening, GAE.

Shapes are (batch, seq) over the response. mask is 1 on the tokens that count. What stands at masked positions is
never read (it may be NaN), and results are exactly 0 there.

Sources
    GAE: Schulman et al., arXiv 1506.02438, eq. 16; KL estimators: Schulman 2020, joschu.net/blog/kl-approx.html;
    which estimator belongs where: Tang and Munos, arXiv 2506.09477, and arXiv 2512.21852;
    per-token KL reward and adaptive coefficient: Ziegler et al., arXiv 1909.08593, section 2;
    whitening and the details round it: The N+ implementation details, arXiv 2403.17031.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KL_KINDS = ("k1", "k2", "k3")


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    return_t = A_t + V_t

    The step after a token is the next unmasked token; after the last one the episode is over and V = 0. So padding
    on either side and masked tokens in between (a tool's output, say) change nothing.

    Args:
        rewards, values, mask: (batch, seq). A reward on a masked position is ignored, so the score must stand on an
            unmasked one (per_token_rewards puts it on the last).
        gamma, lam: lam = 0 is the one-step TD error, lam = 1 the discounted return minus the value.

    Returns:
        advantages, returns: (batch, seq), without gradient, 0 where masked. Returns are the value's targets.
    """
    _require_same_shape(rewards=rewards, values=values, mask=mask)
    mask = mask.bool()
    rewards, values = _at_least_fp32(rewards), _at_least_fp32(values)
    advantages = torch.zeros_like(values)  # (batch, seq)
    next_advantage = values.new_zeros(len(values))  # (batch,)
    next_value = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        unmasked = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(unmasked, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(unmasked, values[:, t], next_value)
        advantages[:, t] = next_advantage
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: str = "k1") -> Tensor:
    """KL(policy || reference) estimated at each token sampled from the policy.

        k1 = log pi - log ref            unbiased, may be negative on a sample
        k2 = k1^2 / 2                    biased, never negative
        k3 = exp(-k1) - 1 + k1           unbiased, never negative

    The value is one thing, its gradient another. As a reward (no gradient through it), k1 gives policy gradient the
    exact gradient of the KL and k3 does not. As a loss (gradient through it), k2 gives the exact gradient,
    k1 gives zero on average, and k3 that of KL(reference || policy).

    Args:
        logps, ref_logps: the same shape, for example (batch, seq); any mask is the caller's.
    """
    _require_same_shape(logps=logps, ref_logps=ref_logps)
    k1 = logps - ref_logps
    if kind == "k1":
        return k1
    if kind == "k2":
        return 0.5 * k1.square()
    if kind == "k3":
        return torch.expm1(-k1) + k1  # expm1: exp(-k1) - 1 loses all its digits near k1 = 0
    raise ValueError(f"kind must be one of {', '.join(KL_KINDS)}, got {kind!r}")


@torch.no_grad()
def per_token_rewards(
    scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float, kind: str = "k1"
) -> Tensor:
    """-kl_coef * KL at every token, and the reply's score added at its last unmasked one.

    Args:
        scores: (batch,), one for each reply.
        logps, ref_logps, mask: (batch, seq).

    Returns:
        (batch, seq), without gradient, 0 where masked. With k1 and no discount, a row sums to
        score - kl_coef * (log pi(y|x) - log ref(y|x)), the objective RLHF maximises.
    """
    _require_same_shape(logps=logps, ref_logps=ref_logps, mask=mask)
    if scores.shape != logps.shape[:1]:
        raise ValueError(f"scores must have shape {tuple(logps.shape[:1])}, one a reply, got {tuple(scores.shape)}")
    mask = mask.bool()
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"row {empty[0]} of mask has no unmasked token to put its score on")
    kl = kl_estimate(_at_least_fp32(logps), _at_least_fp32(ref_logps), kind)
    rewards = (-kl_coef * kl).masked_fill(~mask, 0.0)  # (batch, seq)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)  # (batch,)
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores.to(rewards)
    return rewards


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale x to variance 1 and, with shift_mean, to mean 0, over the unmasked entries of the whole batch.

    As TRL 1.12's masked_whiten: unbiased variance, 1e-8 under the root. With shift_mean=False the mean is
    kept as it was, not scaled (TRL whitens rewards so, advantages with the shift).

    Returns:
        the shape of x, 0 where masked.
    """
    _require_same_shape(x=x, mask=mask)
    mask = mask.bool()
    unmasked = x[mask]  # (n,)
    if unmasked.numel() < 2:
        raise ValueError(f"whitening needs at least 2 unmasked entries, got {unmasked.numel()}")
    mean = unmasked.mean()
    whitened = (x - mean) * torch.rsqrt(unmasked.var() + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0.0)


@dataclass
class FixedKLController:
    """A KL coefficient that stays as it is."""

    value: float

    def update(self, current_kl: float, n_steps: int) -> None:
        """Nothing to do; there so that both controllers are used alike."""


class AdaptiveKLController:
    """A KL coefficient that grows while the KL is above its target and shrinks while below.

    value *= 1 + clip(current_kl / target - 1, -0.2, 0.2) * n_steps / horizon   (Ziegler et al. 2019, section 2,
    which writes 0.1 for n_steps / horizon; the form with a horizon is that of their code and of TRL <= 0.11).

    Args:
        init_kl_coef: the first value, > 0.
        target: KL per reply, in nats, to hold.
        horizon: episodes over which an error of 0.2 changes the value by about a fifth.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        for name, number in (("init_kl_coef", init_kl_coef), ("target", target), ("horizon", horizon)):
            if not number > 0:
                raise ValueError(f"{name} must be > 0, got {number}")
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current_kl: float, n_steps: int) -> None:
        """Move the value after n_steps more episodes whose mean KL per reply was current_kl."""
        if current_kl != current_kl:
            raise ValueError("current_kl is NaN: the KL coefficient cannot follow it")
        error = min(max(current_kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _require_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("expected one shape, got " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
