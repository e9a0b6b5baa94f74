"""The four models of RLHF: policy, reference, value and reward.

With LoRA all four stand on one base. The policy is an adapter; the reference is the base with every adapter off; value
and reward are an adapter each and a linear head. Without LoRA they are separate models, as in TRL 1.12.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path

from torch import Tensor, nn

from rlhf_lab import forward
from rlhf_lab.models import load_head_and_adapter


class SeparateRoles(nn.Module):
    """Up to four separate models. Without a reference model, the policy must be a PeftModel."""

    shared_value = False

    def __init__(
        self, policy, reference, value, reward, ref_adapter: str | None = None, adapter: str = "default"
    ) -> None:
        super().__init__()
        self.policy, self.value, self.reference, self.reward = policy, value, reference, reward
        self.ref_adapter, self.adapter = ref_adapter, adapter
        for frozen in (reference, reward):
            if frozen is not None:
                frozen.requires_grad_(False)

    def value_pass(self):
        """Nothing to switch: the value is a model of its own."""
        return nullcontext()

    def logits(self, input_ids: Tensor, attention_mask: Tensor, n_last: int) -> Tensor:
        """The policy's logits at the last `n_last` positions: (batch, n_last, vocab)."""
        return forward.run(self.policy, input_ids, attention_mask, n_last).logits

    def reference_logits(self, input_ids: Tensor, attention_mask: Tensor, n_last: int) -> Tensor:
        """The reference's logits at the last `n_last` positions."""
        if self.reference is not None:
            return forward.run(self.reference, input_ids, attention_mask, n_last).logits
        if self.ref_adapter is None:
            with self.policy.disable_adapter():
                return forward.run(self.policy, input_ids, attention_mask, n_last).logits
        self.policy.set_adapter(self.ref_adapter)
        try:
            return forward.run(self.policy, input_ids, attention_mask, n_last).logits
        finally:
            self.policy.set_adapter(self.adapter)

    def values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The value at every position: (batch, seq)."""
        return self.value.score(forward.hidden_states(self.value, input_ids, attention_mask)).squeeze(-1)

    def logits_and_values(self, input_ids: Tensor, attention_mask: Tensor, n_last: int) -> tuple[Tensor, Tensor]:
        """Both, at the last `n_last` positions."""
        values = self.values(input_ids, attention_mask)[:, -n_last:]
        return self.logits(input_ids, attention_mask, n_last), values

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The reward model's score at the last token of each row: (batch,)."""
        return forward.scores(self.reward, input_ids, attention_mask)


class OneBaseRoles(nn.Module):
    """Policy, reference and value on the base of one PeftModel, whose adapter "default" is the policy; reward too.

    `reward` is the folder of a reward adapter trained on the same base, or a separate classifier, or None. With
    `shared_value` the value is no adapter but a head on the policy's own states: one pass gives both.
    """

    def __init__(self, policy, reward, peft_config, shared_value: bool = False) -> None:
        super().__init__()
        self.policy, self.shared_value = policy, shared_value
        self.reward = reward.requires_grad_(False) if isinstance(reward, nn.Module) else None
        hidden_size = policy.config.get_text_config().hidden_size
        # Heads stay in fp32: a value is a regression, and half precision rounds it to steps.
        self.value_head, self.reward_head = (nn.Linear(hidden_size, 1, bias=False) for _ in range(2))
        self.reward_head.requires_grad_(False)
        nn.init.zeros_(self.value_head.weight)
        if isinstance(reward, (str, Path)):
            self.reward_head.weight.data.copy_(load_head_and_adapter(policy, reward, "reward"))
            if not shared_value:
                # The value starts as the reward model (Stiennon et al. 2020): it knows what will be scored well.
                self.value_head.weight.data.copy_(load_head_and_adapter(policy, reward, "value"))
        elif not shared_value:
            policy.add_adapter("value", peft_config)
        self.to(next(policy.parameters()).device)
        self._layers = [module for module in policy.modules() if hasattr(module, "lora_A")]
        self._active: str | None = "default"
        for name, parameter in policy.named_parameters():
            parameter.requires_grad = ".default." in name or ".value." in name

    @contextmanager
    def _adapter(self, name: str | None) -> Iterator[None]:
        """Make `name` the active adapter, or none. PEFT's own ways to switch would freeze the others."""
        before = self._active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, name: str | None) -> None:
        self._active = name
        for layer in self._layers:
            layer._disable_adapters = name is None
            layer._active_adapter = [name or "default"]

    def value_pass(self):
        """Holds the value's adapter active. Keep it round the backward: gradient checkpointing runs forward again."""
        return nullcontext() if self.shared_value else self._adapter("value")

    def _read(self, adapter: str, head: nn.Module, input_ids: Tensor, attention_mask: Tensor, pick=None) -> Tensor:
        with self._adapter(adapter):
            hidden = forward.hidden_states(self.policy.get_base_model(), input_ids, attention_mask)
        return forward.read_in_fp32(head, hidden if pick is None else pick(hidden, attention_mask))

    def logits(self, input_ids: Tensor, attention_mask: Tensor, n_last: int) -> Tensor:
        """The policy's logits at the last `n_last` positions: (batch, n_last, vocab)."""
        return forward.run(self.policy, input_ids, attention_mask, n_last).logits

    def reference_logits(self, input_ids: Tensor, attention_mask: Tensor, n_last: int) -> Tensor:
        """The reference's logits: the base's, adapters off."""
        with self._adapter(None):
            return forward.run(self.policy, input_ids, attention_mask, n_last).logits

    def values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The value at every position: (batch, seq)."""
        return self._read("default" if self.shared_value else "value", self.value_head, input_ids, attention_mask)

    def logits_and_values(self, input_ids: Tensor, attention_mask: Tensor, n_last: int) -> tuple[Tensor, Tensor]:
        """The policy's logits and the values, at the last `n_last` positions; of one pass where it is shared."""
        if not self.shared_value:
            values = self.values(input_ids, attention_mask)
            return self.logits(input_ids, attention_mask, n_last), values[:, -n_last:]
        output = forward.run(self.policy, input_ids, attention_mask, n_last, output_hidden_states=True)
        return output.logits, forward.read_in_fp32(self.value_head, output.hidden_states[-1][:, -n_last:])

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The reward model's score at the last token of each row: (batch,)."""
        if self.reward is not None:
            return forward.scores(self.reward, input_ids, attention_mask)
        return self._read("reward", self.reward_head, input_ids, attention_mask, forward.at_last_token)


def assign_roles(args, model, ref_model, reward, value_model, peft_config) -> SeparateRoles | OneBaseRoles:
    """Who plays what: one base with `peft_config` and no model for reference or value, else as many as are given."""
    from peft import PeftModel

    if peft_config is not None and value_model is None and ref_model is None:
        return OneBaseRoles(model, reward, peft_config, args.shared_value)
    if args.shared_value:
        raise ValueError("shared_value needs peft_config and no value_model or ref_model: one base for all")
    if value_model is None:
        raise ValueError("`value_model` is required unless peft_config lets it share the policy's base")
    if isinstance(reward, (str, Path)):
        raise ValueError("a reward adapter's folder needs peft_config and no value_model or ref_model")
    if ref_model is None and not isinstance(model, PeftModel):
        ref_model = deepcopy(model).eval()
    adapter = args.model_adapter_name or "default"
    return SeparateRoles(model, ref_model, value_model, reward, args.ref_adapter_name, adapter)
