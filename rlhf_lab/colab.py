"""On Colab: install what the course needs and the image lacks, and leave the rest, torch above all, as it is.

The first cell of each lesson calls it there, from a fresh clone, before anything else is imported: so nothing here may
need more than Python and `packaging`, which every image has.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
KEPT = "torch"  # the image's is built for its GPU; another takes gigabytes and minutes, and may not fit the driver


def requirements() -> list[str]:
    """What pyproject.toml says the package depends on."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]


def missing(wanted: Iterable[str], installed: Callable[[str], str] = version) -> list[str]:
    """Those of `wanted` that are not installed or are of another version. torch is never among them."""
    return [text for text in wanted if not _satisfied(Requirement(text), installed)]


def install_missing() -> list[str]:
    """Install what is missing, torch held at the version that is there; returns what was installed.

    Raises RuntimeError with pip's last line when pip fails.
    """
    wanted = missing(requirements())
    if not wanted:
        return []
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(f"{KEPT}=={version(KEPT)}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(pins), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout or "no message").strip().splitlines()[-1]
        raise RuntimeError(f"pip could not install {', '.join(wanted)}: {last}")
    importlib.invalidate_caches()
    return wanted


def choose_profile(profile: str | None = None) -> str | None:
    """`profile` where one was named; else the largest Llama that the GPU here can hold, and None (tiny) without one."""
    import torch

    if profile or not torch.cuda.is_available():
        return profile
    return "llama-1b"


def _satisfied(requirement: Requirement, installed: Callable[[str], str]) -> bool:
    if requirement.name == KEPT:
        return True
    try:
        return requirement.specifier.contains(installed(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
