"""How long `make run` takes once installed: the whole chain from an empty cache, stage by stage.

    python bench/chain.py [--repeats N]

Prints seconds per stage (median over repeats), the total against the budget of six minutes, and what the machine is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUDGET_SECONDS = 360


def run_once(folder: str) -> dict[str, float]:
    """Seconds per stage of one run in `folder`, and `wall`, start-up and imports included."""
    started = time.time()
    command = [sys.executable, "-m", "rlhf_lab.cli", "run", "--output", "report"]
    subprocess.run(command, cwd=folder, check=True)
    wall = time.time() - started
    return json.loads((Path(folder) / "report" / "scoreboard.json").read_text())["seconds"] | {"wall": wall}


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1)
    repeats = parser.parse_args().repeats
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run_once(folder))
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {repeats} run(s)")
    for stage in runs[0]:
        print(f"  {stage:<10} {statistics.median(run[stage] for run in runs):7.1f} s")
    wall = statistics.median(run["wall"] for run in runs)
    verdict = "kept" if wall <= BUDGET_SECONDS else "MISSED"
    print(f"budget {BUDGET_SECONDS} s: {verdict} ({wall / BUDGET_SECONDS:.2f} of it)")


if __name__ == "__main__":
    main()
