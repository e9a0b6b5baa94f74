"""One pass through a model: logits of the reply's positions only, the states a head reads, a classifier's score.

Rows may be padded on either side: positions count tokens, not padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_lab.sampling import position_ids


def disable_dropout(model: nn.Module) -> None:
    """A log-prob must be the same each time it is computed, else PPO's ratio is noise before the first update."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def run(model, input_ids: Tensor, attention_mask: Tensor, n_last: int, **kwargs):
    """The output of a causal model; its logits are of the last `n_last` positions, (batch, n_last, vocab)."""
    return model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
        logits_to_keep=n_last,
        **kwargs,
    )


def hidden_states(model, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What the head of `model` reads: (batch, seq, hidden)."""
    return getattr(model, model.base_model_prefix)(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
    ).last_hidden_state


def at_last_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """(batch, seq, hidden) -> (batch, hidden): the state at each row's last token, padding on either side."""
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).int().argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def scores(classifier, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """A sequence classifier's one label, read at each row's last token: (batch,), fp32."""
    hidden = hidden_states(classifier, input_ids, attention_mask)
    return classifier.score(at_last_token(hidden, attention_mask)).squeeze(-1).float()


def read_in_fp32(head: nn.Linear, hidden: Tensor) -> Tensor:
    """A head of one output on the states, whatever precision the model has: (..., hidden) -> (...)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), head.weight.float()).squeeze(-1)
