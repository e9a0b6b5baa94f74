"""Exercises of lesson 04: the optimum of RLHF, its reward turned inside out, and dpo_loss from blank."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.exercises.inputs import normal, tensor


def _array(*values: float) -> np.ndarray:
    return np.array(values)


# --- the optimum --------------------------------------------------------------------------------------------------


def _worlds() -> list[tuple]:
    rng = np.random.default_rng(0)
    return [
        (_array(0.5, 0.5), _array(1.0, 0.0), 2.0),
        (_array(0.8, 0.2), _array(0.0, 1.0), 0.5),
        (_array(0.5, 0.3, 0.2), _array(1.0, 2.0, 3.0), 0.001),  # rewards of 3000 in units of beta
        (rng.dirichlet(np.ones(5)), rng.normal(size=5), 0.3),
    ]


def _normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


@function_exercise(
    lesson=4,
    title="The optimum of RLHF",
    difficulty=2,
    importance=5,
    minutes=10,
    rows=(21, 22, 25),
    errata=("E6",),
    maths="pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x),  Z(x) = sum over y of pi_ref(y|x) exp(r(x, y) / beta)",
    reference=exact.optimal_policy,
    cases=_worlds,
    hints=(
        "Weigh each reply's reference probability by exp(reward / beta), then make the weights sum to 1.",
        "For small beta exp overflows. Only differences count: subtract the largest of r / beta before exp.",
    ),
    mistakes=(
        Mistake(
            "beta turned round",
            "exp(r / beta), not exp(beta r): larger beta holds the policy closer to the reference. As beta grows, "
            "pi* must become pi_ref.",
            lambda ref_probs, rewards, beta: _normalised(ref_probs * np.exp(rewards * beta)),
        ),
        Mistake(
            "the reference forgotten",
            "softmax(r / beta) is the optimum only for a uniform reference. Each weight starts from pi_ref(y).",
            lambda ref_probs, rewards, beta: _normalised(np.exp((rewards - rewards.max()) / beta)),
        ),
        Mistake(
            "Z forgotten",
            "The weights pi_ref exp(r / beta) do not sum to 1: divide by their sum Z.",
            lambda ref_probs, rewards, beta: ref_probs * np.exp(rewards / beta),
        ),
        Mistake(
            "exp overflows",
            "exp(3000) is inf, and inf / inf is nan. Subtract the largest r / beta before exp: Z changes, pi* does "
            "not.",
            lambda ref_probs, rewards, beta: _normalised(ref_probs * np.exp(rewards / beta)),
        ),
        Mistake(
            "beta forgotten",
            "exp(r / beta): without beta the trade between reward and KL is fixed at 1.",
            lambda ref_probs, rewards, beta: _normalised(ref_probs * np.exp(rewards)),
        ),
        Mistake(
            "the best reply only",
            "That is the optimum without the KL term (beta to 0). With it every reply of the reference keeps a share.",
            lambda ref_probs, rewards, beta: (np.arange(len(rewards)) == np.argmax(rewards)).astype(float),
        ),
    ),
)
def optimal_policy(ref_probs, rewards, beta):
    """pi*, the policy with the largest E_pi[reward] - beta KL(pi || pi_ref), for one prompt: probabilities, (replies,).

    ref_probs, rewards: arrays, (replies,). beta > 0, as small as 0.001; larger holds pi* closer to the reference.
    """
    ...


@function_exercise(
    lesson=4,
    title="log Z, without overflow",
    difficulty=2,
    importance=3,
    minutes=8,
    rows=(22, 23),
    maths="log Z(x) = log sum over y of exp(log pi_ref(y|x) + r(x, y) / beta): a log-sum-exp",
    reference=exact.log_partition,
    cases=lambda: [*_worlds(), (_array(0.25, 0.75), _array(2.0, -1.0), 1.5)],
    hints=(
        "Bring pi_ref into the exponent, as its logarithm.",
        "log sum exp(a) = m + log sum exp(a - m) for any m; take the largest a. scipy.special.logsumexp does it.",
    ),
    mistakes=(
        Mistake(
            "Z in place of log Z",
            "The logarithm is missing (and Z itself overflows for small beta).",
            lambda ref_probs, rewards, beta: np.sum(ref_probs * np.exp(rewards / beta)),
        ),
        Mistake(
            "the logarithm inside the mean",
            "E_ref[r / beta] is the mean of logarithms. log Z is the logarithm of the mean, which is never less "
            "(Jensen).",
            lambda ref_probs, rewards, beta: np.sum(ref_probs * rewards / beta),
        ),
        Mistake(
            "beta log Z",
            "beta log Z is the best value of the objective. The question is log Z.",
            lambda ref_probs, rewards, beta: beta * exact.log_partition(ref_probs, rewards, beta),
        ),
        Mistake(
            "the reference forgotten",
            "Z is an expectation under the reference: each exp(r / beta) is weighted by pi_ref(y).",
            lambda ref_probs, rewards, beta: np.logaddexp.reduce(rewards / beta),
        ),
        Mistake(
            "beta turned round",
            "exp(r / beta), not exp(beta r).",
            lambda ref_probs, rewards, beta: exact.log_partition(ref_probs, rewards, 1 / beta),
        ),
        Mistake(
            "exp overflows",
            "exp(3000) is inf. Take the largest exponent out first: m + log sum exp(a - m).",
            lambda ref_probs, rewards, beta: np.log(np.sum(ref_probs * np.exp(rewards / beta))),
        ),
    ),
)
def log_partition(ref_probs, rewards, beta):
    """log Z for one prompt: one number. ref_probs, rewards: arrays, (replies,). beta > 0, as small as 0.001."""
    ...


@function_exercise(
    lesson=4,
    title="The reward a policy implies",
    difficulty=2,
    importance=5,
    minutes=6,
    rows=(23, 24, 27),
    errata=("E2",),
    maths="r(x, y) = beta log(pi(y|x) / pi_ref(y|x)) + beta log Z(x); the last term is the same for every reply to x",
    reference=exact.implied_reward,
    cases=lambda: [
        (_array(0.6, 0.4), _array(0.5, 0.5), 0.5),
        (_array(0.7, 0.2, 0.1), _array(0.2, 0.3, 0.5), 0.1),
        (_normalised(np.arange(1.0, 5.0)), _normalised(np.array([4.0, 1.0, 2.0, 2.0])), 2.0),
    ],
    hints=(
        "Take the logarithm of pi* = pi_ref exp(r / beta) / Z and solve for r.",
        "Leave out beta log Z: it is one number for the whole prompt and cancels in every comparison.",
    ),
    mistakes=(
        Mistake(
            "divided by beta",
            "Solve log(pi / pi_ref) = r / beta - log Z for r: multiply by beta.",
            lambda policy, ref, beta: np.log(policy / ref) / beta,
        ),
        Mistake(
            "reference over policy",
            "A reply the policy likes more than the reference does has the higher reward: log(pi / pi_ref).",
            lambda policy, ref, beta: beta * np.log(ref / policy),
        ),
        Mistake(
            "the logarithm forgotten",
            "Rewards are logarithms of strengths: beta log(pi / pi_ref).",
            lambda policy, ref, beta: beta * policy / ref,
        ),
        Mistake(
            "the reference forgotten",
            "beta log pi would call common replies good only because they are common. Divide by pi_ref.",
            lambda policy, ref, beta: beta * np.log(policy),
        ),
        Mistake(
            "beta forgotten",
            "beta sets the scale of the reward: beta log(pi / pi_ref).",
            lambda policy, ref, beta: np.log(policy / ref),
        ),
        Mistake(
            "a difference of probabilities",
            "Ratios, not differences: 0.02 against 0.01 is as large a step as 0.8 against 0.4.",
            lambda policy, ref, beta: beta * (policy - ref),
        ),
    ),
)
def implied_reward(policy, ref, beta):
    """The reward for which `policy` is optimal, leaving out the term that all replies share: array (replies,).

    policy, ref: probabilities of the replies to one prompt, arrays (replies,), all above 0.
    """
    ...


# --- the loss -----------------------------------------------------------------------------------------------------


def _reply_log_ratio(policy_logits: Tensor, ref_logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        ref_logps = losses.sequence_logps(ref_logits, input_ids, mask)
    return losses.sequence_logps(policy_logits, input_ids, mask) - ref_logps


def _log_ratio_cases() -> list[tuple]:
    def batch(seed: int, ids: list, mask: list, vocab: int) -> tuple:
        ids, mask = torch.tensor(ids), torch.tensor(mask)
        return normal(seed, *ids.shape, vocab), normal(seed + 50, *ids.shape, vocab), ids, mask

    return [
        batch(20, [[0, 1]], [[0, 1]], 2),
        batch(21, [[2, 0, 1]], [[0, 1, 1]], 3),
        batch(22, [[1, 0, 2, 2], [0, 2, 1, 0]], [[0, 0, 1, 1], [0, 1, 1, 0]], 3),
    ]


def _log_ratio(score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """A wrong reply_log_ratio: score(policy) - score(reference)."""
    return lambda policy_logits, ref_logits, input_ids, mask: (
        score(policy_logits, input_ids, mask) - score(ref_logits.detach(), input_ids, mask)
    )


def _unshifted(logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    return (logits.log_softmax(-1).gather(-1, input_ids[..., None]).squeeze(-1) * mask).sum(-1)


def _shifted_back(logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    logps = logits[:, 1:].log_softmax(-1).gather(-1, input_ids[:, :-1, None]).squeeze(-1)
    return (logps * mask[:, :-1]).sum(-1)


def _mask_not_shifted(logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    logps = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return (logps * mask[:, :-1]).sum(-1)


def _without_softmax(logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    return (logits[:, :-1].gather(-1, input_ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]).sum(-1)


@function_exercise(
    lesson=4,
    title="From logits to a reply's log-ratio",
    difficulty=4,
    importance=5,
    minutes=20,
    rows=(26, 27),
    errata=("E20", "E21"),
    maths="log pi(y|x) = sum over the reply's tokens of log softmax(logits_{t-1})[token_t]; the answer is "
    "log pi(y|x) - log pi_ref(y|x), pi_ref constant",
    reference=_reply_log_ratio,
    cases=_log_ratio_cases,
    differentiable=("policy_logits",),
    constants=("ref_logits",),
    hints=(
        "logits[:, t] are about the token at t + 1. So logits[:, :-1] go with input_ids[:, 1:] and mask[:, 1:].",
        "log_softmax over the vocabulary, gather the token that is there, multiply by the mask, sum over the sequence.",
        "Do the same for the reference under torch.no_grad(), and subtract.",
    ),
    mistakes=(
        Mistake(
            "no shift",
            "logits[:, t] predict the token at t + 1: logits[:, :-1] go with input_ids[:, 1:]. Unshifted, the model is "
            "asked for a token it has just read.",
            _log_ratio(_unshifted),
        ),
        Mistake(
            "shifted the wrong way",
            "logits[:, 1:] with input_ids[:, :-1] asks for the token before. It is logits[:, :-1] with input_ids[:, "
            "1:].",
            _log_ratio(_shifted_back),
        ),
        Mistake(
            "the mask not shifted",
            "mask belongs to the tokens: with input_ids[:, 1:] goes mask[:, 1:], or the last token of the prompt "
            "counts and the last of the reply does not.",
            _log_ratio(_mask_not_shifted),
        ),
        Mistake(
            "the prompt counted",
            "log pi(y|x) is about the reply only. Without the mask the prompt's tokens (and padding) are in the sum.",
            _log_ratio(lambda logits, ids, mask: losses.sequence_logps(logits, ids, torch.ones_like(mask))),
        ),
        Mistake(
            "mean in place of the sum",
            "The probability of a reply is a product over its tokens, so its log is a sum. The mean forgets the "
            "length, and DPO's derivation no longer holds.",
            _log_ratio(lambda logits, ids, mask: losses.sequence_logps(logits, ids, mask) / mask[:, 1:].sum(-1)),
        ),
        Mistake(
            "softmax forgotten",
            "Logits are no log-probs: log_softmax over the vocabulary first.",
            _log_ratio(_without_softmax),
        ),
        Mistake(
            "reference minus policy",
            "log pi - log pi_ref.",
            _log_ratio(lambda logits, ids, mask: -losses.sequence_logps(logits, ids, mask)),
        ),
        Mistake(
            "missing detach",
            "The reference is fixed. If its logits carry a gradient, training moves it too, away from the policy, and "
            "the log-ratio means nothing: torch.no_grad() or .detach().",
            lambda policy_logits, ref_logits, input_ids, mask: (
                losses.sequence_logps(policy_logits, input_ids, mask)
                - losses.sequence_logps(ref_logits, input_ids, mask)
            ),
        ),
    ),
)
def reply_log_ratio(policy_logits, ref_logits, input_ids, mask):
    """log pi(y|x) - log pi_ref(y|x) of each reply: tensor (batch,).

    policy_logits, ref_logits: (batch, seq, vocab). input_ids: (batch, seq), prompt and reply. mask: 1 on the reply.
    Only policy_logits may carry a gradient, even if the caller forgot to detach the reference's.
    """
    ...


def _pair_cases() -> list[tuple]:
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = -20 + 4 * normal(30, 4, 5)
    return [
        (tensor(-2.0), tensor(-3.0), tensor(-2.5), tensor(-2.0), 0.5),
        (tensor(-10.0, -8.0), tensor(-9.0, -12.0), tensor(-11.0, -7.0), tensor(-9.5, -11.0), 0.1),
        # fp32, as in training: sigmoid(-130) is 0 there
        (torch.tensor([-1500.0]), torch.tensor([-100.0]), torch.tensor([-300.0]), torch.tensor([-200.0]), 0.1),
        (policy_chosen, policy_rejected, ref_chosen, ref_rejected, 0.1),
        (policy_chosen, policy_rejected, ref_chosen, ref_rejected, 0.5),
    ]


def _margin(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor
) -> Tensor:
    """The difference of the two log-ratios, without beta."""
    return (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)


def _dpo(loss: Callable[[Tensor, float], Tensor]) -> Callable:
    """A wrong dpo_loss: loss(difference of the log-ratios, beta)."""
    return lambda pc, pr, rc, rr, beta: loss(_margin(pc, pr, rc, rr), beta)


def _gradient_weight(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
) -> Tensor:
    with torch.enable_grad():
        chosen = policy_chosen_logps.detach().requires_grad_()
        loss = losses.dpo_loss(
            chosen, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, reduction="sum"
        )
    return -torch.autograd.grad(loss, chosen)[0]


@function_exercise(
    lesson=4,
    title="How hard DPO pushes a pair",
    difficulty=3,
    importance=3,
    minutes=8,
    rows=(24, 25),
    maths="-d/dm log sigmoid(beta m) = -beta sigmoid(-beta m), so the weight is beta sigmoid(-(r_chosen - r_rejected))",
    reference=_gradient_weight,
    cases=_pair_cases,
    hints=(
        "Differentiate -log sigmoid(u) by u, then u = beta (...) by log pi(chosen).",
        "A pair that is ordered the wrong way must be pushed harder than one that is right already.",
    ),
    mistakes=(
        Mistake(
            "the weight of a pair that is right",
            "sigmoid(+margin) is largest where the pair is right already. The weight is beta sigmoid(-margin).",
            _dpo(lambda margin, beta: beta * torch.sigmoid(beta * margin)),
        ),
        Mistake(
            "beta forgotten",
            "The chain rule brings one beta out in front: beta sigmoid(-margin).",
            _dpo(lambda margin, beta: torch.sigmoid(-beta * margin)),
        ),
        Mistake(
            "the derivative of the sigmoid",
            "sigmoid (1 - sigmoid) is the derivative without the log. With the log only 1 - sigmoid is left.",
            _dpo(lambda margin, beta: beta * torch.sigmoid(beta * margin) * torch.sigmoid(-beta * margin)),
        ),
        Mistake(
            "the loss itself",
            "This is -log sigmoid(margin). Its derivative by log pi(chosen) is asked for.",
            _dpo(lambda margin, beta: -F.logsigmoid(beta * margin)),
        ),
        Mistake(
            "the sign kept",
            "This is the derivative, below 0. The weight is how hard the pair is pushed: its size.",
            _dpo(lambda margin, beta: -beta * torch.sigmoid(-beta * margin)),
        ),
        Mistake(
            "the reference forgotten",
            "The margin is of implied rewards: log pi - log pi_ref, chosen minus rejected.",
            lambda pc, pr, rc, rr, beta: beta * torch.sigmoid(-beta * (pc - pr)),
        ),
        Mistake(
            "the margin without beta",
            "Inside the sigmoid stand implied rewards, which have beta too: beta sigmoid(-beta (...)).",
            _dpo(lambda margin, beta: beta * torch.sigmoid(-margin)),
        ),
    ),
)
def dpo_gradient_weight(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    """|d loss / d policy_chosen_logps| of each pair's own DPO loss (no mean over pairs): (batch,).

    The gradient raises log pi(chosen) and lowers log pi(rejected) with this one weight.
    """
    ...


# --- what the letters mean ----------------------------------------------------------------------------------------


_BETA = {
    "closer": "the policy stays closer to the reference",
    "further": "the policy moves further from the reference",
    "faster": "the same policy is reached, in fewer steps",
    "sharper": "the policy puts more of its mass on the best reply",
    "nothing": "the optimum does not depend on beta",
}

what_beta_does = value_exercise(
    name="what_beta_does",
    question="Two DPO runs on the same pairs are trained until their loss is lowest, one with beta 0.1 and one with "
    "beta 0.5. What does the larger beta do?",
    lesson=4,
    title="What beta does",
    difficulty=1,
    importance=5,
    minutes=3,
    rows=(25, 48, 50),
    maths="log(pi*/pi_ref) = r / beta - log Z: the same preferences need a log-ratio 1 / beta as large",
    reference=lambda: "closer",
    options=_BETA,
    hints=(
        "beta multiplies KL(pi || pi_ref) in the objective. Who pays more for drifting?",
        "Look at pi* = pi_ref exp(r / beta) / Z as beta grows.",
    ),
    mistakes=(
        Mistake(
            "beta backwards",
            "Two admired courses have it so too. beta is the price of KL: larger beta holds the policy closer to the "
            "reference. As beta grows, pi_ref exp(r / beta) / Z becomes pi_ref.",
            "further",
        ),
        Mistake(
            "beta as a learning rate",
            "The gradient does carry a factor beta, but the optimum moves as well: log(pi*/pi_ref) = r / beta - log Z.",
            "faster",
        ),
        Mistake(
            "beta as an inverse temperature",
            "beta divides the reward, so it acts as a temperature: larger is flatter, towards pi_ref.",
            "sharper",
        ),
        Mistake(
            "beta without effect",
            "In pi* = pi_ref exp(r / beta) / Z it divides the reward: larger beta holds the policy closer to the "
            "reference.",
            "nothing",
        ),
    ),
)


def _ipo_margin() -> float:
    """Where the IPO loss at tau = 0.2 is 0. A square (h - c)^2 with slope L' at h is 0 at h - 2 L / L'."""
    margin = tensor(0.0).requires_grad_()
    zero = torch.zeros(1, dtype=torch.float64)
    loss = losses.ipo_loss(margin, zero, zero, zero, tau=0.2)
    slope = torch.autograd.grad(loss, margin)[0].item()
    return -2 * loss.item() / slope


ipo_margin = value_exercise(
    name="ipo_margin",
    question="A pair is labelled the same way by everyone. h = log(pi/pi_ref) of chosen minus that of rejected. "
    "At which h does IPO's loss settle, for tau = 0.2?",
    lesson=4,
    title="Where IPO stops",
    difficulty=2,
    importance=3,
    minutes=5,
    rows=(25,),
    errata=("E7",),
    maths="L_IPO = (h - 1 / (2 tau))^2; DPO's -log sigmoid(beta h) has no lowest point",
    reference=_ipo_margin,
    tolerance=1e-3,
    hints=("A square is lowest where it is 0.", "h = 1 / (2 tau)."),
    mistakes=(
        Mistake(
            "without end",
            "That is DPO: -log sigmoid(beta h) falls for ever, so with certain labels h grows without end whatever "
            "beta is. IPO's square has its minimum at 1 / (2 tau).",
            math.inf,
        ),
        Mistake("the 2 forgotten", "1 / (2 tau), not 1 / tau.", 5.0),
        Mistake("not inverted", "1 / (2 tau): larger tau holds the policy closer, so the margin shrinks.", 0.4),
        Mistake("tau itself", "h settles at 1 / (2 tau).", 0.2),
        Mistake("tau / 2", "h settles at 1 / (2 tau), the inverse of 2 tau.", 0.1),
    ),
)


_UNSEEN = {
    "anything": "anything: the loss is the same wherever C's probability goes",
    "reference": "its probability under the reference",
    "optimum": "its probability under pi*",
    "zero": "0",
    "middle": "something between A's and B's",
}

unseen_reply = value_exercise(
    name="unseen_reply",
    question="A prompt has three replies, A, B and C. The data compare only A with B. DPO is trained until its loss is "
    "lowest, with a policy that can give any probabilities. What does the loss make C's probability?",
    lesson=4,
    title="A reply the data do not cover",
    difficulty=3,
    importance=4,
    minutes=5,
    rows=(20, 22, 24),
    errata=("E7", "E8"),
    maths="L depends on log pi(A) - log pi(B) only: multiply both by any factor, give the rest to C, and L is the same",
    reference=lambda: "anything",
    options=_UNSEEN,
    hints=(
        "Write the loss. Which probabilities occur in it?",
        "Halve pi(A) and pi(B) and give the rest to C. What happens to the margin?",
    ),
    mistakes=(
        Mistake(
            "the KL taken for a leash on unseen replies",
            "PPO samples C and pays for it in KL; DPO's loss never sees C. The reference enters only through A and B.",
            "reference",
        ),
        Mistake(
            "equivalence without coverage",
            "DPO has the optimum of RLHF only if every reply is covered. Here the loss leaves C free, and pi* is one "
            "of many minima (arXiv 2404.10719).",
            "optimum",
        ),
        Mistake(
            "unseen taken for rejected",
            "Nothing pushes C down. Often it even rises, as both A and B lose mass (likelihood displacement).",
            "zero",
        ),
        Mistake(
            "unseen taken for a tie",
            "C stands in no comparison, so it has no place in the order of A and B.",
            "middle",
        ),
    ),
)


# --- from blank ---------------------------------------------------------------------------------------------------


@function_exercise(
    lesson=4,
    title="dpo_loss from blank",
    difficulty=3,
    importance=5,
    minutes=15,
    rows=(24, 25, 26, 27),
    errata=("E19", "E21"),
    maths="L = mean of -log sigmoid(beta [log pi/pi_ref of chosen] - beta [log pi/pi_ref of rejected])",
    reference=losses.dpo_loss,
    cases=_pair_cases,
    differentiable=("policy_chosen_logps", "policy_rejected_logps"),
    hints=(
        "Two implied rewards, beta (log pi - log pi_ref), one of the chosen and one of the rejected reply.",
        "Then it is the reward model's loss, with these rewards in place of its own: -logsigmoid(difference), mean.",
        "Check yourself: if policy and reference agree, the loss is log 2 = 0.6931 whatever beta is.",
    ),
    mistakes=(
        Mistake(
            "chosen and rejected swapped",
            "This loss falls when the rejected reply becomes likelier. Chosen minus rejected inside the sigmoid.",
            _dpo(lambda margin, beta: -F.logsigmoid(-beta * margin).mean()),
        ),
        Mistake(
            "beta turned round",
            "r = beta log(pi / pi_ref): beta multiplies. Larger beta holds the policy closer to the reference, because "
            "a small log-ratio then already makes a large margin.",
            _dpo(lambda margin, beta: -F.logsigmoid(margin / beta).mean()),
        ),
        Mistake(
            "beta forgotten",
            "The implied reward is beta log(pi / pi_ref). Without beta it is 1, ten times the usual 0.1.",
            _dpo(lambda margin, beta: -F.logsigmoid(margin).mean()),
        ),
        Mistake(
            "beta outside the sigmoid",
            "beta times the loss is only another learning rate. beta has to stand inside: sigmoid(beta (...)).",
            _dpo(lambda margin, beta: -beta * F.logsigmoid(margin).mean()),
        ),
        Mistake(
            "the reference forgotten",
            "Without log pi_ref nothing ties the policy to the reference; this pushes log pi(chosen) - log "
            "pi(rejected).",
            lambda pc, pr, rc, rr, beta: -F.logsigmoid(beta * (pc - pr)).mean(),
        ),
        Mistake(
            "the reference with the wrong sign",
            "(log pi_w - log pi_l) - (log ref_w - log ref_l): the reference's difference is subtracted.",
            lambda pc, pr, rc, rr, beta: -F.logsigmoid(beta * ((pc - pr) + (rc - rr))).mean(),
        ),
        Mistake(
            "missing logsigmoid",
            "As the article writes it, -log(sigmoid(x)) is inf at x = -130 in fp32, and its gradient nan. F.logsigmoid "
            "gives the exact value.",
            _dpo(lambda margin, beta: -torch.log(torch.sigmoid(beta * margin)).mean()),
        ),
        Mistake(
            "the minus forgotten",
            "log sigmoid is a log-likelihood, to be raised. A loss is lowered: put the minus in front.",
            _dpo(lambda margin, beta: F.logsigmoid(beta * margin).mean()),
        ),
        Mistake(
            "sum in place of the mean",
            "With a sum the step grows with the batch. The loss is the mean over pairs.",
            _dpo(lambda margin, beta: -F.logsigmoid(beta * margin).sum()),
        ),
        Mistake(
            "the mean taken too early",
            "The mean is over the losses of the pairs, not over their margins.",
            _dpo(lambda margin, beta: -F.logsigmoid(beta * margin.mean())),
        ),
    ),
)
def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    """DPO's loss: a scalar tensor.

    policy_*_logps, ref_*_logps: summed log-probs of the replies, (batch,). beta: larger holds the policy closer to the
    reference. It must stay finite, with a useful gradient, when a margin is very negative.
    """
    ...
