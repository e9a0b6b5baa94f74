"""DPO in plain PyTorch: what TRL's DPOTrainer computes, short enough to be read with one finger.

`train` is the algorithm. A batch holds the chosen replies in its first half and the rejected ones in its second, so one
forward pass scores both, and its columns are TRL's. Where the reference's log-probs come from is a function of the
batch: the policy with its adapters off, another model, or nothing at all once they are stored in the batch.

Sources: DPO, arXiv 2305.18290, eq. 7 and appendix B; the second term of `dpo_sft_batch_loss`: Pang et al. 2024,
arXiv 2404.19733, eq. 1. The optimiser's settings are those of transformers' Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lab.losses import dpo_loss, implicit_rewards, sequence_logps, sft_loss
from rlhf_lab.profiles import Profile

Logps = tuple[Tensor, Tensor]  # of the chosen and of the rejected replies, summed over their tokens, (pairs,) each


@dataclass(frozen=True)
class Batch:
    """Pairs as one block of token ids: rows 0 .. n-1 end in the chosen replies, rows n .. 2n-1 in the rejected ones."""

    input_ids: Tensor  # (2 n, seq), padded on the right
    attention_mask: Tensor  # (2 n, seq), 0 on padding
    reply_mask: Tensor  # (2 n, seq), 1 on the reply's tokens, its end of turn included
    ref_logps: Logps | None = None  # the reference's, where they are stored


Reference = Callable[[Batch], Logps]
BatchLoss = Callable[..., Tensor]


def fresh_policy(path: str | Path, profile: Profile, seed: int = 0, adapter: dict[str, Tensor] | None = None):
    """The model at `path` under a new LoRA adapter: a policy that still equals its reference, dropout off.

    The adapter is drawn by `seed`, or is the one that `adapter_of` another policy gave.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    from rlhf_lab.forward import disable_dropout
    from rlhf_lab.models import load_policy, lora_config

    torch.manual_seed(seed)
    policy = get_peft_model(load_policy(path, profile), lora_config(profile, "CAUSAL_LM"))
    if adapter is not None:
        set_peft_model_state_dict(policy, adapter)
    disable_dropout(policy)
    return policy


def adapter_of(policy) -> dict[str, Tensor]:
    """A copy of the LoRA weights of `policy`, for `fresh_policy`."""
    from peft import get_peft_model_state_dict

    return {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(policy).items()}


def batches_of(
    rows: Sequence[dict], tokenizer, batch_size: int, max_length: int | None = None, device: str | torch.device = "cpu"
) -> list[Batch]:
    """Rows {prompt, chosen, rejected} in their order, `batch_size` pairs a batch; what fills no batch is left out.

    A sequence longer than `max_length` tokens loses its end, as in TRL. `device` is the policy's.
    """
    from rlhf_lab.evaluate import encode_dialogue, encode_prompt

    sides = {side: [encode_dialogue(tokenizer, row["prompt"], row[side][0]["content"]) for row in rows]
             for side in ("chosen", "rejected")}  # fmt: skip
    starts = [len(encode_prompt(tokenizer, row["prompt"])) for row in rows]
    batches = []
    for first in range(0, len(rows) - batch_size + 1, batch_size):
        part = slice(first, first + batch_size)
        ids = [torch.tensor(row[:max_length]) for side in sides.values() for row in side[part]]
        input_ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        place = torch.arange(input_ids.shape[1])
        attention_mask = place < torch.tensor([[len(row)] for row in ids])
        reply_mask = attention_mask & (place >= torch.tensor(starts[part] * 2)[:, None])
        batches.append(Batch(*(x.long().to(device) for x in (input_ids, attention_mask, reply_mask))))
    return batches


def dpo_batch_loss(
    policy_logits: Tensor,
    input_ids: Tensor,
    reply_mask: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
) -> Tensor:
    """DPO's loss of one batch from the policy's logits, (2 n, seq, vocab): chosen rows first. A scalar."""
    chosen, rejected = sequence_logps(policy_logits, input_ids, reply_mask).chunk(2)
    return dpo_loss(chosen, rejected, ref_chosen_logps, ref_rejected_logps, beta)


def dpo_sft_batch_loss(
    policy_logits: Tensor,
    input_ids: Tensor,
    reply_mask: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    sft_weight: float,
) -> Tensor:
    """dpo_batch_loss plus `sft_weight` times the cross-entropy of the chosen replies: RPO's way to keep them likely.

    The cross-entropy is the mean over all chosen tokens of the batch, as TRL's loss_type "sft" has it; the paper takes
    each reply's own mean first.
    """
    chosen = len(input_ids) // 2
    sft = sft_loss(policy_logits[:chosen], input_ids[:chosen], reply_mask[:chosen])
    loss = dpo_batch_loss(policy_logits, input_ids, reply_mask, ref_chosen_logps, ref_rejected_logps, beta)
    return loss + sft_weight * sft


def frozen(model) -> Reference:
    """A reference that is a model of its own, held in memory beside the policy."""

    @torch.no_grad()
    def reference(batch: Batch) -> Logps:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return sequence_logps(logits, batch.input_ids, batch.reply_mask).chunk(2)

    return reference


def adapters_off(policy) -> Reference:
    """The policy itself without its LoRA adapter: no second model, one more forward pass a step."""

    def reference(batch: Batch) -> Logps:
        with policy.disable_adapter():
            return frozen(policy)(batch)

    return reference


def precompute(reference: Reference, batches: Sequence[Batch]) -> list[Batch]:
    """The same batches with the reference's log-probs stored: two numbers a pair, and no reference from then on."""
    return [replace(batch, ref_logps=reference(batch)) for batch in batches]


def reference_distance(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor
) -> Tensor:
    """The largest |log pi - log pi_ref| over all replies, in nats, a scalar: 0, up to rounding, before the first step.

    The loss cannot stand in for it: it is log 2 for any two models whose log-ratios agree within each pair.
    """
    policy = torch.cat([policy_chosen_logps, policy_rejected_logps])
    return (policy - torch.cat([ref_chosen_logps, ref_rejected_logps])).abs().max()


def train(
    policy,
    batches: Sequence[Batch],
    *,
    beta: float,
    learning_rate: float,
    steps: int | None = None,
    warmup_steps: int = 0,
    reference: Reference | None = None,
    batch_loss: BatchLoss = dpo_batch_loss,
) -> Iterator[dict[str, float]]:
    """Train `policy` in place, one batch a step, again from the first when they are through; yield each step's gauges.

    AdamW without weight decay, the gradient's norm clipped at 1, linear warm-up and then a cosine to 0 at `steps` (one
    epoch where None). It is a generator: nothing happens until it is read, and whoever stops reading stops training.

    Args:
        batches: from `batches_of`; where they store the reference's log-probs, `reference` is not asked.
        beta: larger holds the policy closer to the reference.
        reference: None is the policy with its adapters off.
        batch_loss: called as dpo_batch_loss is.

    Yields:
        TRL's names: loss, grad_norm, rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies,
        logps/chosen, logps/rejected; means over the batch, in nats, before the step.
    """
    from transformers import get_scheduler

    steps, reference = steps or len(batches), reference or adapters_off(policy)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)
    policy.train()
    for batch in islice(cycle(batches), steps):
        ref_logps = batch.ref_logps or reference(batch)
        logits = policy(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = batch_loss(logits, batch.input_ids, batch.reply_mask, *ref_logps, beta)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(weights, max_norm=1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        policy_logps = sequence_logps(logits.detach(), batch.input_ids, batch.reply_mask).chunk(2)
        yield {"loss": loss.item(), "grad_norm": grad_norm.item(), **gauges(policy_logps, ref_logps, beta)}


def gauges(policy_logps: Logps, ref_logps: Logps, beta: float) -> dict[str, float]:
    """What DPO is watched by, as TRL names it: implicit rewards, their margin and accuracy, log-probs; batch means."""
    chosen, rejected = (
        implicit_rewards(policy, ref, beta) for policy, ref in zip(policy_logps, ref_logps, strict=True)
    )
    return {
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
        "rewards/accuracies": (chosen > rejected).float().mean().item(),
        "logps/chosen": policy_logps[0].mean().item(),
        "logps/rejected": policy_logps[1].mean().item(),
    }
