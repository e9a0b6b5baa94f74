"""Train, be killed at a named point, go on, and compare with a run that nothing stopped. Prints one JSON object.

    python killed.py FOLDER

Every run is a fork of this process, so the libraries are imported once. The parent runs no torch operation: a fork of a
process with threads could hang.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small import tiny, trainer
from transformers import AutoTokenizer

import rlhf_lab.ppo.loop as loop
import rlhf_lab.ppo.trainer as engine
from rlhf_lab.profiles import DATA_DIR

# point -> (owner, function, which call, killed before or after it). Four updates, a checkpoint after each, one kept.
POINTS = {
    "rollout": ("trainer", "rollout", 3, "before"),
    "sampled": (engine, "sample", 3, "after"),
    "score": ("trainer", "score", 3, "before"),
    "advantages": ("trainer", "compute_advantages", 2, "after"),
    "backward": ("trainer", "_micro_step", 7, "after"),
    "optimizer": ("trainer", "_minibatch_step", 6, "after"),
    "save, first file": (loop, "save_file", 3, "after"),
    "save, model": ("trainer", "save_model", 2, "after"),
    "save, optimizer": ("trainer", "_save_optimizer_and_scheduler", 3, "after"),
    "save, before the seal": (loop, "seal", 3, "before"),
    "save, before the old one goes": (loop, "rotate_checkpoints", 3, "before"),
    "first save": (loop, "seal", 1, "before"),
}


def die_at(t, point):
    owner, name, nth, when = POINTS[point]
    owner = t if owner == "trainer" else owner
    function, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


def run(folder, point=None):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama")
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "total_episodes": 32, "seed": 3}
    t = trainer(tokenizer, folder, model=tiny(tokenizer, initializer_range=0.3), adap_kl_ctrl=True, **settings)
    if point:
        die_at(t, point)
    t.train(resume_from_checkpoint=True)
    save_file({n: p.detach().contiguous() for n, p in t._trained().items()}, folder / "final.safetensors")


def forked(folder, point=None):
    """Exit status of a child that runs."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        try:
            run(folder, point)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main():
    root = Path(sys.argv[1])
    status = {"straight": forked(root / "straight")}
    for number, point in enumerate(POINTS):
        folder = root / str(number)
        status[point] = [os.WTERMSIG(forked(folder, point)), forked(folder)]
    expected = load_file(root / "straight" / "final.safetensors")
    start = load_file(root / "straight" / "checkpoint-4" / "ppo_trained.safetensors")
    found = {}
    for number, point in enumerate(POINTS):
        file = root / str(number) / "final.safetensors"
        got = load_file(file) if file.is_file() else {}
        found[point] = {
            "signal": status[point][0],
            "resumed": status[point][1],
            "equal": got.keys() == expected.keys() and all(torch.equal(got[n], expected[n]) for n in expected),
            "kept": sorted(path.name for path in (root / str(number)).glob("checkpoint-*")),
        }
    found["straight"] = {"status": status["straight"], "last": all(torch.equal(start[n], expected[n]) for n in start)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
