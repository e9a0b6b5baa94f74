"""Record data/trajectory.json: one reply of the tiny Llama in PPO, token by token, for the GAE slider.

    python bench/record_trajectory.py [--seed 0] [--episodes 256] [--output data/trajectory.json]

Trains SFT and the reward model as `rlhf-lab run` does (or takes them from runs/stages), then that many episodes of PPO
with the tiny profile, and samples replies to held-out prompts. Kept is the reply whose score is nearest the batch's
median among those that ended by themselves in 16 to 36 tokens. A minute or two once the stages are cached.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from rlhf_lab import pipeline
from rlhf_lab.data import load_prompts
from rlhf_lab.files import write_at_once
from rlhf_lab.models import load_policy, load_tokenizer, lora_config, resolve
from rlhf_lab.ppo import PPOConfig, PPOTrainer
from rlhf_lab.profiles import DATA_DIR, TINY
from rlhf_lab.returns import per_token_rewards
from rlhf_lab.stages import reward, sft
from rlhf_lab.stages.common import training_arguments


def trained(seed: int, episodes: int, folder: str) -> PPOTrainer:
    """PPO's trainer after its run, with policy, value and reward."""
    pairs = pipeline.HELPDESK / "preferences_train.jsonl"
    first = sft.run(TINY, pipeline.HELPDESK / "sft.jsonl", {"model": resolve(TINY.model)}, seed=seed).path
    judge = reward.run(TINY, pairs, {"model": first}, seed=seed).path
    settings = {"response_length": TINY.response_length, "temperature": 1.0} | TINY.ppo | {"total_episodes": episodes}
    trainer = PPOTrainer(
        args=PPOConfig(**training_arguments(TINY, Path(folder), seed, settings)),
        processing_class=load_tokenizer(first),
        model=load_policy(first, TINY),
        reward_model=str(judge),
        train_dataset=load_prompts(pairs),
        peft_config=lora_config(TINY, "CAUSAL_LM"),
    )
    trainer.train()
    return trainer


def record(trainer: PPOTrainer, seed: int) -> dict:
    """One reply of middling score as plain lists."""
    batch = trainer.rollout(load_prompts(pipeline.HELPDESK / "prompts.jsonl")[:64])
    trainer.score(batch)
    rewards = per_token_rewards(batch.scores, batch.logps, batch.ref_logps, batch.mask, trainer.args.kl_coef)
    lengths = batch.mask.sum(1)
    fits = (lengths >= 16) & (lengths <= 36) & batch.ended
    far = (batch.scores - batch.scores.median()).abs().masked_fill(~fits, float("inf"))
    row = int(far.argmin())
    mask = batch.mask[row]
    ids = batch.responses[row][mask].tolist()

    def numbers(x: torch.Tensor) -> list[float]:
        return [round(value, 4) for value in x[row][mask].tolist()]

    return {
        "about": f"one reply of data/tiny-llama after {trainer.episode} episodes of PPO (tiny profile, seed {seed}), "
        "by bench/record_trajectory.py",
        "prompt": batch.prompts[row][-1]["content"],
        "reply": batch.completions[row],
        "score": round(float(batch.scores[row]), 4),
        "kl_coef": trainer.args.kl_coef,
        "tokens": [trainer.processing_class.decode([token]) for token in ids],
        "rewards": numbers(rewards),
        "values": numbers(batch.values),
    }


def main() -> None:
    """Train, record, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--output", type=Path, default=DATA_DIR / "trajectory.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trajectory = record(trained(arguments.seed, arguments.episodes, folder), arguments.seed)
    write_at_once(arguments.output, json.dumps(trajectory, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(trajectory, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
