"""Exercises of lesson 08: a batch of DPO from logits, its gauges, its failures read from curves."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lab import evaluate as ev
from rlhf_lab import losses, plain_dpo
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.exercises.inputs import normal, tensor

# --- the reference ------------------------------------------------------------------------------------------------


def _before_the_first_step() -> list[tuple]:
    chosen, rejected = -20 + 4 * normal(80, 2, 6)
    stale = torch.zeros(6, dtype=torch.float64)
    stale[3] = -0.7
    return [
        (tensor(-12.0), tensor(-15.0), tensor(-12.0), tensor(-14.5)),
        (tensor(-12.0, -9.0), tensor(-15.0, -8.0), tensor(-10.0, -7.0), tensor(-13.0, -6.0)),  # both sides by 2
        (chosen, rejected, chosen.clone(), rejected.clone()),
        (chosen, rejected, chosen + stale, rejected - 0.1),
    ]


def _log_ratios(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return torch.cat([pc - rc, pr - rr])


@function_exercise(
    lesson=8,
    title="Do the stored log-probs belong to this reference?",
    difficulty=2,
    importance=4,
    minutes=6,
    rows=(27,),
    errata=("E24",),
    maths="before the first step pi = pi_ref: |log pi(y|x) - log pi_ref(y|x)| is 0 for every reply; take the largest",
    reference=plain_dpo.reference_distance,
    cases=_before_the_first_step,
    hints=(
        "One number for each reply, chosen and rejected alike: log pi minus what was stored.",
        "An average hides one stale row among thousands, and signs cancel: largest absolute value.",
    ),
    mistakes=(
        Mistake(
            "only the margin",
            "In the margin a fault of both sides cancels: a reference that counts the prompt too, say. Each reply's "
            "own log-ratio has to be 0.",
            lambda pc, pr, rc, rr: ((pc - rc) - (pr - rr)).abs().max(),
        ),
        Mistake(
            "the mean",
            "One stale row among thousands is a fault, and the mean does not show it. Take the largest.",
            lambda pc, pr, rc, rr: _log_ratios(pc, pr, rc, rr).abs().mean(),
        ),
        Mistake(
            "the sign kept",
            "A log-prob that is too high is as wrong as one too low: absolute values, then the largest.",
            lambda pc, pr, rc, rr: _log_ratios(pc, pr, rc, rr).max(),
        ),
        Mistake(
            "the chosen replies alone",
            "The rejected replies' log-probs are stored too, and can be wrong alone.",
            lambda pc, pr, rc, rr: (pc - rc).abs().max(),
        ),
        Mistake(
            "the distance from log 2",
            "The loss is log 2 here for any margin of 0, whatever the two sides are: it does not tell them apart.",
            lambda pc, pr, rc, rr: (losses.dpo_loss(pc, pr, rc, rr, 1.0) - math.log(2)).abs(),
        ),
    ),
)
def reference_distance(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    """How far the stored log-probs are from the untrained policy's own, in nats: one number, 0 if they belong to it.

    policy_*_logps: of the policy before its first step, (batch,). ref_*_logps: as stored, (batch,).
    """
    ...


# --- from blank ---------------------------------------------------------------------------------------------------


def _batches() -> list[tuple]:
    def batch(seed: int, ids: list, mask: list, vocab: int, ref: list, beta: float) -> tuple:
        ids, mask = torch.tensor(ids), torch.tensor(mask)
        ref_chosen, ref_rejected = tensor(*ref).chunk(2)
        return 2 * normal(seed, *ids.shape, vocab), ids, mask, ref_chosen, ref_rejected, beta

    return [
        batch(90, [[0, 1], [0, 0]], [[0, 1], [0, 1]], 2, [-0.3, -1.0], 0.5),
        batch(91, [[2, 0, 1], [2, 1, 1]], [[0, 1, 1], [0, 1, 0]], 3, [-2.0, -1.5], 0.1),
        batch(
            92,
            [[1, 0, 2, 2], [0, 2, 1, 0], [1, 0, 1, 0], [0, 2, 2, 0]],
            [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]],
            3,
            [-2.2, -1.4, -0.9, -1.8],
            0.3,
        ),
    ]


def _from_logps(loss: Callable[..., Tensor], score=losses.sequence_logps) -> Callable:
    """A wrong dpo_batch_loss: loss(chosen, rejected, ref_chosen, ref_rejected, beta) of score's halves."""

    def answer(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
        chosen, rejected = score(policy_logits, input_ids, reply_mask).chunk(2)
        return loss(chosen, rejected, ref_chosen_logps, ref_rejected_logps, beta)

    return answer


def _interleaved(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    logps = losses.sequence_logps(policy_logits, input_ids, reply_mask)
    return losses.dpo_loss(logps[0::2], logps[1::2], ref_chosen_logps, ref_rejected_logps, beta)


def _no_shift(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1) * mask).sum(-1)


def _mask_not_shifted(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, :-1]).sum(-1)


def _per_token(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return losses.sequence_logps(logits, ids, mask) / mask[:, 1:].sum(-1)


def _everything(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return losses.sequence_logps(logits, ids, torch.ones_like(mask))


@function_exercise(
    lesson=8,
    title="A batch of DPO from blank",
    difficulty=4,
    importance=5,
    minutes=20,
    rows=(26, 27, 43),
    errata=("E21", "E24"),
    maths="log pi(y|x) = sum over the reply of log softmax(logits_{t-1})[token_t] for all 2n rows; the first n are "
    "chosen, the last n rejected; L = mean of -log sigmoid(beta [log pi/pi_ref of chosen] - beta [of rejected])",
    reference=plain_dpo.dpo_batch_loss,
    cases=_batches,
    differentiable=("policy_logits",),
    hints=(
        "First one number for each of the 2n rows: logits[:, :-1] go with input_ids[:, 1:] and reply_mask[:, 1:]; "
        "log_softmax, gather, mask, sum.",
        "Then .chunk(2): the first half is chosen, the second rejected.",
        "Then lesson 04: -logsigmoid of beta times the difference of the two log-ratios, mean over pairs.",
    ),
    mistakes=(
        Mistake(
            "rows taken in turns",
            "Chosen and rejected do not alternate: rows 0 to n-1 are the chosen replies, n to 2n-1 the rejected ones. "
            "logps.chunk(2), not logps[0::2] and logps[1::2].",
            _interleaved,
        ),
        Mistake(
            "the halves swapped",
            "The first half is chosen. As it stands, training makes the rejected replies likelier.",
            _from_logps(lambda c, r, rc, rr, beta: -F.logsigmoid(-beta * ((c - rc) - (r - rr))).mean()),
        ),
        Mistake(
            "no shift",
            "logits[:, t] are about the token at t + 1: logits[:, :-1] go with input_ids[:, 1:].",
            _from_logps(losses.dpo_loss, _no_shift),
        ),
        Mistake(
            "the mask not shifted",
            "The mask belongs to the tokens: with input_ids[:, 1:] goes reply_mask[:, 1:].",
            _from_logps(losses.dpo_loss, _mask_not_shifted),
        ),
        Mistake(
            "everything counted",
            "Prompt and padding are in the sum. Only where reply_mask is 1 does a token count.",
            _from_logps(losses.dpo_loss, _everything),
        ),
        Mistake(
            "mean in place of the sum",
            "log pi(y|x) is the sum over the reply's tokens: a mean forgets the length, and it is no DPO then.",
            _from_logps(losses.dpo_loss, _per_token),
        ),
        Mistake(
            "the reference forgotten",
            "The stored log-probs are subtracted: log pi - log pi_ref, on both sides.",
            _from_logps(lambda c, r, rc, rr, beta: -F.logsigmoid(beta * (c - r)).mean()),
        ),
        Mistake(
            "beta forgotten",
            "The implicit reward is beta log(pi / pi_ref). Larger beta holds the policy closer to the reference.",
            _from_logps(lambda c, r, rc, rr, beta: -F.logsigmoid((c - rc) - (r - rr)).mean()),
        ),
        Mistake(
            "beta turned round",
            "beta multiplies the log-ratios. Larger beta holds the policy closer to the reference, for a smaller "
            "log-ratio then makes the same margin.",
            _from_logps(lambda c, r, rc, rr, beta: -F.logsigmoid(((c - rc) - (r - rr)) / beta).mean()),
        ),
        Mistake(
            "sum over the pairs",
            "The loss is the mean over the n pairs; with a sum the step grows with the batch.",
            lambda *given: plain_dpo.dpo_batch_loss(*given) * len(given[3]),
        ),
        Mistake(
            "divided by the rows",
            "There are 2n rows and n pairs. The mean is over pairs.",
            lambda *given: plain_dpo.dpo_batch_loss(*given) / 2,
        ),
    ),
)
def dpo_batch_loss(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta):
    """DPO's loss of one batch: a scalar tensor.

    policy_logits: (2n, seq, vocab). input_ids, reply_mask: (2n, seq), 1 on the reply. Rows 0 to n-1 are the chosen
    replies, rows n to 2n-1 the rejected ones. ref_*_logps: the reference's, summed, (n,).
    """
    ...


_SFT = losses.sft_loss


def _with_sft(term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """A wrong dpo_sft_batch_loss: DPO's loss + weight * term(logits, ids, mask of all 2n rows)."""

    def answer(logits, ids, mask, ref_chosen, ref_rejected, beta, sft_weight):
        return plain_dpo.dpo_batch_loss(logits, ids, mask, ref_chosen, ref_rejected, beta) + sft_weight * term(
            logits, ids, mask
        )

    return answer


def _chosen(part: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    return lambda logits, ids, mask: part(*(x[: len(ids) // 2] for x in (logits, ids, mask)))


@function_exercise(
    lesson=8,
    title="The term that keeps the chosen reply likely",
    difficulty=3,
    importance=4,
    minutes=12,
    rows=(27, 43),
    errata=("E8",),
    maths="L = L_DPO + weight * (- sum of log pi(token) over all chosen tokens / their number): RPO, arXiv 2404.19733",
    reference=plain_dpo.dpo_sft_batch_loss,
    cases=lambda: [(*case, weight) for case, weight in zip(_batches(), (2.0, 0.5, 1.0), strict=True)],
    differentiable=("policy_logits",),
    hints=(
        "The first term is the function you wrote above. Call it, or write it again.",
        "The second is SFT's loss on rows 0 to n-1 alone: cross-entropy, mean over their reply tokens.",
    ),
    mistakes=(
        Mistake(
            "the sign of the second term",
            "-log pi is added: the loss falls when the chosen replies become likelier. This makes them less likely.",
            _with_sft(lambda *x: -_chosen(_SFT)(*x)),
        ),
        Mistake(
            "the rejected replies too",
            "SFT's term is about the chosen replies. On all rows it teaches the rejected ones as well.",
            _with_sft(_SFT),
        ),
        Mistake(
            "the prompt learnt too",
            "Only the reply's tokens count, as in lesson 05: mask the prompt.",
            _with_sft(_chosen(lambda logits, ids, mask: _SFT(logits, ids, torch.ones_like(mask)))),
        ),
        Mistake(
            "sum in place of the mean",
            "A sum over tokens is tens of times as large as DPO's term, and drowns it.",
            _with_sft(_chosen(lambda logits, ids, mask: _SFT(logits, ids, mask) * mask[:, 1:].sum())),
        ),
        Mistake(
            "each reply's own mean first",
            "That is the paper's form. TRL's, asked for here, takes one mean over all chosen tokens of the batch: long "
            "replies weigh more.",
            _with_sft(_chosen(lambda logits, ids, mask: -_per_token(logits, ids, mask).mean())),
        ),
        Mistake(
            "the terms mixed",
            "The weight multiplies the second term and leaves DPO's as it is: no 1 - weight.",
            lambda *given: plain_dpo.dpo_sft_batch_loss(*given) - given[-1] * plain_dpo.dpo_batch_loss(*given[:-1]),
        ),
        Mistake(
            "the weight forgotten",
            "sft_weight multiplies the second term.",
            lambda *given: plain_dpo.dpo_sft_batch_loss(*given[:-1], 1.0),
        ),
    ),
)
def dpo_sft_batch_loss(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta, sft_weight):
    """DPO's loss of one batch plus sft_weight times the cross-entropy of its chosen replies: a scalar tensor.

    The arguments are dpo_batch_loss's. The cross-entropy is one mean over all reply tokens of the chosen rows.
    """
    ...


# --- gauges -------------------------------------------------------------------------------------------------------


def _implicit_reward_accuracy(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor) -> float:
    return ev.pair_accuracy(*(losses.implicit_rewards(*pair, beta=1.0).tolist() for pair in ((pc, rc), (pr, rr)))).value


def _judged() -> list[tuple]:
    chosen, rejected, ref_chosen, ref_rejected = -15 + 3 * normal(95, 4, 9)
    return [
        (tensor(-10.0), tensor(-8.0), tensor(-12.0), tensor(-9.0)),  # less likely than the rejected, yet rewarded more
        (tensor(-10.0, -7.0), tensor(-8.0, -7.5), tensor(-12.0, -6.0), tensor(-10.0, -6.0)),  # a tie, and one right
        (chosen, rejected, ref_chosen, ref_rejected),
    ]


def _share(of: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """A wrong accuracy: the mean of of(log-ratio of chosen, of rejected)."""
    return lambda pc, pr, rc, rr: of(pc - rc, pr - rr).double().mean()


@function_exercise(
    lesson=8,
    title="The implicit reward as a judge",
    difficulty=2,
    importance=4,
    minutes=6,
    rows=(27, 53),
    maths="a pair is right when beta log(pi/pi_ref) of chosen > that of rejected; beta > 0 changes no order; ties half",
    reference=_implicit_reward_accuracy,
    cases=_judged,
    hints=(
        "The implicit reward of a reply is beta (log pi - log pi_ref). Which of the two is larger does not need beta.",
        "1 where the chosen one's is larger, 0 where it is smaller, 0.5 where they are equal; then the mean.",
    ),
    mistakes=(
        Mistake(
            "likelihood as reward",
            "Without the reference this asks which reply is likelier. Short and common replies always are. The reward "
            "is what the policy adds: log pi - log pi_ref.",
            lambda pc, pr, rc, rr: (0.5 + 0.5 * (pc - pr).sign()).mean(),
        ),
        Mistake(
            "ties lost",
            "A judge that cannot tell them apart is right half of the time. TRL's log counts ties as wrong, which is "
            "why its first accuracy is 0.",
            _share(lambda chosen, rejected: chosen > rejected),
        ),
        Mistake("ties won", "A tie counts half.", _share(lambda chosen, rejected: chosen >= rejected)),
        Mistake(
            "rejected above chosen",
            "Right is where the chosen reply has the larger reward.",
            _share(lambda chosen, rejected: 0.5 + 0.5 * (rejected - chosen).sign()),
        ),
        Mistake(
            "the chosen's sign",
            "A chosen reply may lose probability and still be right: it is compared with the rejected one, not with 0.",
            _share(lambda chosen, rejected: 0.5 + 0.5 * chosen.sign()),
        ),
        Mistake(
            "the mean margin",
            "The mean margin can be large because of a few pairs. Accuracy counts pairs.",
            _share(lambda chosen, rejected: chosen - rejected),
        ),
    ),
)
def implicit_reward_accuracy(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    """Share of pairs that DPO's implicit reward orders as labelled, ties half: one number.

    policy_*_logps, ref_*_logps: summed log-probs of the replies, (pairs,).
    """
    ...


def _margins_at_optimum() -> list[float]:
    return [round(math.log(0.9 / 0.1) / beta, 4) for beta in (0.1, 0.5)]


margins_at_optimum = value_exercise(
    name="margins_at_optimum",
    question="Nine of ten annotators prefer the chosen reply of a pair, and DPO has fitted that exactly. How many nats "
    "is log(pi/pi_ref) of chosen above that of rejected, at beta 0.1 and at beta 0.5? Give [at 0.1, at 0.5].",
    lesson=8,
    title="How far beta lets it go",
    difficulty=2,
    importance=5,
    minutes=5,
    rows=(25, 43, 50),
    maths="sigmoid(beta h) = 0.9, so h = log(0.9 / 0.1) / beta: larger beta holds the policy closer to the reference",
    reference=_margins_at_optimum,
    tolerance=5e-3,
    hints=("The model's P(chosen preferred) is sigmoid(beta h). Set it to 0.9.", "log(0.9 / 0.1) = 2.197."),
    mistakes=(
        Mistake(
            "beta backwards",
            "h = 2.197 / beta. The labels fix the product beta h, so with the larger beta a smaller h will do: larger "
            "beta holds the policy closer to the reference.",
            [0.2197, 1.0986],
        ),
        Mistake(
            "the probability for its log-odds",
            "sigmoid(beta h) = 0.9 is solved by the log-odds log(0.9 / 0.1), not by 0.9.",
            [9.0, 1.8],
        ),
        Mistake("beta forgotten", "That is beta h, the margin of the rewards. h is that over beta.", [2.1972, 2.1972]),
        Mistake("the two in the other order", "First at beta 0.1.", [4.3944, 21.9722]),
        Mistake(
            "log of the probability",
            "log(0.9) is the loss's value. The logit of 0.9 is log(0.9 / 0.1).",
            [-1.0536, -0.2107],
        ),
    ),
)


# --- diagnosis ----------------------------------------------------------------------------------------------------


_RUNS = {
    "a": "chosen from -15 to -13, rejected from -18 to -21",
    "b": "chosen from -15 to -19, rejected from -18 to -31",
    "c": "chosen from -15 to -15, rejected from -18 to -18",
    "d": "chosen from -15 to -17, rejected from -18 to -16",
    "e": "chosen from -15 to -12, rejected from -18 to -15",
}

which_run_displaces = value_exercise(
    name="which_run_displaces",
    question="Mean log-probs of the replies in five runs of DPO, before and after. In which run is every gauge of the "
    "loss better than at the start, while the policy would now say the chosen replies less often?",
    lesson=8,
    title="Displacement, read from two curves",
    difficulty=2,
    importance=5,
    minutes=4,
    rows=(27,),
    errata=("E8",),
    maths="the margin grows by (-19 + 15) - (-31 + 18) = 9 nats although log pi(chosen) falls by 4: exp(-4) = 0.02",
    reference=lambda: "b",
    options=_RUNS,
    hints=(
        "What the loss sees is the change of chosen minus the change of rejected.",
        "The loss is content with any margin. Look for the run where it grew and the chosen reply lost all the same.",
    ),
    mistakes=(
        Mistake("the healthy run", "Here the chosen replies became likelier and the rejected less likely.", "a"),
        Mistake(
            "nothing learnt", "No log-prob moved: no gradient, or a learning rate too small. The gauges stand.", "c"
        ),
        Mistake(
            "trained the wrong way round",
            "The chosen replies fall, but the rejected rise: the margin is negative and the loss above log 2. That is "
            "what swapped columns look like.",
            "d",
        ),
        Mistake(
            "both rise alike",
            "Chosen and rejected rose by the same 3 nats: the margin is 0. SFT on both sides would do that.",
            "e",
        ),
    ),
)


_STUCK = {
    "identical": "within max_length the two replies of each pair are the same tokens",
    "swapped": "the columns chosen and rejected are swapped",
    "moving": "the reference is the policy itself, updated after every step",
    "slow": "the learning rate is a hundred times too small",
    "beta": "beta is too large",
}

stuck_at_log_two = value_exercise(
    name="stuck_at_log_two",
    question="For 200 steps the log says: loss 0.6931, margin 0.0000, accuracy 0, and grad_norm 0.0000. What is it?",
    lesson=8,
    title="Stuck at log 2",
    difficulty=3,
    importance=4,
    minutes=5,
    rows=(43,),
    errata=("E24",),
    maths="if y_w = y_l then log pi(y_w|x) - log pi(y_l|x) = 0 whatever the weights are, and so is its gradient",
    reference=lambda: "identical",
    options=_STUCK,
    hints=(
        "Which of these make the margin exactly 0 at every step? Two do.",
        "At a margin of 0 each pair weighs beta / 2. In which of the two is there still nothing to push?",
    ),
    mistakes=(
        Mistake(
            "swapped columns",
            "They train, the wrong way: the loss falls as usual, and on held-out pairs the accuracy is below one half.",
            "swapped",
        ),
        Mistake(
            "a reference that follows",
            "It also keeps the loss at 0.6931 and the margin at 0, but its gradient is not 0: log pi(chosen) - log "
            "pi(rejected) is pushed at full weight for ever, with nothing that holds it. Look at grad_norm.",
            "moving",
        ),
        Mistake(
            "a small learning rate",
            "Then the loss hardly moves, yet grad_norm is what it always is: the gradient does not know the learning "
            "rate.",
            "slow",
        ),
        Mistake(
            "a large beta",
            "A large beta makes the gradient at the start larger: its weight is beta / 2 for each pair.",
            "beta",
        ),
    ),
)


def _two_sevens() -> float:
    models, billions_of_parameters, bytes_each = 2, 6.74, 2
    return models * billions_of_parameters * bytes_each


two_sevens = value_exercise(
    name="two_sevens",
    question="The article's listing loads Llama-2-7B (6.74 billion parameters) twice, as model and as ref_model. How "
    "many GB (of 10^9 bytes) are the weights alone, in 16 bits? A T4 has 16.",
    lesson=8,
    title="Two times seven billion",
    difficulty=1,
    importance=4,
    minutes=3,
    rows=(43,),
    errata=("E24",),
    maths="2 models x 6.74e9 parameters x 2 bytes = 27.0 GB, before gradients, optimizer and activations",
    reference=_two_sevens,
    tolerance=1e-2,
    hints=("16 bits are 2 bytes.", "Two models."),
    mistakes=(
        Mistake("one model", "The reference is a model of its own in that listing: twice.", 13.48),
        Mistake("32 bits", "In 16 bits a parameter takes 2 bytes.", 53.92),
        Mistake("4 bits", "Half a byte a parameter is 4 bits, without their scales. In 16 bits it is 2 bytes.", 6.74),
        Mistake("bits for bytes", "16 bits are 2 bytes.", 215.68),
        Mistake("of 2^30 bytes", "That is GiB. In units of 10^9 bytes, as asked, it is 26.96.", 25.108),
    ),
)
