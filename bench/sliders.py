"""How long a move of a slider takes, in every explorer: the maths, the artists, the Agg canvas, the PNG.

    python bench/sliders.py

Takes each control through its values with the others at their defaults, on one thread, and times each move from
setting the value to the new picture being in the image widget. What a browser then takes to show it is not in it.
Prints a table and writes docs/sliders.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import numpy as np
import torch

from rlhf_lab.explore import EXPLORERS, Explorer

BUDGET_MS = 100
STOPS = 25  # values of a long slider
RECORD = Path(__file__).resolve().parent.parent / "docs" / "sliders.json"


def stops(control) -> list:
    """At most STOPS of a control's values, from one end to the other."""
    if hasattr(control, "options"):
        return [value for _, value in control.options]
    steps = round((control.max - control.min) / control.step)
    chosen = np.unique(np.linspace(0, steps, STOPS).round().astype(int))
    return [type(control.value)(control.min + step * control.step) for step in chosen]


def milliseconds(explorer: Explorer) -> list[float]:
    """The time of each move."""
    times = []
    for control in explorer.controls.values():
        default = control.value
        for value in stops(control):
            before, started = explorer.image.value, time.perf_counter()
            control.value = value
            passed = 1000 * (time.perf_counter() - started)
            if explorer.image.value is not before:  # not for the value it already had
                times.append(passed)
        control.value = default
    return times


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    rows = {}
    for name, explorer in EXPLORERS.items():
        times = milliseconds(explorer())
        rows[name] = {
            "moves": len(times),
            "median_ms": round(statistics.median(times), 1),
            "p95_ms": round(float(np.percentile(times, 95)), 1),
        }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread, Python {platform.python_version()}"
    versions = {library: version(library) for library in ("matplotlib", "ipywidgets", "numpy", "torch")}
    print(f"{machine}\n{'explorer':<22} moves  median ms  95 % ms")
    for name, row in rows.items():
        print(f"{name:<22} {row['moves']:>5} {row['median_ms']:>10.1f} {row['p95_ms']:>8.1f}")
    slowest = max(row["median_ms"] for row in rows.values())
    print(f"budget {BUDGET_MS} ms: {'kept' if slowest <= BUDGET_MS else 'MISSED'} (slowest median {slowest:.1f} ms)")
    record = {"machine": machine, "versions": versions, "budget_ms": BUDGET_MS, "explorers": rows}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
