"""What runs where. A profile is the only thing that changes between a laptop and a GPU.

It says which model, in which precision and quantisation, with which batch and lengths, which LoRA targets,
and how much memory to expect, so that a person can be told before anything loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lab.errors import UserError

REPO_ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = REPO_ROOT / "data"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Profile:
    """One way to run the course.

    Stage settings (`sft`, `reward`, `ppo`, `dpo`) are fields of that stage's trainer config; whatever a profile
    leaves out keeps the trainer's own default. Lengths are in tokens, memory in MB.
    """

    name: str
    model: str  # a folder of the repo, or a hub id
    runs_on: str
    dtype: str = "float32"  # of the weights that are not quantised
    quantisation: str | None = None  # None or "nf4"
    needs_gpu: bool = False
    stand_in: str | None = None  # an ungated model, for who has no licence yet
    max_length: int = 512
    response_length: int = 128
    generation_batch: int = 64
    lora_r: int = 16
    lora_alpha: int = 32
    lora_targets: tuple[str, ...] = ALL_LINEAR
    base_reads: str = "chat"  # how the untouched base is prompted: "chat" template or "log" (raw transcript)
    train_chat_tokens: bool = False  # the base never saw the template's tokens: SFT trains their embeddings too
    expected_memory_mb: int = 0
    sft: dict = field(default_factory=dict)
    reward: dict = field(default_factory=dict)
    ppo: dict = field(default_factory=dict)
    dpo: dict = field(default_factory=dict)


TINY = Profile(
    name="tiny",
    model="data/tiny-llama",
    runs_on="any CPU, fp32",
    max_length=160,
    response_length=72,
    generation_batch=128,
    lora_r=16,
    lora_alpha=32,
    base_reads="log",
    train_chat_tokens=True,
    expected_memory_mb=1500,
    sft={"per_device_train_batch_size": 32, "learning_rate": 2e-3, "num_train_epochs": 2, "warmup_steps": 10},
    reward={"per_device_train_batch_size": 32, "learning_rate": 1e-3, "num_train_epochs": 1, "warmup_steps": 10},
    ppo={
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "local_rollout_forward_batch_size": 64,
        "total_episodes": 1536,
        "learning_rate": 1e-3,
        "kl_coef": 0.05,
        "vf_coef": 0.1,
        "missing_eos_penalty": 1.0,
        "logging_steps": 1,
    },
    dpo={
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-4,
        "max_steps": 100,
        "warmup_steps": 10,
        "beta": 0.1,
        "precompute_ref_log_probs": False,
    },
)

PROFILES = {profile.name: profile for profile in (TINY,)}


def get_profile(name: str) -> Profile:
    """The profile of that name. Raises UserError with the known names otherwise."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise UserError(f"unknown profile {name!r}", where="--profile", fix=f"Choose one of: {known}") from None
