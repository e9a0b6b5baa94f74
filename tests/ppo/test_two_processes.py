"""Two processes take the step of one at the same global batch: gloo, on the CPU."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def test_two_processes_take_the_update_of_one(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    weights = []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.safetensors"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run([*command, script, file], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        weights.append(load_file(file))
    one, two = weights
    assert one.keys() == two.keys()
    moved = 0.0
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-4)
        moved = max(moved, float(one[name].abs().max()) if "lora_B" in name else 0.0)
    assert moved > 1e-3  # lora_B starts at zero: a step was taken
