"""What a PPO run can be told. Names and defaults are those of TRL 1.12's PPOConfig; ours stand at the end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from rlhf_lab.returns import KL_KINDS


@dataclass
class PPOConfig(TrainingArguments):
    """Arguments of PPOTrainer, beside all of transformers.TrainingArguments.

    Sizes: a batch of `per_device_train_batch_size * gradient_accumulation_steps` episodes on each process is sampled,
    then trained on `num_ppo_epochs` times, in `num_mini_batches` optimizer steps a time. Each minibatch passes through
    the model `per_device_train_batch_size` rows at once; that changes memory, not the gradient.

    `deepspeed={"zero_optimization": {"stage": 2}}`, or 1, divides the optimizer's state between processes. Optimizer,
    schedule and clipping stay those set here.
    """

    # Defaults that differ from TrainingArguments', as in TRL.
    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many updates."})
    gradient_checkpointing: bool = field(default=True, metadata={"help": "Recompute activations to save memory."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 mixed precision; on unless fp16 is, as in TRL."})

    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the prompts."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in one pass over a batch."})
    total_episodes: int | None = field(default=None, metadata={"help": "Episodes in all; else num_train_epochs says."})
    local_rollout_forward_batch_size: int = field(default=64, metadata={"help": "Rows at once without gradient."})
    num_sample_generations: int = field(default=10, metadata={"help": "How often to show sample completions."})
    response_length: int = field(default=53, metadata={"help": "Longest reply, in tokens."})
    stop_token: Literal["eos"] | None = field(default=None, metadata={"help": "'eos', which is also what None does."})
    stop_token_id: int | None = field(default=None, metadata={"help": "End of a reply, if not the tokenizer's eos."})
    temperature: float = field(default=0.7, metadata={"help": "Of sampling and of scoring: they must be the same."})
    missing_eos_penalty: float | None = field(default=None, metadata={"help": "Off the score if a reply has no end."})
    sft_model_path: str = field(default="EleutherAI/pythia-160m", metadata={"help": "For scripts; not read here."})
    reward_model_path: str = field(default="EleutherAI/pythia-160m", metadata={"help": "For scripts; not read here."})
    world_size: int | None = field(default=None, metadata={"help": "Processes; set by the trainer."})
    num_total_batches: int | None = field(default=None, metadata={"help": "Updates in all; set by the trainer."})
    micro_batch_size: int | None = field(default=None, metadata={"help": "Rows a pass over all processes; set."})
    local_batch_size: int | None = field(default=None, metadata={"help": "Episodes a batch and process; set."})
    batch_size: int | None = field(default=None, metadata={"help": "Episodes a batch; set by the trainer."})
    local_mini_batch_size: int | None = field(default=None, metadata={"help": "Rows a minibatch and process; set."})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Rows a minibatch; set by the trainer."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the policy to the hub after training."})
    model_adapter_name: str | None = field(default=None, metadata={"help": "The adapter to train, if not 'default'."})
    ref_adapter_name: str | None = field(default=None, metadata={"help": "The reference adapter; else adapters off."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each batch."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale rewards to variance 1, mean kept."})
    kl_coef: float = field(default=0.05, metadata={"help": "beta of the KL penalty. Larger: closer to the reference."})
    kl_estimator: Literal["k1", "k2", "k3"] = field(default="k1", metadata={"help": "joschu.net/blog/kl-approx.html"})
    cliprange: float = field(default=0.2, metadata={"help": "epsilon of the policy's clip."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip of the value, in units of the return."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(default=0.95, metadata={"help": "lambda of GAE."})
    ds3_gather_for_generation: bool = field(default=True, metadata={"help": "Gather ZeRO-3 weights to generate."})

    # Ours.
    generation_batch_size: int | None = field(default=None, metadata={"help": "Rows sampled at once; else as scored."})
    merge_for_generation: bool = field(default=False, metadata={"help": "Sample from a copy with LoRA folded in."})
    shared_value: bool = field(default=False, metadata={"help": "Value: a head on the policy's states, no adapter."})
    adap_kl_ctrl: bool = field(default=False, metadata={"help": "Let kl_coef follow `target` (Ziegler et al. 2019)."})
    target: float = field(default=6.0, metadata={"help": "KL a reply, in nats, that the adaptive controller holds."})
    horizon: float = field(default=10_000, metadata={"help": "Episodes over which the controller reacts."})
    kl_in_loss: bool = field(default=False, metadata={"help": "kl_coef * KL in the loss, not in the reward."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of an entropy bonus in the loss."})
    target_kl: float | None = field(default=None, metadata={"help": "KL to the old policy that ends a batch's passes."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Longest prompt; longer ones are refused."})

    def __post_init__(self) -> None:
        self.bf16 = not self.fp16 if self.bf16 is None else self.bf16
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))  # what DeepSpeed's "auto" sizes are worked out from
        super().__post_init__()
        if self.stop_token not in (None, "eos"):
            raise ValueError(f"stop_token must be 'eos' or None, got {self.stop_token!r}")
        if self.stop_token and self.stop_token_id is not None:
            raise ValueError("set stop_token or stop_token_id, not both")
        if self.kl_estimator not in KL_KINDS:
            raise ValueError(f"kl_estimator must be one of {', '.join(KL_KINDS)}, got {self.kl_estimator!r}")
        if self.kl_in_loss and self.kl_estimator == "k1":
            raise ValueError("kl_in_loss needs kl_estimator k2 or k3: the gradient of k1 is zero on average")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0 to sample, got {self.temperature}")
        if self.missing_eos_penalty is not None and self.missing_eos_penalty < 0:
            raise ValueError(f"missing_eos_penalty is taken off: it must be >= 0, got {self.missing_eos_penalty}")
