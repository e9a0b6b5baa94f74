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
    reward_lora_targets: tuple[str, ...] | None = None  # of reward and value; None: as lora_targets
    base_reads: str = "chat"  # how the untouched base is prompted: "chat" template or "log" (raw transcript)
    expected_memory_mb: int = (
        0  # of its hungriest stage: memory.predicted_memory, as tests check; tiny: of the chain, measured
    )
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
    lora_r=8,
    lora_alpha=32,
    # On a CPU a step with adapters on every matrix takes 1.65 times one with adapters on attention alone. To judge, the
    # latter is enough (0.96 of the oracle's accuracy, 0.97 with all); to answer, it is not (PPO 0.75, not 0.80).
    reward_lora_targets=ATTENTION,
    base_reads="log",
    expected_memory_mb=2000,
    sft={"per_device_train_batch_size": 16, "learning_rate": 2e-3, "num_train_epochs": 2, "warmup_steps": 10},
    reward={"per_device_train_batch_size": 16, "learning_rate": 1.5e-3, "num_train_epochs": 1, "warmup_steps": 10},
    ppo={
        # 64 episodes an update, 8 rows at once: rows of like length go together, and padding costs a third otherwise.
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "local_rollout_forward_batch_size": 16,
        "generation_batch_size": 64,
        "total_episodes": 640,
        # The clip is hardly ever met (1 % of tokens): small steps only cost time. What wanders is held by kl_coef.
        # Win rate on 384 tuning prompts: 0.3: 0.79 at 1.7 nats (16 updates); 0.2: 0.82 at 3.5 (13).
        "learning_rate": 3e-3,
        "kl_coef": 0.2,
        # A value this young explains little of the returns: bootstrapping from it hides a greeting's share of a score
        # that comes 30 tokens later. 0.95: 0.77, as above; 1.0: 0.80 at 2.1 nats.
        "lam": 1.0,
        "cliprange_value": 1.0,
        "vf_coef": 0.1,
        "missing_eos_penalty": 1.0,
        "logging_steps": 1,
    },
    dpo={
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-3,
        "max_steps": 130,
        "warmup_steps": 10,
        # The loss of DPO asks only for a margin, and takes it by making both replies less likely: what gains is in
        # neither (beta 0.4: the chosen's log-prob falls by 1.6, 0.29 sentences a reply are not of the language). The
        # chosen's log-prob as a second term (Pang et al. 2024, arXiv 2404.19733) stops that. On 384 tuning prompts, one
        # base: without it 0.67 at 3.1 nats, with weight 1 0.70 at 1.2.
        "beta": 0.15,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 2.0],
    },
)

SMOL = Profile(
    name="smol",
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    runs_on="a patient CPU or any GPU, fp32",
    max_length=192,
    response_length=64,
    generation_batch=16,
    lora_r=16,
    lora_alpha=32,
    expected_memory_mb=5300,
    sft={"per_device_train_batch_size": 8, "learning_rate": 5e-4, "num_train_epochs": 2, "warmup_steps": 2},
    reward={"per_device_train_batch_size": 8, "learning_rate": 5e-4, "num_train_epochs": 2, "warmup_steps": 2},
    ppo={
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "total_episodes": 96,
        "local_rollout_forward_batch_size": 16,
        "learning_rate": 1e-4,
        "kl_coef": 0.05,
        "missing_eos_penalty": 1.0,
        "logging_steps": 1,
    },
    dpo={
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "num_train_epochs": 1,
        "warmup_steps": 2,
        "beta": 0.1,
    },
)

# The article's settings (rows 35 to 43 of its listings), where they run today; batch by memory.
_GPU_SFT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "learning_rate": 2e-4}
_GPU_REWARD = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_train_epochs": 1}
_GPU_DPO = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 16,
    "learning_rate": 1e-5,
    "num_train_epochs": 1,
    "beta": 0.1,
}
_GPU_PPO = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 4,
    "total_episodes": 4096,
    "local_rollout_forward_batch_size": 8,
    "learning_rate": 1e-5,
    "kl_coef": 0.05,
    "missing_eos_penalty": 1.0,
}
_GPU = {"quantisation": "nf4", "needs_gpu": True, "generation_batch": 16}
_GPU_STAGES = {"sft": _GPU_SFT, "reward": _GPU_REWARD, "ppo": _GPU_PPO, "dpo": _GPU_DPO}

LLAMA_1B = Profile(
    name="llama-1b",
    model="meta-llama/Llama-3.2-1B",
    stand_in="smol",
    runs_on="a Colab T4, 4-bit LoRA",
    dtype="float16",  # a T4 has no bf16
    expected_memory_mb=3200,
    **_GPU,
    **_GPU_STAGES,
)
LLAMA_2_7B = Profile(
    name="llama-2-7b",
    model="meta-llama/Llama-2-7b-hf",
    stand_in="smol",
    runs_on="a T4 at its limit, an L4",
    dtype="float16",
    lora_targets=("q_proj", "v_proj"),  # the article's
    expected_memory_mb=7400,
    **_GPU,
    **_GPU_STAGES,
)
LLAMA_8B = Profile(
    name="llama-8b",
    model="meta-llama/Llama-3.1-8B",
    stand_in="smol",
    runs_on="an L4 or A100",
    dtype="bfloat16",
    expected_memory_mb=9500,
    **_GPU,
    **_GPU_STAGES,
)

PROFILES = {profile.name: profile for profile in (TINY, SMOL, LLAMA_1B, LLAMA_2_7B, LLAMA_8B)}


def get_profile(name: str) -> Profile:
    """The profile of that name. Raises UserError with the known names otherwise."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise UserError(f"unknown profile {name!r}", where="--profile", fix=f"Choose one of: {known}") from None
