"""Load a tokenizer, a policy, a reward model for a profile, and save what training made. Safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lab.checks import check_model_dir, check_tokenizer
from rlhf_lab.errors import UserError
from rlhf_lab.profiles import REPO_ROOT, Profile

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Llama 2's chat form, one BOS at the start of the text, as its first turn has it.
LLAMA_2_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] | trim + ' ' + eos_token }}{%- endif %}"
    "{%- endfor %}"
)


def resolve(model: str | Path) -> str:
    """A folder of the working directory or of the repo as an absolute path; anything else is a hub id."""
    for candidate in (Path(model), REPO_ROOT / model):
        if candidate.is_dir():
            return str(candidate.resolve())
    return str(model)


def adapter_base(path: str | Path) -> str | None:
    """The model that the adapter at `path` sits on, or None where `path` holds a whole model."""
    config = Path(path) / "adapter_config.json"
    if not config.is_file():
        return None
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    # A folder of ours is named relative to the adapter, so that runs/ can be moved as a whole.
    beside = (Path(path) / base).resolve()
    return str(beside) if beside.is_dir() else base


def load_tokenizer(path: str | Path, for_chat: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of `path`, checked. Raises UserError for no chat template, pad = eos, or a double BOS.

    Meta's base Llamas come without a pad token and without a template. They get the pad token that Llama 3 reserves for
    it (or <unk>, Llama 2's spare one) and Llama 3's or Llama 2's own template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    vocabulary = tokenizer.get_vocab()
    if tokenizer.pad_token is None:
        spare = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<unk>")
        tokenizer.pad_token = next((token for token in spare if token in vocabulary), None)
    if not tokenizer.chat_template:
        if "<|start_header_id|>" in vocabulary:
            from rlhf_lab.pretrain import CHAT_TEMPLATE, END_OF_TURN

            tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, END_OF_TURN
        elif "[INST]" not in vocabulary and tokenizer.bos_token == "<s>":
            tokenizer.chat_template = LLAMA_2_TEMPLATE
    check_tokenizer(tokenizer, str(path), for_chat=for_chat)
    return tokenizer


def _load_arguments(profile: Profile) -> dict:
    import torch

    arguments = {"dtype": getattr(torch, profile.dtype), "use_safetensors": True, "trust_remote_code": False}
    if profile.quantisation == "nf4":
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, profile.dtype),
        )
    if profile.needs_gpu:
        arguments["device_map"] = {"": 0}
    return arguments


def load_policy(path: str | Path, profile: Profile) -> PreTrainedModel:
    """The causal Llama at `path`, with the adapter of an adapter folder: ready to generate, not to train."""
    from transformers import AutoModelForCausalLM

    base = adapter_base(path)
    if base is None:
        if Path(path).is_dir():
            check_model_dir(path)
        return AutoModelForCausalLM.from_pretrained(path, **_load_arguments(profile))
    from peft import PeftModel

    return _with_adapter(PeftModel.from_pretrained(load_policy(base, profile), path), profile)


def _with_adapter(model, profile: Profile) -> PreTrainedModel:
    """The adapter folded into its base, or at work beside it where the base is quantised.

    A sum is rounded to 4 bits again: of a change of a thirtieth of the weights' spread 4 % is left, of a tenth 84 %.
    """
    return model.merge_and_unload() if profile.quantisation is None else model.get_base_model()


def load_reward_model(path: str | Path, profile: Profile) -> PreTrainedModel:
    """A Llama with one score head: fresh on a causal model's body, or an adapter that a reward stage trained."""
    from transformers import AutoModelForSequenceClassification

    base = adapter_base(path)
    model = AutoModelForSequenceClassification.from_pretrained(base or path, num_labels=1, **_load_arguments(profile))
    if base is None:
        return model
    from peft import PeftModel

    return _with_adapter(PeftModel.from_pretrained(model, path), profile)


def load_head_and_adapter(policy, folder: str | Path, name: str) -> torch.Tensor:
    """Load the reward adapter of `folder` into the PeftModel `policy` as `name`; the score head's weight, (1, hidden).

    Raises UserError where the folder holds no such adapter.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = Path(folder) / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError("no adapter_model.safetensors here", where=str(folder), fix="Pass what the reward stage wrote")
    state = load_file(weights)
    head = next((value for key, value in state.items() if key.endswith("score.weight")), None)
    if head is None:
        raise UserError("this adapter has no score head", where=str(weights), fix="Pass what the reward stage wrote")
    config = LoraConfig.from_pretrained(folder)
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", False
    config.base_model_name_or_path = policy.peft_config["default"].base_model_name_or_path
    policy.add_adapter(name, config)
    set_peft_model_state_dict(policy, {k: v for k, v in state.items() if "lora_" in k}, adapter_name=name)
    return head


def lora_config(profile: Profile, task_type: str, **overrides) -> LoraConfig:
    """LoRA as the profile says. A reward model also trains its new score head, which LoRA would leave at random."""
    from peft import LoraConfig

    settings = {
        "r": profile.lora_r,
        "lora_alpha": profile.lora_alpha,
        "target_modules": list(profile.lora_targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "task_type": task_type,
    }
    if task_type == "SEQ_CLS":
        settings["modules_to_save"] = ["score"]
        settings["target_modules"] = list(profile.reward_lora_targets or profile.lora_targets)
    return LoraConfig(**{**settings, **overrides})


def save_adapter(model, tokenizer, base: str | Path, output: Path) -> None:
    """Save a trained adapter, naming a local base relative to `output`."""
    model.save_pretrained(output, safe_serialization=True)
    tokenizer.save_pretrained(output)
    if Path(base).is_dir():
        import os

        config_file = output / "adapter_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = os.path.relpath(Path(base).resolve(), output.resolve())
        config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def merge_and_save(base: str | Path, adapter_model, tokenizer, profile: Profile, output: Path) -> None:
    """Fold a trained adapter into its base and save one whole model.

    A 4-bit base is loaded again in the profile's dtype first: adapters are merged into what the base was, not into
    its rounding.
    """
    if profile.quantisation is None:
        merged = adapter_model.merge_and_unload()
    else:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        adapter_dir = output / "adapter"
        adapter_model.save_pretrained(adapter_dir)
        whole = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, profile.dtype), use_safetensors=True)
        merged = PeftModel.from_pretrained(whole, adapter_dir).merge_and_unload()
    merged.save_pretrained(output)
    tokenizer.save_pretrained(output)


def device_of(model) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def require_llama(model, where: str) -> None:
    """Raise UserError unless `model` is a Llama."""
    if model.config.model_type != "llama":
        raise UserError(f"this is a {model.config.model_type}, not a Llama", where=where, fix="Pass a Llama model")
