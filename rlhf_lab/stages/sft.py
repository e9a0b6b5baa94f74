"""Stage 1, supervised fine-tuning: a base Llama learns to answer, in the chat template, as its demonstrations do.

The loss covers the reply alone. TRL's SFTTrainer with LoRA; the adapter is merged at the end, so that the stages that
follow stand on one plain Llama, their reference.
"""

from __future__ import annotations

from pathlib import Path

from rlhf_lab.data import load_demonstrations
from rlhf_lab.models import load_policy, lora_config, merge_and_save
from rlhf_lab.profiles import Profile
from rlhf_lab.stages.common import Job, StageResult, run_trainer, stage

CODE = ("stages/sft.py",)


def run(
    profile: Profile,
    data: str | Path | list[dict],
    inputs: dict[str, str | Path],
    output: Path | None = None,
    seed: int = 0,
    settings: dict | None = None,
    force: bool = False,
) -> StageResult:
    """Fine-tune `inputs["model"]` on the demonstrations `data`; the merged model is in `output`.

    `settings` are fields of trl.SFTConfig and win over the profile's.
    """
    settings = profile.sft | (settings or {})
    return stage("sft", load_demonstrations, _train, CODE, profile, data, inputs, output, seed, settings, force)


def _train(job: Job) -> tuple[dict[str, float], list[dict]]:
    from trl import SFTConfig, SFTTrainer

    config = job.config(SFTConfig, max_length=job.profile.max_length, completion_only_loss=True)
    tokenizer, dataset = job.prepare(config.max_length, config.per_device_train_batch_size)
    trainer = SFTTrainer(
        model=load_policy(job.inputs["model"], job.profile),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(job.profile, "CAUSAL_LM"),
    )
    history = run_trainer(trainer, "SFT")
    merge_and_save(job.inputs["model"], trainer.model, tokenizer, job.profile, job.folder)
    return {"loss": history[-1]["loss"]}, history
