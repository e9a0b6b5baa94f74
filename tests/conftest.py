"""Shared by all tests: one thread for small tensors, and the command line as a function."""

import sys

import pytest

from rlhf_lab.profiles import DATA_DIR

TINY_LLAMA = DATA_DIR / "tiny-llama"


@pytest.fixture(scope="session", autouse=True)
def _threads():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run `rlhf-lab ARGS` in an empty folder: cli(*args) -> (exit code, stdout, stderr)."""
    from rlhf_lab.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["rlhf-lab", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call
