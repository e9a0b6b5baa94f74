"""Stage 3, PPO: the policy answers, the reward model scores, and the policy moves towards what scores well.

On our own rlhf_lab.ppo: policy, reference, value and reward share the SFT model as their base.
"""

from __future__ import annotations

from pathlib import Path

from rlhf_lab.data import load_prompts
from rlhf_lab.models import load_policy, lora_config, save_adapter
from rlhf_lab.profiles import Profile
from rlhf_lab.stages.common import Job, StageResult, run_trainer, stage

CODE = ("stages/ppo.py", "ppo", "losses.py", "returns.py", "sampling.py", "forward.py")


def run(
    profile: Profile,
    data: str | Path | list[dict],
    inputs: dict[str, str | Path],
    output: Path | None = None,
    seed: int = 0,
    settings: dict | None = None,
    force: bool = False,
) -> StageResult:
    """Train an adapter on `inputs["model"]` against the reward model `inputs["reward"]`, on the prompts of `data`.

    `settings` are fields of rlhf_lab.ppo.PPOConfig and win over the profile's. Larger kl_coef: closer to the reference.
    """
    settings = profile.ppo | (settings or {})
    return stage("ppo", load_prompts, _train, CODE, profile, data, inputs, output, seed, settings, force)


def _train(job: Job) -> tuple[dict[str, float], list[dict]]:
    from rlhf_lab.ppo import PPOConfig, PPOTrainer

    config = job.config(PPOConfig, response_length=job.profile.response_length, temperature=1.0)
    tokenizer, dataset = job.prepare(job.profile.max_length)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=load_policy(job.inputs["model"], job.profile),
        reward_model=str(job.inputs["reward"]),
        train_dataset=dataset,
        peft_config=lora_config(job.profile, "CAUSAL_LM"),
    )
    history = run_trainer(trainer, "PPO")
    for name in set(trainer.model.peft_config) - {"default"}:  # the reward's, and the value's where it has one
        trainer.model.delete_adapter(name)
    save_adapter(trainer.model, tokenizer, job.inputs["model"], job.folder)
    last = history[-1]
    return {"score": last["objective/scores"], "kl": last["objective/kl"]}, history
