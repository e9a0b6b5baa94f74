"""Softmax policies over a world small enough to enumerate, trained as language models are: do they land on pi*?

A policy is a table of logits, one row a prompt and one column a reply; it starts at the reference. Policy gradient, PPO
and RLOO sample replies and see their rewards; DPO and IPO see preferences and no reward. All are held to the
reference by beta (IPO's paper writes tau): larger beta holds the policy closer to the reference.

Rows of the table share nothing, so a world of many prompts is many worlds trained at once. rlhf_lab.parting uses
this for its seeds.

Preferences are an array `wins`, (prompts, replies, replies): wins[x, i, j] is the weight of "i was preferred to j" for
prompt x, as a share of all its comparisons (`preferences`) or as a count (`sample_preferences`).

Sources
    policy gradient with a baseline: Williams 1992, Machine Learning 8; PPO: arXiv 1707.06347; RLOO: arXiv 2402.14740;
    DPO: arXiv 2305.18290; IPO, and what deterministic preferences do to DPO: arXiv 2310.12036;
    what missing coverage does to DPO: arXiv 2404.10719, section 4; robust DPO: arXiv 2403.00409.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, log_softmax

from rlhf_lab import exact

if TYPE_CHECKING:
    import torch

HISTORY_POINTS = 50


@dataclass(frozen=True, eq=False)
class World:
    """Prompts, the reference's probability of each reply, and the reward of each.

    Args:
        ref_probs, rewards: (replies,) or (prompts, replies). Every reply needs a probability above 0: a softmax that
            starts at the reference cannot leave 0.
    """

    ref_probs: np.ndarray
    rewards: np.ndarray

    def __post_init__(self) -> None:
        exact.optimal_policy(self.ref_probs, self.rewards, 1.0)  # refuses what is no world
        ref, rewards = np.broadcast_arrays(np.asarray(self.ref_probs, float), np.asarray(self.rewards, float))
        if ref.ndim > 2 or ref.shape[-1] < 2:
            raise ValueError(f"a world is (replies,) or (prompts, replies) with 2 replies or more, got {ref.shape}")
        if not (ref > 0).all():
            raise ValueError(
                "every reply needs a reference probability above 0: leave out those the reference never says"
            )
        object.__setattr__(self, "ref_probs", ref / ref.sum(axis=-1, keepdims=True))
        object.__setattr__(self, "rewards", rewards.copy())

    @classmethod
    def random(cls, replies: int, prompts: int = 1, *, spread: float = 1.0, seed: int = 0) -> World:
        """Log-probabilities and rewards drawn from normal distributions, rewards with standard deviation spread."""
        rng = np.random.default_rng(seed)
        shape = (prompts, replies) if prompts > 1 else (replies,)
        return cls(np.exp(log_softmax(rng.normal(size=shape), axis=-1)), spread * rng.normal(size=shape))

    def optimum(self, beta: float) -> np.ndarray:
        """pi*, in the shape of ref_probs: where RLHF and DPO should end."""
        return exact.optimal_policy(self.ref_probs, self.rewards, beta)


class Run(NamedTuple):
    """The policy training ended with, in the shape of the world's arrays, and how it got there.

    history: a record array with fields step, tv (total variation to the optimum), kl (to the reference, in nats) and
    reward (expected), each a mean over prompts; its first row is the reference.
    """

    policy: np.ndarray
    history: np.recarray


def preferences(
    world: World,
    *,
    covered: ArrayLike | None = None,
    drawn_from: ArrayLike | None = None,
    flip_rate: float = 0.0,
    deterministic: bool = False,
) -> np.ndarray:
    """What infinitely many comparisons would say: wins, (prompts, replies, replies), which sum to 1 for each prompt.

    Args:
        covered: bool, (..., replies): the replies that occur in pairs; all of them if not given.
        drawn_from: (..., replies): both replies of a pair are drawn from this, independently (equal ones are left
            out); the reference if not given.
        flip_rate: share of labels that are turned round.
        deterministic: the better reply always wins, in place of Bradley-Terry's sigmoid(r_i - r_j).
    """
    if not 0 <= flip_rate <= 1:
        raise ValueError(f"flip_rate is a share of labels in [0, 1], got {flip_rate}")
    rewards = np.atleast_2d(world.rewards)
    shares = np.broadcast_to(world.ref_probs if drawn_from is None else np.asarray(drawn_from, float), rewards.shape)
    if covered is not None:
        shares = shares * np.broadcast_to(np.asarray(covered, bool), rewards.shape)
    gap = rewards[:, :, None] - rewards[:, None, :]
    p_beats = 0.5 * (1 + np.sign(gap)) if deterministic else expit(gap)
    p_beats = (1 - flip_rate) * p_beats + flip_rate * (1 - p_beats)
    pairs = shares[:, :, None] * shares[:, None, :] * ~np.eye(rewards.shape[1], dtype=bool)
    total = pairs.sum(axis=(1, 2), keepdims=True)
    if not (total > 0).all():
        raise ValueError("a comparison needs two replies: fewer than 2 are covered for some prompt")
    return pairs / total * p_beats * 2  # i beats j and j beats i are the two ends of one pair


def sample_preferences(wins: np.ndarray, n_pairs: int, seed: int = 0) -> np.ndarray:
    """Counts of n_pairs comparisons for each prompt, drawn independently from `preferences(...)`: the shape of wins."""
    rng = np.random.default_rng(seed)
    flat = wins.reshape(len(wins), -1)
    return rng.multinomial(n_pairs, flat / flat.sum(axis=1, keepdims=True)).reshape(wins.shape)


def ipo_optimum(world: World, tau: float, wins: np.ndarray | None = None) -> np.ndarray:
    """The policy of least IPO loss on these preferences, exactly: it is a least-squares problem in the log-ratios.

    With every pair covered it is ref exp(p(y beats mu) / tau) / Z, mu being what the pairs are drawn from: the paper's
    closed form for Psi the identity. Log-ratios that the loss leaves free have the least squares possible, which is
    where gradient descent from the reference ends.
    """
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    wins = preferences(world) if wins is None else wins
    games = wins + wins.swapaxes(1, 2)
    laplacian = games.sum(axis=2)[:, :, None] * np.eye(wins.shape[1]) - games
    pull = (wins - wins.swapaxes(1, 2)).sum(axis=2) / (2 * tau)
    log_ratios = (np.linalg.pinv(laplacian, hermitian=True) @ pull[:, :, None])[:, :, 0]  # (prompts, replies)
    # a policy with log-ratios a, up to a constant, is the optimum for the rewards a and beta 1
    return exact.optimal_policy(world.ref_probs, log_ratios.reshape(world.rewards.shape), 1.0)


def dpo_optimum(world: World, beta: float, covered: ArrayLike, mass_outside: ArrayLike | None = None) -> np.ndarray:
    """A policy of least DPO loss when only the covered replies occur in pairs: there is one for every mass outside.

    The loss sees log-ratios of covered replies, and only their differences. How much probability lies outside, and
    where there, is up to the optimiser; here it is shared out as the reference does.

    Args:
        covered: bool, (..., replies).
        mass_outside: probability of all replies that are not covered, in (0, 1); a number, or one for each prompt. Not
            given: where gradient descent from the reference ends, whose logits outside never move and inside
            keep their sum.
    """
    covered = np.broadcast_to(np.asarray(covered, bool), world.rewards.shape)
    inside = np.where(covered, world.rewards, 0.0)
    centred = np.where(covered, inside - inside.sum(-1, keepdims=True) / covered.sum(-1, keepdims=True), 0.0)
    policy = exact.optimal_policy(world.ref_probs, centred, beta)
    if mass_outside is None:
        return policy
    mass = np.broadcast_to(np.asarray(mass_outside, float), policy.shape[:-1])[..., None]
    if not ((mass > 0) & (mass < 1)).all() or covered.all(axis=-1).any():
        raise ValueError("mass_outside is a probability between 0 and 1, of at least one reply that is not covered")
    outside = np.where(covered, 0.0, policy)
    within = policy - outside
    return mass * outside / outside.sum(-1, keepdims=True) + (1 - mass) * within / within.sum(-1, keepdims=True)


def one_thread(train: Callable) -> Callable:
    """Tables are far too small to share between threads: with two on busy cores these loops take 10 times as long."""

    @wraps(train)
    def on_one(*args, **kwargs):
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return train(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return on_one


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """RLOO's advantage: each reward less the mean of the others of its group, (..., k) -> (..., k), k at least 2.

    A baseline that leaves the sample itself out is independent of it, so the gradient is unbiased. The mean of all k
    would shrink it by (k - 1) / k; dividing by the standard deviation, as GRPO does, biases it.
    """
    k = rewards.shape[-1]
    if k < 2:
        raise ValueError(f"leaving one out needs at least 2 samples in a group, got {k}")
    return (rewards - rewards.mean(dim=-1, keepdim=True)) * k / (k - 1)


@one_thread
def train_exact_gradient(world: World, beta: float, *, steps: int = 300, learning_rate: float = 0.1) -> Run:
    """Gradient ascent on the enumerated objective E[r] - beta KL(pi || ref): no sampling, no noise."""
    table = _Table(world, world.optimum(beta), steps, learning_rate)
    for _ in table.steps():
        logps = table.logits.log_softmax(-1)
        objective = (logps.exp() * (table.rewards - beta * (logps - table.ref_logps))).sum(-1)
        table.descend(-objective.sum())
    return table.run()


@one_thread
def train_policy_gradient(
    world: World, beta: float, *, batch_size: int = 64, steps: int = 500, learning_rate: float = 0.1, seed: int = 0
) -> Run:
    """REINFORCE with a baseline: ascend (R - baseline) grad log pi(y), R = r - beta log(pi / ref), y drawn from pi.

    The baseline of a prompt is a running mean of R over earlier batches, so it is independent of the samples it is
    subtracted from. At pi* every reply has the same R, namely beta log Z: the noise dies out as the policy arrives.

    Args:
        batch_size: replies sampled for each prompt at each step.
    """
    table = _Table(world, world.optimum(beta), steps, learning_rate, seed)
    baseline = table.rewards.new_zeros(len(table.rewards), 1)
    for _ in table.steps():
        logps, returns, _ = table.sample(batch_size, beta)
        table.descend(-((returns - baseline) * logps).mean(dim=1).sum())
        baseline += 0.2 * (returns.mean(dim=1, keepdim=True) - baseline)
    return table.run()


@one_thread
def train_rloo(
    world: World,
    beta: float,
    *,
    k: int = 4,
    groups: int = 16,
    steps: int = 500,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Run:
    """REINFORCE whose baseline is the mean of the other k - 1 replies to the same prompt (see leave_one_out).

    Args:
        k, groups: each step samples groups times k replies for each prompt.
    """
    table = _Table(world, world.optimum(beta), steps, learning_rate, seed)
    for _ in table.steps():
        logps, returns, _ = table.sample(k * groups, beta)
        advantages = leave_one_out(returns.unflatten(1, (groups, k))).flatten(1)
        table.descend(-(advantages * logps).mean(dim=1).sum())
    return table.run()


@one_thread
def train_ppo(
    world: World,
    beta: float,
    *,
    policy_loss: Callable | None = None,
    clip_range: float = 0.2,
    batch_size: int = 512,
    epochs: int = 4,
    minibatches: int = 2,
    steps: int = 120,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> Run:
    """PPO as RLHF runs it: sample, score, subtract beta KL, estimate advantages with a critic, then clipped updates.

    A reply is one token here. Each step's samples are gone through epochs times, in minibatches.

    Advantages are not whitened: near pi* all of them go to 0, and whitening would blow the rest up to size 1 again.

    Args:
        policy_loss: called as losses.ppo_policy_loss is, with (minibatch, 1) tensors; that is the default.
        batch_size: replies sampled for each prompt at each step; a step makes epochs times minibatches updates.
    """
    import torch

    from rlhf_lab import losses, returns

    policy_loss = policy_loss or losses.ppo_policy_loss
    values = torch.zeros(len(np.atleast_2d(world.rewards)), dtype=torch.float64, requires_grad=True)  # V(prompt)
    table = _Table(world, world.optimum(beta), steps, learning_rate, seed, values)
    prompts = torch.arange(len(values)).repeat_interleave(batch_size)  # (prompts * batch_size,)
    mask = torch.ones(len(prompts), 1)
    for _ in table.steps():
        old_logps, _, replies = table.sample(batch_size, beta)
        old_logps, replies = old_logps.detach().reshape(-1, 1), replies.flatten()
        old_values = values.detach()[prompts, None]
        rewards = returns.per_token_rewards(
            table.rewards[prompts, replies], old_logps, table.ref_logps[prompts, replies, None], mask, kl_coef=beta
        )
        advantages, targets = returns.gae(rewards, old_values, mask, gamma=1.0, lam=1.0)
        for _ in range(epochs):
            for at in torch.randperm(len(prompts), generator=table.generator).chunk(minibatches):
                logps = table.logits.log_softmax(-1)[prompts[at], replies[at], None]
                loss = policy_loss(logps, old_logps[at], advantages[at], mask[at], clip_range)
                predicted = values[prompts[at], None]
                fit = losses.ppo_value_loss(predicted, old_values[at], targets[at], mask[at], clip_range=np.inf)
                table.descend(loss + fit)
    return table.run()


@one_thread
def train_dpo(
    world: World,
    beta: float,
    wins: np.ndarray | None = None,
    *,
    loss: Callable | None = None,
    ref_probs: ArrayLike | None = None,
    batch_size: int | None = None,
    steps: int = 500,
    learning_rate: float = 0.2,
    seed: int = 0,
) -> Run:
    """DPO on preferences; no reward is seen. The history's tv is to pi*.

    Args:
        wins: from preferences or sample_preferences; the whole population drawn from the reference if not given.
        loss: called as losses.dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps,
            ref_rejected_logps, beta), which is the default. Without batch_size it must take reduction="none" too.
            For cDPO and robust DPO: functools.partial(losses.robust_dpo_loss, label_smoothing=0.1).
        ref_probs: the reference in the loss, if it is another than the world's.
        batch_size: comparisons drawn from wins at each step, each as often as its weight says, rounded up or down at
            random; the loss is then their plain mean. Not given: all of wins, weighted, at every step.
    """
    from rlhf_lab import losses

    table = _Table(world, world.optimum(beta), steps, learning_rate, seed)
    return _train_on_pairs(table, partial(loss or losses.dpo_loss, beta=beta), world, wins, ref_probs, batch_size)


@one_thread
def train_ipo(
    world: World,
    tau: float,
    wins: np.ndarray | None = None,
    *,
    batch_size: int | None = None,
    steps: int = 500,
    learning_rate: float = 0.2,
    seed: int = 0,
) -> Run:
    """IPO on preferences, by the loss of the paper (sums, eq. 17). Arguments as in train_dpo.

    The history's tv is to ipo_optimum: IPO aims at ref exp(p(y beats mu) / tau), not at pi*.
    """
    from rlhf_lab import losses

    table = _Table(world, ipo_optimum(world, tau, wins), steps, learning_rate, seed)
    return _train_on_pairs(table, partial(losses.ipo_loss, tau=tau), world, wins, None, batch_size)


def _train_on_pairs(table, loss, world, wins, ref_probs, batch_size) -> Run:
    import torch

    wins = preferences(world) if wins is None else np.asarray(wins, float)
    if wins.shape != (*np.atleast_2d(world.rewards).shape, world.rewards.shape[-1]):
        raise ValueError(
            f"wins must be (prompts, replies, replies) for the world's {world.rewards.shape}, got {wins.shape}"
        )
    at = np.nonzero(wins)
    weights = torch.from_numpy((wins / wins.sum(axis=(1, 2), keepdims=True))[at])  # (comparisons,)
    cumulative = weights.cumsum(0)
    prompt, chosen, rejected = (torch.from_numpy(index) for index in at)
    if ref_probs is not None:
        exact.kl(ref_probs, world.ref_probs)  # refuses what is no distribution
    ref_logps = table.ref_logps if ref_probs is None else _tensor(np.log(ref_probs))
    ref_logps = ref_logps.expand_as(table.logits)
    for _ in table.steps():
        logps = table.logits.log_softmax(-1)
        if batch_size is None:
            x, i, j = prompt, chosen, rejected
            each = loss(logps[x, i], logps[x, j], ref_logps[x, i], ref_logps[x, j], reduction="none")
            table.descend(each @ weights)
        else:
            ticks = torch.arange(batch_size) + torch.rand(1, generator=table.generator, dtype=torch.float64)
            drawn = torch.searchsorted(cumulative, ticks * (cumulative[-1] / batch_size), right=True)
            drawn = drawn.clamp(max=len(weights) - 1)
            x, i, j = prompt[drawn], chosen[drawn], rejected[drawn]
            table.descend(loss(logps[x, i], logps[x, j], ref_logps[x, i], ref_logps[x, j]))
    return table.run()


class _Table:
    """Logits that start at the reference, their optimiser, and the history: what all the trainers share."""

    def __init__(self, world: World, target, n_steps, learning_rate, seed=0, *more_parameters) -> None:
        import torch

        self.world, self.target, self.n_steps = world, target, n_steps
        self.ref_logps, self.rewards = _tensor(np.log(world.ref_probs)), _tensor(world.rewards)  # (prompts, replies)
        self.logits = self.ref_logps.clone().requires_grad_()
        self.generator = torch.Generator().manual_seed(seed)
        # eps far below the default: gradients of rare replies are small and count all the same
        self.optimizer = torch.optim.Adam([self.logits, *more_parameters], lr=learning_rate, eps=1e-10)
        self.learning_rate = learning_rate
        self.points: list[tuple] = []

    def steps(self):
        """Count the steps, take the learning rate linearly to 0, and note where the policy stands now and then."""
        every = max(1, self.n_steps // HISTORY_POINTS)
        for step in range(self.n_steps):
            if step % every == 0:
                self._note(step)
            self.optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.n_steps)
            yield step
        self._note(self.n_steps)

    def sample(self, batch_size: int, beta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of batch_size replies a prompt: log-probs (with gradient), r - beta log(pi / ref) (without), indices."""
        import torch

        logps = self.logits.log_softmax(-1)
        replies = torch.multinomial(logps.detach().exp(), batch_size, replacement=True, generator=self.generator)
        logps = logps.gather(1, replies)
        kl_terms = logps.detach() - self.ref_logps.gather(1, replies)
        return logps, self.rewards.gather(1, replies) - beta * kl_terms, replies

    def descend(self, loss: torch.Tensor) -> None:
        if not loss.isfinite():
            raise ValueError(f"the loss is {loss.item()}, and nothing can be learnt from that: look at its logarithms")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def policy(self) -> np.ndarray:
        return self.logits.detach().softmax(-1).numpy().reshape(self.world.rewards.shape)

    def run(self) -> Run:
        fields = [("step", int), ("tv", float), ("kl", float), ("reward", float)]
        return Run(self.policy(), np.array(self.points, dtype=fields).view(np.recarray))

    def _note(self, step: int) -> None:
        policy = self.policy()
        figures = exact.total_variation(policy, self.target), exact.kl(policy, self.world.ref_probs)
        self.points.append((step, *map(np.mean, figures), np.mean(exact.reward_of(policy, self.world.rewards))))


def _tensor(x: ArrayLike) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.atleast_2d(np.array(x, dtype=float)))
