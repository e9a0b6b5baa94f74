"""Direct preference optimisation: the policy learns from comparisons at once, with no reward model and no sampling.

TRL's DPOTrainer with LoRA. The reference is the same model with its adapter off, so one model is held.
"""

from __future__ import annotations

from pathlib import Path

from rlhf_lab.data import load_preferences
from rlhf_lab.models import load_policy, lora_config, save_adapter
from rlhf_lab.profiles import Profile
from rlhf_lab.stages.common import Job, StageResult, run_trainer, stage

CODE = ("stages/dpo.py",)


def run(
    profile: Profile,
    data: str | Path | list[dict],
    inputs: dict[str, str | Path],
    output: Path | None = None,
    seed: int = 0,
    settings: dict | None = None,
    force: bool = False,
) -> StageResult:
    """Train an adapter on `inputs["model"]` (the SFT model, also the reference) from the preferences `data`.

    `settings` are fields of trl.DPOConfig and win over the profile's. Larger beta: closer to the reference.
    """
    settings = profile.dpo | (settings or {})
    return stage("dpo", load_preferences, _train, CODE, profile, data, inputs, output, seed, settings, force)


def _train(job: Job) -> tuple[dict[str, float], list[dict]]:
    from trl import DPOConfig, DPOTrainer

    config = job.config(DPOConfig, max_length=job.profile.max_length)
    tokenizer, dataset = job.prepare(config.max_length, config.per_device_train_batch_size)
    trainer = DPOTrainer(
        model=load_policy(job.inputs["model"], job.profile),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(job.profile, "CAUSAL_LM"),
    )
    history = run_trainer(trainer, "DPO")
    save_adapter(trainer.model, tokenizer, job.inputs["model"], job.folder)
    last = history[-1]
    return {
        "loss": last["loss"],
        "train_accuracy": last["rewards/accuracies"],
        "margin": last["rewards/margins"],
    }, history
