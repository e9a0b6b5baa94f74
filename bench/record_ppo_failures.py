"""Record data/records/ppo_failures.json: PPO on the tiny Llama, healthy and broken in six ways, for lesson 07.

    python bench/record_ppo_failures.py [--only healthy no_kl] [--seeds 0 1 2] [--episodes 384] [--output FILE]

Every run starts from the same SFT model and reward model (taken from runs/stages, or trained) and differs from the
healthy one in one thing. Afterwards the policy answers held-out prompts at temperature 1, and gold and the true KL are
measured on these replies. Faults that need a broken engine are broken here, never by an option of the engine. The file
is written after every run, and a run that is in it with the same settings is not made again. A minute a run, 21 runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm
from transformers import PrinterCallback

from rlhf_lab.errors import UserError
from rlhf_lab.evaluate import encode_dialogue, generate_ids, sequence_kl
from rlhf_lab.figures.rollout import curves_of
from rlhf_lab.files import write_at_once
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.lab import RECORDS, Lab
from rlhf_lab.models import lora_config
from rlhf_lab.ppo import PPOConfig, PPOTrainer
from rlhf_lab.ppo import trainer as engine
from rlhf_lab.ppo.rollout import Rollout
from rlhf_lab.sampling import pad_left
from rlhf_lab.stages.common import library_versions, training_arguments

PROMPTS = 128  # held out, one reply each
SETTINGS = {"gradient_accumulation_steps": 4, "num_mini_batches": 2, "logging_steps": 1}  # 32 episodes an update
BOLD = 30  # times the learning rate
ALSO = ("policy/approxkl_avg", "val/ratio_var", "val/clipfrac_avg", "grad_norm")  # kept beside the dashboard's


class SampledUnlikeScored(PPOTrainer):
    """Its replies come from the reference: the sampler never got the trained weights. Log-probs are the policy's."""

    def rollout(self, rows: list[dict]) -> Rollout:
        """The engine's, with every adapter off."""
        with self.roles._adapter(None):
            return super().rollout(rows)


class UnmaskedPadding(PPOTrainer):
    """Takes the padding behind a reply's end for a part of the reply. Its score is still that of the true reply."""

    def rollout(self, rows: list[dict]) -> Rollout:
        """The engine's, with a mask of ones."""

        def all_of_it(responses, stop_id):
            return torch.ones_like(responses, dtype=torch.bool), (responses == stop_id).any(1)

        with patch.object(engine, "response_mask", all_of_it):
            return super().rollout(rows)

    def score(self, batch: Rollout) -> None:
        """The engine's, the scores read at the true end."""
        super().score(batch)
        dialogues = [
            encode_dialogue(self.processing_class, prompt, text.strip())
            for prompt, text in zip(batch.prompts, batch.completions, strict=True)
        ]
        with torch.no_grad():
            batch.scores = self.roles.scores(*pad_left(dialogues, self.processing_class.pad_token_id)).float()
        batch.scores -= self.args.missing_eos_penalty * (~batch.ended)


@dataclass(frozen=True)
class Fault:
    """What is wrong: settings by a function of the lab, or the trainer itself."""

    says: str
    settings: Callable[[Lab], dict] = field(default=lambda lab: {})
    trainer: type[PPOTrainer] = PPOTrainer


FAULTS = {
    "healthy": Fault("the tiny profile's own settings"),
    "no_kl": Fault("kl_coef 0", lambda lab: {"kl_coef": 0.0}),
    "negative_kl": Fault("sampled from the reference, scored as the policy's", trainer=SampledUnlikeScored),
    "bold": Fault(f"learning rate x {BOLD}", lambda lab: {"learning_rate": BOLD * lab.profile.ppo["learning_rate"]}),
    "padding": Fault("padding after the end taken for reply", trainer=UnmaskedPadding),
    "no_eos": Fault("the pad token set as stop token", lambda lab: {"stop_token_id": lab.tokenizer.pad_token_id}),
    "value": Fault("vf_coef 0: the value is never trained", lambda lab: {"vf_coef": 0.0}),
}


def settings_of(lab: Lab, name: str, episodes: int) -> dict:
    """What the run's PPOConfig is told beyond the defaults."""
    shared = {"response_length": lab.profile.response_length, "temperature": 1.0, "total_episodes": episodes}
    return lab.profile.ppo | SETTINGS | shared | FAULTS[name].settings(lab)


def train(lab: Lab, name: str, seed: int, settings: dict, folder: str) -> tuple[PPOTrainer, str | None]:
    """The trainer after its run, and why it stopped before its end, if it did."""
    trainer = FAULTS[name].trainer(
        args=PPOConfig(**training_arguments(lab.profile, Path(folder), seed, settings | {"disable_tqdm": True})),
        processing_class=lab.tokenizer,
        model=lab.policy("sft"),
        reward_model=str(lab.reward().path),
        train_dataset=[{"prompt": row["prompt"]} for row in lab.pairs],
        peft_config=lora_config(lab.profile, "CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except UserError as error:
        return trainer, error.what
    return trainer, None


def measured(lab: Lab, policy) -> dict:
    """Gold of each held-out prompt's reply, the true KL from SFT, lengths, and three replies to read."""
    prompts, tokenizer = lab.prompts[:PROMPTS], lab.tokenizer
    ids = generate_ids(
        policy, tokenizer, prompts, max_new_tokens=lab.profile.response_length, batch_size=64, seed=1, progress=False
    )
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    kl = sequence_kl(policy, tokenizer, prompts, ids, lab.policy("sft"), batch_size=32, progress=False)
    gold = [gold_reward(prompt[-1]["content"], text) for prompt, text in zip(prompts, texts, strict=True)]
    return {
        "gold": [round(value, 2) for value in gold],
        "true_kl": round(float(kl.mean()), 3),
        "length": round(sum(map(len, ids)) / len(ids), 1),
        "replies": texts[:3],
    }


def run(lab: Lab, name: str, seed: int, settings: dict) -> dict:
    """One run: its curves, and what its policy is worth."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer, stopped = train(lab, name, seed, settings, folder)
    log = trainer.state.log_history
    curves = curves_of(log) | {key: [entry[key] for entry in log if key in entry] for key in ALSO}
    rounded = {key: [float(f"{value:.4g}") for value in values] for key, values in curves.items()}
    return {"name": name, "seed": seed, "curves": rounded, "stopped": stopped, **measured(lab, trainer.model)}


def main() -> None:
    """Make the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=384)
    parser.add_argument("--output", type=Path, default=RECORDS / "ppo_failures.json")
    arguments = parser.parse_args()
    lab = Lab()
    record = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else {"runs": []}
    record |= {
        "about": "PPO on data/tiny-llama, healthy and broken, by bench/record_ppo_failures.py",
        "date": date.today().isoformat(),
        "versions": library_versions(),
        "says": {name: fault.says for name, fault in FAULTS.items()},
        "prompts": [prompt[-1]["content"] for prompt in lab.prompts[:3]],
    }
    if "sft" not in record:
        record["sft"] = measured(lab, lab.policy("sft"))
    jobs = [(name, seed) for seed in arguments.seeds for name in arguments.only]
    for name, seed in tqdm(jobs, unit="run"):
        settings = settings_of(lab, name, arguments.episodes)
        record.setdefault("settings", {})
        done = [(r["name"], r["seed"]) for r in record["runs"]]
        if (name, seed) in done and record["settings"].get(name) == json.loads(json.dumps(settings)):
            continue
        record["runs"] = [r for r in record["runs"] if (r["name"], r["seed"]) != (name, seed)]
        record["runs"].append(run(lab, name, seed, settings))
        record["settings"][name] = settings
        write_at_once(arguments.output, json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
