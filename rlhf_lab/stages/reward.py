"""Stage 2, the reward model: a Llama that learns from comparisons which of two replies people prefer.

It starts from the SFT model, with a new score head, under the Bradley-Terry loss. TRL's RewardTrainer with LoRA. The
saved adapter and head sit on the SFT model, so that PPO can hold policy, reference, reward and value on one base.
"""

from __future__ import annotations

from pathlib import Path

from rlhf_lab.data import load_preferences
from rlhf_lab.models import load_reward_model, lora_config, save_adapter
from rlhf_lab.profiles import Profile
from rlhf_lab.stages.common import Job, StageResult, run_trainer, stage

CODE = ("stages/reward.py",)


def run(
    profile: Profile,
    data: str | Path | list[dict],
    inputs: dict[str, str | Path],
    output: Path | None = None,
    seed: int = 0,
    settings: dict | None = None,
    force: bool = False,
) -> StageResult:
    """Train a score head and an adapter on `inputs["model"]` from the preferences `data`.

    `settings` are fields of trl.RewardConfig and win over the profile's.
    """
    settings = profile.reward | (settings or {})
    return stage("reward", load_preferences, _train, CODE, profile, data, inputs, output, seed, settings, force)


def _train(job: Job) -> tuple[dict[str, float], list[dict]]:
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    config = job.config(RewardConfig, max_length=job.profile.max_length)
    tokenizer, dataset = job.prepare(config.max_length, config.per_device_train_batch_size)
    set_seed(job.seed)  # the score head is drawn when the model is loaded
    trainer = RewardTrainer(
        model=load_reward_model(job.inputs["model"], job.profile),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(job.profile, "SEQ_CLS"),
    )
    history = run_trainer(trainer, "Reward model")
    save_adapter(trainer.model, tokenizer, job.inputs["model"], job.folder)
    return {"loss": history[-1]["loss"], "train_accuracy": history[-1]["accuracy"]}, history
