"""Our PPO beside TRL 1.12's, the last there is: episodes a second, reward, peak memory, what the loop itself costs.

    python bench/ppo_vs_trl.py [tiny] [smol]

TRL 1.12.0 is installed into a folder of its own. Both engines run the same model, prompts, batch, epochs, minibatches
and new tokens, each in a fresh process, by turns (A B A B), and the medians and their ratios are printed and kept in
docs/ppo_vs_trl.json. TRL is given LoRA wherever it takes it: policy and value; its reward model is a model of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "ppo_vs_trl.json"
TRL = "trl==1.12.0"
ENGINES = ("trl", "ours")
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
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 4,
        "response_length": 64,
        "learning_rate": 1e-3,
        "total_episodes": 64 * 7,
        "gradient_checkpointing": False,
    },
    "smol": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "local_rollout_forward_batch_size": 4,
        "response_length": 48,
        "learning_rate": 1e-4,
        "total_episodes": 16 * 3,
        "gradient_checkpointing": True,
    },
}
SEEDS = {"tiny": (0, 1, 2), "smol": (0, 1)}


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

    profile = get_profile(case)
    if case == "smol":
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


def build(
    engine: str, case: str, seed: int, policy_path: str, judge_path: str, output: str, settings=None, gold: bool = False
):
    """The trainer of one engine; with `gold` the reward is the gold reward and not the reward model."""
    import torch
    from datasets import Dataset

    from rlhf_lab.helpdesk.gold import gold_reward
    from rlhf_lab.models import load_policy, load_reward_model, load_tokenizer, lora_config
    from rlhf_lab.profiles import get_profile

    profile = get_profile(case)
    tokenizer = load_tokenizer(policy_path)
    conversations = prompts(seed)
    settings = COMMON | CASES[case] | (settings or {})
    settings |= {"output_dir": output, "seed": seed, "use_cpu": True, "bf16": False, "report_to": "none"}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "num_sample_generations": 0}
    policy = load_policy(policy_path, profile)
    if engine == "ours":
        from rlhf_lab.ppo import PPOConfig, PPOTrainer

        def length(prompts, completions):  # SmolLM2 has no reward adapter here: any reward costs the same
            return [len(reply[0]["content"]) / 100 for reply in completions]

        def gold_of(prompts, completions):
            return [gold_reward(p[-1]["content"], c[0]["content"]) for p, c in zip(prompts, completions, strict=True)]

        return PPOTrainer(
            args=PPOConfig(**settings),
            processing_class=tokenizer,
            model=policy,
            reward_model=gold_of if gold else judge_path or length,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in conversations]),
            peft_config=lora_config(profile, "CAUSAL_LM"),
        )
    sys.path.insert(0, str(side_folder()))
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    def classifier():
        if judge_path:
            return load_reward_model(judge_path, profile)
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1, dtype=torch.float32)

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

    value = inject_adapter_in_model(
        LoraConfig(r=profile.lora_r, lora_alpha=profile.lora_alpha, target_modules=list(profile.lora_targets)),
        classifier(),
    )
    for name, parameter in value.named_parameters():
        parameter.requires_grad = "lora_" in name or name.startswith("score")
    text = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokenizer.padding_side = "left"
    return PPOTrainer(
        args=PPOConfig(**settings),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=GoldModule(tokenizer) if gold else classifier(),
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
        peft_config=lora_config(profile, "CAUSAL_LM"),
    )


class Passes:
    """Seconds spent in the passes through the models that an update needs; what is left over is the loop."""

    def __init__(self, trainer) -> None:
        import rlhf_lab.ppo.trainer as engine

        self.seconds, self._depth = 0.0, 0
        for owner, names in (
            (trainer.roles, ("logits", "reference_logits", "values", "scores")),
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


def work(engine: str, case: str, seed: int, policy: str, judge: str, output: str) -> dict:
    """One run in this process."""
    from transformers import TrainerCallback

    trainer = build(engine, case, seed, policy, judge, output)
    passes = Passes(trainer) if engine == "ours" else None
    marks, scores, in_passes = [], [], []

    class Watch(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            marks.append(time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            marks.append(time.perf_counter())
            in_passes.append(passes.seconds if passes else 0.0)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "objective/scores" in logs:
                scores.append((logs["objective/scores"], logs["objective/kl"]))

    trainer.add_callback(Watch())
    trainer.train()
    # The first update warms caches up; it counts for neither.
    updates, episodes = len(marks) - 2, trainer.args.batch_size
    seconds = marks[-1] - marks[1]
    return {
        "episodes_per_second": updates * episodes / seconds,
        "scores": [score for score, _ in scores],
        "kl": [kl for _, kl in scores],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "overhead": seconds / (in_passes[-1] - in_passes[0]) if passes else None,
    }


def run_apart(engine: str, case: str, seed: int, policy: str, judge: str) -> dict:
    """One run in a process of its own."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        arguments = ["--work", engine, case, str(seed), policy, judge, str(record)]
        subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.DEVNULL)
        return json.loads(record.read_text())


def compare(case: str) -> dict:
    """Both engines by turns; medians, ratios, reward curves."""
    from rlhf_lab.evaluate import mean_interval

    policy, judge = models(case)
    runs: dict[str, list[dict]] = {engine: [] for engine in ENGINES}
    for seed in SEEDS[case]:
        for engine in ENGINES:
            print(f"{case}, seed {seed}: {engine} ...", flush=True)
            runs[engine].append(run_apart(engine, case, seed, policy, judge))
    result: dict = {"settings": COMMON | CASES[case], "seeds": list(SEEDS[case])}
    for engine in ENGINES:
        result[engine] = {
            "episodes_per_second": statistics.median(run["episodes_per_second"] for run in runs[engine]),
            "peak_mb": statistics.median(run["peak_mb"] for run in runs[engine]),
            "score_curve": [
                statistics.mean(point) for point in zip(*(run["scores"] for run in runs[engine]), strict=True)
            ],
            "kl_curve": [statistics.mean(point) for point in zip(*(run["kl"] for run in runs[engine]), strict=True)],
        }
    speedups = [a["episodes_per_second"] / b["episodes_per_second"] for b, a in zip(*runs.values(), strict=True)]
    gains = [a["scores"][-1] - b["scores"][-1] for b, a in zip(*runs.values(), strict=True)]
    result["speed_ratio"] = mean_interval(speedups).as_dict() | {"each": speedups}
    result["last_score_difference"] = mean_interval(gains).as_dict() | {"each": gains}
    result["memory_ratio"] = result["ours"]["peak_mb"] / result["trl"]["peak_mb"]
    result["overhead"] = statistics.median(run["overhead"] for run in runs["ours"])
    return result


def table(results: dict) -> str:
    """The README's table in Markdown: a row a model."""
    lines = [
        "| model | episodes a second: TRL 1.12, ours | ratio (each seed) | peak MB: TRL 1.12, ours | ratio "
        "| last score: TRL 1.12, ours | update / passes |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, r in results.items():
        trl, ours = r["trl"], r["ours"]
        each = ", ".join(f"{ratio:.2f}" for ratio in r["speed_ratio"]["each"])
        cells = (
            case,
            f"{trl['episodes_per_second']:.2f}, {ours['episodes_per_second']:.2f}",
            f"{r['speed_ratio']['value']:.2f} ({each})",
            f"{trl['peak_mb']:.0f}, {ours['peak_mb']:.0f}",
            f"{r['memory_ratio']:.2f}",
            f"{trl['score_curve'][-1]:.2f}, {ours['score_curve'][-1]:.2f}",
            f"{r['overhead']:.3f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(case: str, result: dict) -> None:
    """Print one case."""
    print(f"\n{case}: {result['settings']['total_episodes']} episodes, seeds {result['seeds']}, {os.cpu_count()} cores")
    for engine in ENGINES:
        r = result[engine]
        curve = " ".join(f"{score:.2f}" for score in r["score_curve"])
        print(f"  {engine:<5} {r['episodes_per_second']:6.2f} episodes/s  peak {r['peak_mb']:6.0f} MB  score {curve}")
    each = ", ".join(f"{ratio:.2f}" for ratio in result["speed_ratio"]["each"])
    print(f"  episodes a second, ours / TRL's: {result['speed_ratio']['value']:.2f} ({each})")
    print(f"  peak memory of the process, ours / TRL's: {result['memory_ratio']:.2f}")
    print(f"  time of an update / time in the models' passes: {result['overhead']:.3f}")


def main() -> None:
    """Run the cases named, both by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        engine, case, seed, policy, judge, record = arguments.work
        Path(record).write_text(json.dumps(work(engine, case, int(seed), policy, judge, str(Path(record).parent))))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for case in arguments.cases:
        results[case] = compare(case)
        show(case, results[case])
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
