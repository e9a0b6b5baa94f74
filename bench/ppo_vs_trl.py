"""Our PPO beside TRL 1.12's, the last there is: episodes a second, reward, peak memory, what the loop itself costs.

    python bench/ppo_vs_trl.py [CASE ...]

TRL 1.12.0 is installed into a folder of its own. All engines get the same model, prompts, batch, epochs, minibatches
and new tokens, and each has a process of its own; they take turns by the update (A B C A B C ...), so that a machine
that slows down slows all of them. Medians over updates and seeds, and their ratios, are printed and kept in
docs/ppo_vs_trl.json. TRL is given LoRA wherever it takes it: policy and value; its reward model is a model of its own.
Ours runs twice: with a value adapter, which is the arithmetic that TRL does, and with `shared_value`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "ppo_vs_trl.json"
TRL = "trl==1.12.0"
ENGINES = {"trl": "TRL 1.12", "ours": "ours", "shared": "ours, shared_value"}
# What both engines are told. A batch of 64 episodes, four passes of four minibatches, as TRL's own example has.
COMMON = {
    "num_mini_batches": 4,
    "num_ppo_epochs": 4,
    "stop_token": "eos",
    "temperature": 1.0,
    "lam": 1.0,
    "kl_coef": 0.1,
    "cliprange_value": 1.0,
    "missing_eos_penalty": 1.0,
    "lr_scheduler_type": "constant",
}
CASES = {
    "tiny": {
        "per_device_train_batch_size": 8,  # rows at once; 8 and 16 are alike in speed, for either engine
        "gradient_accumulation_steps": 8,
        "response_length": 64,
        "learning_rate": 1e-3,
        "total_episodes": 64 * 7,
        "gradient_checkpointing": False,
    },
    "smol": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "local_rollout_forward_batch_size": 4,
        "num_mini_batches": 2,
        "response_length": 48,
        "learning_rate": 1e-4,
        "total_episodes": 8 * 3,
        "gradient_checkpointing": False,  # TRL's PPO takes no notice of it: neither its time nor its memory changes
    },
}
# TRL is as fast with two rows at once, in less memory.
CASES["smol, two rows"] = CASES["smol"] | {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "local_rollout_forward_batch_size": 2,
}
# Least memory, for both: one row at once, one pass, which is enough to see the peak.
CASES["smol, one row"] = CASES["smol"] | {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "local_rollout_forward_batch_size": 1,
    "num_ppo_epochs": 1,
    "total_episodes": 8 * 2,
}
# Only ours has these. Sampling alone is best done in one piece; scoring in pieces of like length.
OURS = {
    "tiny": {"merge_for_generation": True, "generation_batch_size": 64, "local_rollout_forward_batch_size": 16},
    # Two rows at once are its best, where four are TRL's.
    "smol": {
        "merge_for_generation": True,
        "generation_batch_size": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
    },
    "smol, two rows": {"generation_batch_size": 8},
    "smol, one row": {"generation_batch_size": 8, "gradient_checkpointing": True},
}
# A value adapter costs what it costs on "tiny"; here minutes count.
WHO = {case: ("trl", "ours", "shared") if case == "tiny" else ("trl", "shared") for case in CASES}
SEEDS = {case: (0, 1, 2) if case == "tiny" else (0,) for case in CASES}


def side_folder() -> Path:
    """The folder that holds TRL 1.12.0 alone; installed into it when absent."""
    from rlhf_lab.fetch import cache_dir

    folder = cache_dir() / "trl-1.12.0"
    if not (folder / "trl").is_dir():
        print(f"Installing {TRL} into a folder of its own ...")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), TRL]
        subprocess.run(pip, check=True)
    return folder


def models(case: str) -> tuple[str, str]:
    """(SFT model, reward adapter) of the tiny Llama from the stage cache; SmolLM2 for both on "smol"."""
    from rlhf_lab import pipeline, single
    from rlhf_lab.profiles import get_profile
    from rlhf_lab.stages import reward, sft

    profile = get_profile(case.split(",")[0])
    if profile.name == "smol":
        return single.model_path(profile, None), ""
    sft_model = sft.run(profile, pipeline.HELPDESK / "sft.jsonl", {"model": profile.model}).path
    judge = reward.run(profile, pipeline.HELPDESK / "preferences_train.jsonl", {"model": sft_model}).path
    return str(sft_model), str(judge)


def prompts(seed: int) -> list:
    """The same conversations for both engines, in the same order of rows."""
    from rlhf_lab.data import load_prompts
    from rlhf_lab.pipeline import HELPDESK

    rows = load_prompts(HELPDESK / "preferences_train.jsonl")
    start = seed * 1000
    return [row["prompt"] for row in rows[start : start + 1000]]


def value_of(policy_path: str, judge_path: str, profile):
    """A value model for an engine that takes one: the reward model (Stiennon et al. 2020), with an adapter to train."""
    from peft import LoraConfig, inject_adapter_in_model

    value = inject_adapter_in_model(
        LoraConfig(r=profile.lora_r, lora_alpha=profile.lora_alpha, target_modules=list(profile.lora_targets)),
        classifier(policy_path, judge_path, profile),
    )
    for name, parameter in value.named_parameters():
        parameter.requires_grad = "lora_" in name or name.startswith("score")
    return value


def classifier(policy_path: str, judge_path: str, profile):
    """The reward model, or, where there is none, the policy with a head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rlhf_lab.models import load_reward_model

    if judge_path:
        return load_reward_model(judge_path, profile)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1, dtype=torch.float32)


def build(
    engine: str, case: str, seed: int, policy_path: str, judge_path: str, output: str, settings=None, gold: bool = False
):
    """The trainer of one engine; with `gold` the reward is the gold reward and not the reward model."""
    import torch
    from datasets import Dataset

    from rlhf_lab.helpdesk.gold import gold_reward
    from rlhf_lab.models import load_policy, load_tokenizer, lora_config
    from rlhf_lab.profiles import get_profile

    profile = get_profile(case.split(",")[0])
    tokenizer = load_tokenizer(policy_path)
    conversations = prompts(seed)
    settings = COMMON | CASES[case] | (settings or {})
    settings |= {"output_dir": output, "seed": seed, "use_cpu": True, "bf16": False, "report_to": "none"}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "num_sample_generations": 0}
    policy = load_policy(policy_path, profile)
    if engine != "trl":
        from rlhf_lab.ppo import PPOConfig, PPOTrainer

        def length(prompts, completions):  # SmolLM2 has no reward adapter here: any reward costs the same
            return [len(reply[0]["content"]) / 100 for reply in completions]

        def gold_of(prompts, completions):
            return [gold_reward(p[-1]["content"], c[0]["content"]) for p, c in zip(prompts, completions, strict=True)]

        return PPOTrainer(
            args=PPOConfig(**settings | OURS[case], shared_value=engine == "shared"),
            processing_class=tokenizer,
            model=policy,
            reward_model=gold_of if gold else judge_path or length,
            # A reward model's folder is also where the value starts; with a function it is said.
            value_model=value_of(policy_path, judge_path, profile) if gold else None,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in conversations]),
            peft_config=lora_config(profile, "CAUSAL_LM"),
        )
    sys.path.insert(0, str(side_folder()))
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class GoldModule(torch.nn.Module):
        """The gold reward in the shape that TRL asks of a reward model: a backbone and a score of its states."""

        base_model_prefix = "backbone"

        def __init__(self, tokenizer) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        def backbone(self, input_ids, **_):
            return type("Output", (), {"hidden_states": [input_ids[..., None].float()]})

        def score(self, states):
            texts = self.tokenizer.batch_decode(states[..., 0].long())
            parts = [text.split("<|end_header_id|>") for text in texts]
            pairs = [
                (part[-2].split("<|eot_id|>")[0].strip(), part[-1].split("<|eot_id|>")[0].strip()) for part in parts
            ]
            gold = torch.tensor([gold_reward(message, reply) for message, reply in pairs])
            return gold[:, None, None].expand(-1, states.shape[1], 1)

    text = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokenizer.padding_side = "left"
    return PPOTrainer(
        args=PPOConfig(**settings),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=GoldModule(tokenizer) if gold else classifier(policy_path, judge_path, profile),
        value_model=value_of(policy_path, judge_path, profile),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
        peft_config=lora_config(profile, "CAUSAL_LM"),
    )


class Passes:
    """Seconds spent in the passes through the models that an update needs; what is left over is the loop."""

    def __init__(self, trainer) -> None:
        import rlhf_lab.ppo.trainer as engine

        self.seconds, self._depth = 0.0, 0
        for owner, names in (
            (trainer.roles, ("logits", "reference_logits", "values", "logits_and_values", "scores")),
            (trainer.accelerator, ("backward",)),
            (engine, ("sample",)),
        ):
            for name in names:
                setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function):
        def timed(*args, **kwargs):
            started = time.perf_counter()
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - started

        return timed


def work(engine: str, case: str, seed: int, policy: str, judge: str) -> None:
    """One run in this process: an update for each line read, a line of JSON after it."""
    from transformers import TrainerCallback

    to_parent, sys.stdout = sys.stdout, sys.stderr  # trainers print; the parent reads only what is for it
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(engine, case, seed, policy, judge, folder)
        passes = None if engine == "trl" else Passes(trainer)
        seen: dict = {}

        def wait_for_a_turn() -> None:
            sys.stdin.readline()
            seen["started"], seen["in_passes"] = time.perf_counter(), passes.seconds if passes else 0.0

        class Turns(TrainerCallback):
            def on_train_begin(self, *args, **kwargs):
                wait_for_a_turn()

            def on_log(self, args, state, control, logs=None, **kwargs):
                if logs and "objective/scores" in logs:
                    seen["score"], seen["kl"] = logs["objective/scores"], logs["objective/kl"]

            def on_step_end(self, args, state, control, **kwargs):
                seen["seconds"] = time.perf_counter() - seen["started"]
                seen["passes"] = passes.seconds - seen["in_passes"] if passes else None
                seen["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        class Tell(TrainerCallback):
            """After the log of the update, which TRL writes before on_step_end and ours after it."""

            def on_log(self, args, state, control, logs=None, **kwargs):
                if logs and "objective/scores" in logs and engine != "trl":
                    self.tell()

            def on_step_end(self, args, state, control, **kwargs):
                if engine == "trl":
                    self.tell()

            def tell(self):
                print(json.dumps(seen), file=to_parent, flush=True)
                wait_for_a_turn()

        trainer.add_callback(Turns())
        trainer.add_callback(Tell())
        trainer.train()


def by_turns(engines: list[str], case: str, seed: int, policy: str, judge: str) -> dict[str, list[dict]]:
    """What every update of every engine took and gave."""
    command = [sys.executable, __file__, "--work"]
    settings = COMMON | CASES[case]
    updates = settings["total_episodes"] // (
        settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    )
    records: dict[str, list[dict]] = {engine: [] for engine in engines}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    workers = {e: subprocess.Popen([*command, e, case, str(seed), policy, judge], **pipes) for e in engines}
    try:
        for update in tqdm(range(updates), desc=f"{case}, seed {seed}", unit="update of each"):
            for engine in engines if update % 2 else engines[::-1]:
                worker = workers[engine]
                print("go", file=worker.stdin, flush=True)
                if not (line := worker.stdout.readline()):
                    sys.exit(f"{engine} stopped in update {update + 1}: run it with --work to see why")
                records[engine].append(json.loads(line))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return records


def compare(case: str) -> dict:
    """All engines by turns; medians, ratios, reward curves."""
    from rlhf_lab.evaluate import mean_interval

    policy, judge = models(case)
    settings = COMMON | CASES[case]
    episodes = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    runs = [by_turns(list(WHO[case]), case, seed, policy, judge) for seed in SEEDS[case]]
    result: dict = {"settings": settings, "seeds": list(SEEDS[case]), "cores": os.cpu_count(), "engines": {}}
    for engine in WHO[case]:
        each = [run[engine] for run in runs]
        # The first update warms caches up; it counts for none.
        seconds = [[update["seconds"] for update in run[1:]] for run in each]
        of_trl = [[update["seconds"] for update in run["trl"][1:]] for run in runs]
        ratios = [
            statistics.median(t / s for t, s in zip(*pair, strict=True)) for pair in zip(of_trl, seconds, strict=True)
        ]
        peaks = [run[-1]["peak_mb"] for run in each]
        last = [statistics.mean(u["score"] for u in run[-2:]) for run in each]
        gains = [a - statistics.mean(u["score"] for u in run["trl"][-2:]) for a, run in zip(last, runs, strict=True)]
        result["engines"][engine] = {
            "episodes_per_second": episodes / statistics.median(s for run in seconds for s in run),
            "speed_ratio": {"median": statistics.median(ratios), "each": ratios},
            "peak_mb": statistics.median(peaks),
            "memory_ratio": statistics.median(peaks) / statistics.median(run["trl"][-1]["peak_mb"] for run in runs),
            "score_curve": [statistics.mean(u["score"] for u in updates) for updates in zip(*each, strict=True)],
            "kl_curve": [statistics.mean(u["kl"] for u in updates) for updates in zip(*each, strict=True)],
            "last_score": statistics.mean(last),
            "last_score_above_trl": mean_interval(gains).as_dict() | {"each": gains} if len(gains) > 1 else gains,
            "update_over_passes": None
            if engine == "trl"
            else statistics.median(u["seconds"] / u["passes"] for run in each for u in run[1:]),
        }
    return result


def table(results: dict) -> str:
    """The README's table in Markdown: a row an engine and model."""
    lines = [
        "| model | engine | episodes a second | times TRL's (each seed) | peak MB | of TRL's | score, first and last "
        "| update / passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, result in results.items():
        for engine, r in result["engines"].items():
            each = ", ".join(f"{ratio:.2f}" for ratio in r["speed_ratio"]["each"])
            ours = engine != "trl"
            cells = (
                case,
                ENGINES[engine],
                f"{r['episodes_per_second']:.2f}",
                f"{r['speed_ratio']['median']:.2f} ({each})" if ours else "",
                f"{r['peak_mb']:.0f}",
                f"{r['memory_ratio']:.2f}" if ours else "",
                # On SmolLM2 the two have different rewards, of the same cost.
                f"{r['score_curve'][0]:.2f}, {r['last_score']:.2f}" if case == "tiny" else "",
                f"{r['update_over_passes']:.3f}" if ours else "",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(case: str, result: dict) -> None:
    """Print one case."""
    episodes, seeds = result["settings"]["total_episodes"], result["seeds"]
    print(f"\n{case}: {episodes} episodes, seeds {seeds}, {result['cores']} cores")
    for engine, r in result["engines"].items():
        curve = " ".join(f"{score:.2f}" for score in r["score_curve"])
        print(f"  {ENGINES[engine]:<18} scores {curve}")
    print(table({case: result}))


def main() -> None:
    """Run the cases named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        engine, case, seed, policy, judge = arguments.work
        work(engine, case, int(seed), policy, judge)
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for case in arguments.cases:
        results[case] = compare(case)
        show(case, results[case])
        results = {name: results[name] for name in CASES if name in results}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
