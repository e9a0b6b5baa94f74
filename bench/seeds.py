"""The README's table: the whole chain on several seeds, and what its scoreboards say.

    python bench/seeds.py [SEED ...]

Runs `rlhf-lab run --seed N` for each (what is cached is not trained again), keeps the scoreboards in docs/scoreboards,
and prints the table in Markdown. tests/test_readme.py holds the README to those files. Lesson 00 prints them: execute
it again (`python -m rlhf_lab.lessons notebooks/00_start_here.ipynb`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf_lab.report import win_interval

ROOT = Path(__file__).resolve().parent.parent
SCOREBOARDS = ROOT / "docs" / "scoreboards"
HEADER = (
    "| seed | gold: base | SFT | PPO | DPO | reward accuracy / oracle's | PPO beats SFT | DPO beats SFT "
    "| length SFT / PPO / DPO | KL PPO / DPO |\n|---|---|---|---|---|---|---|---|---|---|"
)


def row(scoreboard: dict) -> str:
    """One line of the table. Win rates with 95 % intervals, lengths in tokens, KL in nats a reply."""
    reward, sft, ppo, dpo = (scoreboard[name] for name in ("reward", "sft", "ppo", "dpo"))

    cells = (
        scoreboard["seed"],
        *(f"{scoreboard[name]['gold']:.2f}" for name in ("base", "sft", "ppo", "dpo")),
        f"{reward['accuracy']:.3f} / {reward['oracle_accuracy']:.3f}",
        f"{win_interval(ppo):.3f}",
        f"{win_interval(dpo):.3f}",
        " / ".join(f"{policy['mean_length']:.1f}" for policy in (sft, ppo, dpo)),
        f"{ppo['kl']:.1f} / {dpo['kl']:.1f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _boards(folder: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("tiny-seed*.json"))]


def table(folder: Path = SCOREBOARDS) -> str:
    """The Markdown table of every scoreboard in `folder`."""
    return "\n".join([HEADER, *map(row, _boards(folder))])


def missed(folder: Path = SCOREBOARDS) -> list[str]:
    """What `make run` is to reach on every seed and does not, one sentence each; the README holds the same list."""
    faults = []
    for board in _boards(folder):
        sft, reward, seed = board["sft"], board["reward"], board["seed"]
        share = reward["accuracy"] / reward["oracle_accuracy"]
        if sft["gold"] <= board["base"]["gold"]:
            faults.append(f"Seed {seed}: SFT's gold is not above the base's.")
        if share < 0.95:
            faults.append(f"Seed {seed}: the reward model reaches {share:.3f} of the oracle's accuracy, not 0.95.")
        for name in ("ppo", "dpo"):
            policy = board[name]
            if policy["win_rate"] < 0.80 or policy["win_rate_low"] <= 0.75:
                low = policy["win_rate_low"]
                faults.append(
                    f"Seed {seed}: {name.upper()} wins {policy['win_rate']:.3f} (at least {low:.3f}), not 0.80 (0.75)."
                )
            if abs(policy["mean_length"] / sft["mean_length"] - 1) > 0.30:
                faults.append(f"Seed {seed}: {name.upper()}'s replies are not within 30 % of SFT's length.")
    return faults


def main() -> None:
    """Run the seeds named, 0 1 2 by default, and print."""
    SCOREBOARDS.mkdir(parents=True, exist_ok=True)
    for seed in sys.argv[1:] or ("0", "1", "2"):
        subprocess.run([sys.executable, "-m", "rlhf_lab.cli", "run", "--seed", seed], cwd=ROOT, check=True)
        run = ROOT / "runs" / f"tiny-seed{seed}"
        shutil.copy(run / "scoreboard.json", SCOREBOARDS / f"tiny-seed{seed}.json")
        if seed == "0":  # the README's picture
            shutil.copy(run / "figures" / "gold_by_attribute.png", ROOT / "docs" / "attributes.png")
    print(table(), *missed(), sep="\n")


if __name__ == "__main__":
    main()
