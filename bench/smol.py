"""The README's table on a real Llama: each stage of the `smol` profile on preference pairs of one's own.

    python bench/smol.py PAIRS [STAGE ...]

Runs `rlhf-lab STAGE --profile smol --data PAIRS --train-rows 96 --test-rows 200` (what is cached is not trained
again), keeps what was measured in docs/smol.json, and prints the table in Markdown. tests/test_readme.py holds the
README to that file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rlhf_lab.cli import STAGES
from rlhf_lab.evaluate import Interval

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "smol.json"
ROWS = ("--train-rows", "96", "--test-rows", "200")
HEADER = "| stage | on 200 held-out pairs | before | after | minutes | peak MB |\n|---|---|---|---|---|---|"


def run(stage: str, pairs: Path) -> dict:
    """Run one stage; what it measured and cost."""
    folder = ROOT / "runs" / f"smol-{stage}"
    command = [sys.executable, "-m", "rlhf_lab.cli", stage, "--profile", "smol", "--data", str(pairs.resolve()), *ROWS]
    reward = ("--reward", str(ROOT / "runs" / "smol-reward")) if stage == "ppo" else ()
    subprocess.run([*command, *reward, "--output", str(folder)], cwd=ROOT, check=True)
    cost = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    measured = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    return {"measured": measured, "seconds": cost["seconds"], "peak_memory_mb": cost["peak_memory_mb"]}


def table(stages: dict[str, dict]) -> str:
    """The Markdown table: one line a measure, 95 % intervals in brackets."""
    lines = [HEADER]
    for stage, result in stages.items():
        by_name: dict[str, dict[str, dict]] = {}
        for name, interval in result["measured"].items():
            measure, when = name.rsplit(" ", 1)
            by_name.setdefault(measure.rstrip(","), {})[when] = interval
        for measure, when in by_name.items():
            shown = (f"{Interval(**when[name]):.3f}" for name in ("before", "after"))
            cost = (f"{result['seconds'] / 60:.1f}", f"{result['peak_memory_mb']:.0f}")
            lines.append("| " + " | ".join((stage, measure, *shown, *cost)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the stages named, all by default, and print."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for stage in sys.argv[2:] or STAGES:
        kept[stage] = run(stage, Path(sys.argv[1]))
        kept = {name: kept[name] for name in STAGES if name in kept}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(kept))


if __name__ == "__main__":
    main()
