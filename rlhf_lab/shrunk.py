"""The real profiles' Llamas shrunk in depth, with random weights: their true widths, and no download.

What a profile calls (4-bit weights, LoRA on its targets, checkpointing, merging) runs on them as on the real thing, so
it can be tried and measured on a CPU. They cannot speak.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlhf_lab.memory import SHAPES
from rlhf_lab.profiles import DATA_DIR, Profile, get_profile

_LLAMA_3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# config.json of meta-llama/Llama-3.2-1B, Llama-2-7b-hf and Llama-3.1-8B, beside the sizes in memory.SHAPES.
CONFIGS = {
    "llama-1b": {
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_parameters": _LLAMA_3_ROPE | {"factor": 32.0},
    },
    "llama-2-7b": {
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "llama-8b": {
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_parameters": _LLAMA_3_ROPE | {"factor": 8.0},
    },
}  # fmt: skip


def llama_config(name: str, **changes):
    """The published config of a profile's model, with `changes`: num_hidden_layers, vocab_size, ..."""
    from transformers import LlamaConfig

    shape = SHAPES[name]
    sizes = {field: getattr(shape, field) for field in shape.__dataclass_fields__ if field != "stored_bytes"}
    return LlamaConfig(**(sizes | CONFIGS[name] | changes))


def shrunk_model(name: str, folder: Path, layers: int = 1, vocab_size: int | None = None, **changes) -> Path:
    """Save such a model in float16, as the real one is kept, with the tiny Llama's tokenizer; returns `folder`.

    `vocab_size` cuts the vocabulary too: embedding and head are most of what a single layer of a wide Llama weighs.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama")
    ids = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "eos", "pad")}
    sizes = {"num_hidden_layers": layers} | ({"vocab_size": vocab_size} if vocab_size else {})
    config = llama_config(name, **(sizes | ids | changes))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def keep_weights_in_place() -> None:
    """Stop bitsandbytes (0.50) from repacking 4-bit weights for inference, in this process, before they are loaded.

    On a CPU with bfloat16 in hardware it does so at the first pass in eval mode, and no gradient passes through what
    was repacked: whoever samples and then trains, as PPO does, trains by wrong gradients. A GPU's weights stay.
    """
    import bitsandbytes.nn.modules as modules

    modules.has_avx512bf16 = lambda: False


def on_cpu(name: str, model: str | Path, **changes) -> Profile:
    """The profile of that name for a shrunk model on a CPU: its quantisation and LoRA, computing in float32.

    A CPU computes in float16 and bfloat16 slowly or not at all, and mixed precision is a GPU's; the rest is the same.
    """
    return replace(get_profile(name), model=str(model), needs_gpu=False, dtype="float32", **changes)
