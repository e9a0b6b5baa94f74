"""How much memory a stage of a profile takes, from sizes alone: nothing is loaded, nothing is downloaded.

`predicted_memory(profile, "sft")` walks through the phases of a stage (load, train, for PPO sample and score, for SFT
merge), adds up the parts of each and says which phase is the peak. 1 MB is 10^6 bytes, as in stages.common.PeakMemory.

What is counted, and where the numbers come from
    weights         parameters x bytes of the dtype; 4.127 bits for NF4 with double quantisation: 4, a scale of 8 bits
                    for each 64 weights, and one of 32 bits for 256 of those (QLoRA, arXiv 2305.14314, sec. 3).
                    bitsandbytes quantises the matrices inside the layers; embedding, head and norms keep their dtype.
    adapters        r (in + out) a matrix (LoRA, arXiv 2106.09685, sec. 4.1), held in fp32.
    gradients       of what is trained, fp32.
    optimizer       AdamW's two moments, fp32 (arXiv 1412.6980; 8 bytes a parameter, as in ZeRO, arXiv 1910.02054, 3.1).
    activations     what autograd keeps for the backward pass: layer_activations(), which tests hold to the count of
                    autograd's own saved tensors. With checkpointing only each layer's input, and one layer in full
                    (Chen et al., arXiv 1604.06174).
    at work         what one step of the backward pass needs beside that, and a 4-bit matrix while it is multiplied.
    logits          of the tile that TRL's fused head has at once, or of the replies that our PPO scores.
    libraries       the resident set of a process that only imported torch, transformers, TRL and PEFT.
                    On a GPU what CUDA and its libraries take for themselves: an allowance, which torch does not count.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lab.profiles import REPO_ROOT, Profile

MB = 1e6
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
FP32 = 4
STAGES = ("sft", "reward", "ppo", "dpo")
# trl.kernels.chunked_logprob (1.16): logits exist for so many tokens and words at once.
TILE_TOKENS, TILE_WORDS = 4096, 32768
CPU_TILES = 9.25  # ... in fp32; without Triton its backward holds 9 such tiles and a mask of booleans
CPU_LIBRARIES_MB = 545.0  # "libraries" in data/records/memory.json
GPU_LIBRARIES_MB = 700.0
M_MMAP_THRESHOLD, ONE_MB = -3, 2**20  # of glibc's malloc.h


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that decide a Llama's memory. Names as in transformers' LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    stored_bytes: int = 2  # a weight in the file: loading maps it

    @classmethod
    def of(cls, config) -> LlamaShape:
        """From a LlamaConfig, its dict, or a model folder."""
        if isinstance(config, (str, Path)):
            config = json.loads((Path(config) / "config.json").read_text(encoding="utf-8"))
        read = config if isinstance(config, dict) else config.to_dict()
        names = [name for name in cls.__dataclass_fields__ if name not in ("head_dim", "stored_bytes")]
        head_dim = read.get("head_dim") or read["hidden_size"] // read["num_attention_heads"]
        stored = str(read.get("dtype") or read.get("torch_dtype") or "float16").removeprefix("torch.")
        return cls(**{name: read[name] for name in names}, head_dim=head_dim, stored_bytes=BYTES[stored])

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer: {name: (in, out)}."""
        h, i = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h),
            "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h),
        }  # fmt: skip

    @property
    def in_layers(self) -> int:
        """Parameters of the layers' matrices: what NF4 shrinks."""
        return self.num_hidden_layers * sum(n * m for n, m in self.matrices.values())

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, which is also the size of an untied head."""
        return self.vocab_size * self.hidden_size

    @property
    def norms(self) -> int:
        """Parameters of the norms: two a layer and one at the end."""
        return (2 * self.num_hidden_layers + 1) * self.hidden_size

    def parameters(self, head: bool = True) -> int:
        """All of them; without `head` those of a classifier's body."""
        heads = 2 if head and not self.tie_word_embeddings else 1
        return self.in_layers + heads * self.embedding + self.norms

    def lora(self, targets: Sequence[str], r: int) -> int:
        """Parameters of one adapter."""
        return self.num_hidden_layers * r * sum(sum(self.matrices[name]) for name in targets)


# config.json of each on the hub.
SHAPES = {
    "smol": LlamaShape(49152, 576, 1536, 30, 9, 3, 64, True, stored_bytes=4),  # as fetch leaves it
    "llama-1b": LlamaShape(128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-2-7b": LlamaShape(32000, 4096, 11008, 32, 32, 32, 128, False),
    "llama-8b": LlamaShape(128256, 4096, 14336, 32, 32, 8, 128, False),
}


def shape_of(profile: Profile) -> LlamaShape:
    """The sizes of a profile's model: published ones, or those of its folder."""
    return SHAPES[profile.name] if profile.name in SHAPES else LlamaShape.of(REPO_ROOT / profile.model)


@dataclass(frozen=True)
class Prediction:
    """Parts of each phase, in MB. The peak is the largest phase."""

    phases: dict[str, dict[str, float]]

    @property
    def phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """The parts of that phase."""
        return self.phases[self.phase]

    @property
    def total_mb(self) -> float:
        """The peak."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        lines = [f"{name:<12}{value:>9,.0f} MB" for name, value in self.parts.items()]
        return "\n".join([*lines, f"{'total':<12}{self.total_mb:>9,.0f} MB, at its peak: {self.phase}"])


def layer_activations(
    shape: LlamaShape, length: int, targets: Sequence[str], r: int, width: int, padded: bool = True
) -> float:
    """Bytes a token that one layer keeps for its backward pass: frozen matrices, LoRA on `targets`, SDPA.

    `width` is the bytes of a number (2 under mixed precision); norms are computed in fp32 whatever it is. `padded`: the
    batch has padding, so that a mask is kept, of the length of a row, and keys and values once for each query head.
    """
    h, i, q = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads * shape.head_dim
    kv = q if padded else shape.num_key_value_heads * shape.head_dim
    norms = 2 * FP32 * (h + 1)  # each its input, and one over its size
    attention = width * (q + 2 * kv + q) + FP32 * shape.num_attention_heads  # q, k, v, output; log-sum-exp
    mlp = width * 3 * i  # gate, silu(gate), up: each is a factor of a product
    lora = r * len(targets) * width  # x A, which the gradient of B needs
    # ... and x itself, which that of A needs. Queries, keys and values read one x, gate and up another; what o_proj
    # reads is kept already, as the attention's output.
    lora += width * h * any(name in targets for name in ("q_proj", "k_proj", "v_proj"))
    lora += width * h * any(name in targets for name in ("gate_proj", "up_proj"))
    lora += width * i * ("down_proj" in targets)
    return norms + attention + mlp + lora + (width * length if padded else 0)


def activations(
    shape: LlamaShape,
    tokens: int,
    length: int,
    targets: Sequence[str],
    r: int,
    width: int,
    checkpointing: bool = False,
    padded: bool = True,
) -> float:
    """Bytes of all layers and the last norm, for a batch of `tokens` in rows of `length`."""
    layer = layer_activations(shape, length, targets, r, width, padded)
    last = FP32 * (shape.hidden_size + 1)
    if checkpointing:
        return tokens * (shape.num_hidden_layers * width * shape.hidden_size + layer + last)
    return tokens * (shape.num_hidden_layers * layer + last)


def predicted_memory(
    profile: Profile,
    stage: str,
    shape: LlamaShape | None = None,
    *,
    batch: int | None = None,
    length: int | None = None,
    reply_length: int | None = None,
    checkpointing: bool | None = None,
    gpu: bool | None = None,
) -> Prediction:
    """Memory of one stage of `profile`, by phases.

    Args:
        stage: "sft", "reward", "ppo" or "dpo".
        shape: sizes of another model than the profile's.
        batch: rows a step, pairs for reward and dpo; the profile's per_device_train_batch_size.
        length: tokens of the longest row, prompt and reply; the profile's max_length.
        reply_length: of them the reply, for ppo; the profile's response_length.
        checkpointing: the profile's: on where it needs a GPU.
        gpu: whether memory is a GPU's, as the profile says, or a process's on a CPU.

    Raises:
        ValueError: no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"no stage {stage!r}: one of {', '.join(STAGES)}")
    plan = _Plan(profile, stage, shape, batch, length, reply_length, checkpointing, gpu)
    return Prediction({phase: {k: v / MB for k, v in parts.items()} for phase, parts in plan.phases().items()})


def merging_memory(profile: Profile, shape: LlamaShape | None = None) -> float:
    """MB of the machine's own memory that merging SFT's adapter takes: a base in 4 bits is loaded again, whole."""
    if profile.quantisation is None:
        return 0.0
    return (shape or shape_of(profile)).parameters() * BYTES[profile.dtype] / MB


def return_freed_memory() -> None:
    """On Linux, for this process from now on: tensors above 1 MB straight from the system, and back to it when freed.

    A prediction is of what is in use. glibc raises that bound by itself, to 32 MB, and what a step frees then stays in
    its heap, with holes that nothing fits: up to the activations' size again ("smol/sft/heap" beside "smol/sft/160" in
    data/records/memory.json). Holding the bound costs a fifth to a third of the time of a step, so stages leave it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, ONE_MB)


def peak_resident_mb() -> float:
    """This process's largest resident set so far, on Linux, of its own program alone.

    getrusage's ru_maxrss would begin at what the process that started it had held.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024 / MB


class _Plan:
    """One stage's sizes, and what follows from them, in bytes."""

    def __init__(self, profile, stage, shape, batch, length, reply_length, checkpointing, gpu) -> None:
        self.profile, self.stage = profile, stage
        self.shape = shape or shape_of(profile)
        self.settings = getattr(profile, stage)
        self.gpu = profile.needs_gpu if gpu is None else gpu
        asked = self.settings.get("gradient_checkpointing", profile.needs_gpu)
        self.checkpointing = asked if checkpointing is None else checkpointing
        self.width = BYTES[profile.dtype]
        self.batch = batch or self.settings.get("per_device_train_batch_size", 8)
        self.length = length or profile.max_length
        self.reply = min(reply_length or profile.response_length, self.length)
        chosen = (profile.reward_lora_targets if stage == "reward" else None) or profile.lora_targets
        self.targets, self.r = tuple(chosen), profile.lora_r

    def weights(self) -> dict[str, float]:
        shape, head = self.shape, self.stage != "reward"
        quantised = self.profile.quantisation == "nf4"
        rest = shape.parameters(head) - shape.in_layers
        return {
            "matrices": shape.in_layers * (NF4_BYTES if quantised else self.width),
            "other weights": rest * self.width,
        }

    def phases(self) -> dict[str, dict[str, float]]:
        held = {"libraries": (GPU_LIBRARIES_MB if self.gpu else CPU_LIBRARIES_MB) * MB, **self.weights()}
        trained, frozen = self.adapters()
        held_to_train = held | {"adapters": FP32 * (trained + frozen)}
        stepping = held_to_train | {"gradients": FP32 * trained, "optimizer": 2 * FP32 * trained}
        phases = {"load": held | self.loading(head=self.stage != "reward")} | {
            name: stepping | now for name, now in self.training().items()
        }
        if self.stage == "ppo":
            phases["sample"], phases["score"] = stepping | self.sampling(), stepping | self.scoring()
        if self.stage == "sft" and self.profile.quantisation and not self.gpu:
            phases["merge"] = stepping | {
                "the model, whole": self.shape.parameters() * self.width,
                "file": self.shape.parameters() * self.shape.stored_bytes,
            }
        return phases

    def adapters(self) -> tuple[int, int]:
        """(trained, frozen) parameters of adapters and heads. PPO trains policy and value, and holds the reward."""
        one = self.shape.lora(self.targets, self.r)
        if self.stage == "reward":
            return one + self.shape.hidden_size, 0
        if self.stage != "ppo":
            return one, 0
        judge = self.shape.lora(self.profile.reward_lora_targets or self.targets, self.r) + self.shape.hidden_size
        return one + judge, judge

    def loading(self, head: bool = True) -> dict[str, float]:
        """What is read of the file, which a process maps unless its pages are the weights; a matrix being quantised.

        bitsandbytes holds three of it in fp32 on a CPU (backends/default/ops.py of 0.50), itself, scaled and clamped.
        """
        quantised = self.profile.quantisation is not None
        as_kept = not quantised and self.shape.stored_bytes == self.width
        mapped = 0 if self.gpu or as_kept else self.shape.parameters(head) * self.shape.stored_bytes
        copies = self.width if self.gpu else 3 * FP32
        return {"file": mapped, "at work": self.largest_matrix() * copies if quantised else 0}

    def largest_matrix(self) -> int:
        return max(n * m for n, m in self.shape.matrices.values())

    def rows(self) -> int:
        """Rows in one forward pass: a pair is two."""
        return self.batch * (2 if self.stage in ("reward", "dpo") else 1)

    def training(self) -> dict[str, dict[str, float]]:
        """Two moments at which all activations are there: the loss, and the backward pass of the last layer."""
        tokens, padded = self.rows() * self.length, self.rows() > 1
        how = (self.targets, self.r, self.width, self.checkpointing, padded)
        kept = {"activations": activations(self.shape, tokens, self.length, *how)}
        return {"loss": kept | {"logits": self.logits(tokens)}, "backward": kept | {"at work": self.at_work(tokens)}}

    def at_work(self, tokens: int) -> float:
        """Gradients of a layer's widest states, with what its MLP adds; a 4-bit matrix while it is unpacked."""
        states = tokens * self.width * (2 * self.shape.intermediate_size + 2 * self.shape.hidden_size)
        return states + (self.largest_matrix() * self.width if self.profile.quantisation else 0)

    def logits(self, tokens: int) -> float:
        if self.stage == "reward":
            return 0.0
        if self.stage == "ppo":
            # The logits, their quotient by the temperature, and the gradient of each.
            return self.rows() * (self.reply + 1) * self.shape.vocab_size * self.width * 4
        tile = min(tokens, TILE_TOKENS) * min(self.shape.vocab_size, TILE_WORDS) * FP32
        return tile if self.gpu else CPU_TILES * tile

    def sampling(self) -> dict[str, float]:
        """Keys and values of every token so far, a layer at a time copied to grow; the last token's logits."""
        rows = self.settings.get("generation_batch_size") or self.rollout_rows()
        kv = 2 * self.shape.num_hidden_layers * self.shape.num_key_value_heads * self.shape.head_dim
        return {
            "keys, values": rows * self.length * kv * self.width * (1 + 1 / self.shape.num_hidden_layers),
            "logits": rows * self.shape.vocab_size * FP32 * 6,
            "at work": self.at_work(rows * (self.length - self.reply)),
        }

    def rollout_rows(self) -> int:
        whole = self.batch * self.settings.get("gradient_accumulation_steps", 1)
        return min(self.settings.get("local_rollout_forward_batch_size", 64), whole)

    def scoring(self) -> dict[str, float]:
        """The logits of policy and reference, each with its quotient by the temperature."""
        rows = self.rollout_rows()
        logits = rows * (self.reply + 1) * self.shape.vocab_size * self.width
        return {"logits": 3 * logits, "at work": self.at_work(rows * self.length)}
