"""Under DeepSpeed two processes take the updates of a single one without it, stop, and go on: gloo, on the CPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed_processes import two_updates
from safetensors.torch import load_file
from small import trainer

from rlhf_lab.errors import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install rlhf_lab[deepspeed]"
)


def run(processes, *arguments):
    script = Path(__file__).with_name("deepspeed_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    settings = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, script, *map(str, arguments)], env=settings, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The weights after two updates of one process without DeepSpeed."""
    file = tmp_path_factory.mktemp("alone") / "weights.safetensors"
    two_updates(file)
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_take_the_updates_of_one(alone, tokenizer, tmp_path, stage):
    file = tmp_path / "weights.safetensors"
    done = run(2, file, stage)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = load_file(file)
    assert shared.keys() == alone.keys()
    for name in alone:
        torch.testing.assert_close(shared[name], alone[name], atol=1e-5, rtol=1e-5)
    assert (alone["norms"] > 0.5).all()  # both updates were clipped
    assert max(float(p.abs().max()) for name, p in alone.items() if "lora_B" in name) > 1e-3  # which starts at zero

    # What is for others to load is the policy's adapter of that time.
    checkpoint = Path(f"{file}.run") / "checkpoint-1"
    trained = load_file(checkpoint / "ppo_trained.safetensors")
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    policy = {n.removeprefix("policy.").replace(".default", ""): p for n, p in trained.items() if ".default." in n}
    assert adapter.keys() == policy.keys() and all(torch.equal(adapter[name], policy[name]) for name in adapter)

    # From there the second update is what it was, bit for bit.
    resumed = tmp_path / "resumed.safetensors"
    done = run(2, resumed, stage, checkpoint)
    assert done.returncode == 0, done.stderr[-2000:]
    again = load_file(resumed)
    assert all(torch.equal(again[name], shared[name]) for name in shared)

    with pytest.raises(UserError, match="only one of it and this run uses DeepSpeed"):
        trainer(tokenizer, tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_stage_3_is_refused_by_what_to_use(tmp_path):
    done = run(1, tmp_path / "unused", 3)
    assert done.returncode != 0
    assert "rlhf_lab.errors.UserError: deepspeed: PPO runs under ZeRO-1 and ZeRO-2," in done.stderr
    assert "Set stage to 2" in done.stderr
