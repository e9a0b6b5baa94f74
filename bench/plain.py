"""Win rates without the nucleus: the policies of `make run` on three seeds, at temperature 1 and nothing cut off.

    python bench/plain.py

Takes the stages from the cache, so run bench/seeds.py first.
"""

from rlhf_lab import evaluate as ev
from rlhf_lab import pipeline
from rlhf_lab.data import load_prompts
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.models import load_policy, load_tokenizer, resolve
from rlhf_lab.profiles import TINY
from rlhf_lab.stages import dpo, ppo, reward, sft


def main() -> None:
    """Print a line a seed."""
    prompts = [row["prompt"] for row in load_prompts(pipeline.HELPDESK / "prompts.jsonl")]
    pairs = pipeline.HELPDESK / "preferences_train.jsonl"
    for seed in (0, 1, 2):
        first = sft.run(TINY, pipeline.HELPDESK / "sft.jsonl", {"model": resolve(TINY.model)}, seed=seed).path
        judge = reward.run(TINY, pairs, {"model": first}, seed=seed).path
        paths = {
            "sft": first,
            "ppo": ppo.run(TINY, pairs, {"model": first, "reward": judge}, seed=seed).path,
            "dpo": dpo.run(TINY, pairs, {"model": first}, seed=seed).path,
        }
        gold = {}
        for name, path in paths.items():
            tokenizer = load_tokenizer(path)
            texts = pipeline.answer(load_policy(path, TINY), tokenizer, prompts, TINY, seed, top_p=1.0)
            gold[name] = [gold_reward(p[-1]["content"], text) for p, text in zip(prompts, texts, strict=True)]
        rates = ", ".join(f"{name.upper()} {ev.win_rate(gold[name], gold['sft']):.3f}" for name in ("ppo", "dpo"))
        print(f"seed {seed}: {rates}", flush=True)


if __name__ == "__main__":
    main()
