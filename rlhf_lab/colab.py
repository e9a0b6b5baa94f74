"""On Colab: install what the course needs and the image lacks, and leave the rest, torch above all, as it is; choose
the Llama that the GPU can hold, and find the token that its weights ask for.

The first cell of each lesson calls it there, from a fresh clone, before anything else is imported: so installing
needs nothing but Python and `packaging`, which every image has.
"""

from __future__ import annotations

import importlib
import os
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
TOKEN = "HF_TOKEN"
CANDIDATES = ("llama-8b", "llama-1b", "smol")  # the larger first; Llama 2 only for who asks for it
USABLE = 0.85  # of a GPU's memory: what is freed comes in pieces, and pieces do not always fit


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
    """`profile` where one was named, else the largest Llama that the GPU here can hold; None, the tiny one, without.

    Where its weights are gated, a token is looked for; without one its ungated stand-in is taken. Prints what was
    chosen and why, in a sentence or two, and never a token.
    """
    from rlhf_lab.profiles import get_profile

    chosen, why = (profile, "as you say") if profile else _by_gpu()
    if chosen is None:
        print(f"{why} Lessons run on the tiny Llama.")
        return None
    print(f"PROFILE is {chosen!r}: {why}.")
    found = get_profile(chosen)
    if found.stand_in is None:
        return chosen
    if where := find_token():
        print(f"The token for {found.model} is the one in {where}.")
        return chosen
    print(
        f"{found.model} is gated and there is no HF_TOKEN, neither among Colab's secrets (the key on the left) nor in "
        f"the environment. Going on with the ungated {found.stand_in}: PROFILE is {found.stand_in!r}."
    )
    return found.stand_in


def find_token() -> str | None:
    """Where a token for the model hub was found, in words, or None; it is put where huggingface_hub reads it."""
    for where, read in (("Colab's secrets", _secret), ("the environment", _from_environment)):
        if token := (read() or "").strip():
            os.environ[TOKEN] = token
            return where
    return None


def _secret() -> str | None:
    try:
        from google.colab import userdata

        return userdata.get(TOKEN)
    except Exception:  # no such secret, no access granted, a time-out, or not on Colab: each has a class of its own
        return None


def _from_environment() -> str | None:
    return os.environ.get(TOKEN) or os.environ.get("HUGGING_FACE_HUB_TOKEN")


def _by_gpu() -> tuple[str | None, str]:
    """(profile, why): the first of CANDIDATES whose stages all fit, by what rlhf_lab.memory predicts."""
    import torch

    from rlhf_lab.memory import STAGES, predicted_memory
    from rlhf_lab.profiles import get_profile

    if not torch.cuda.is_available():
        return None, "There is no GPU (Runtime > Change runtime type gives one)."
    gpu = torch.cuda.get_device_properties(0)
    has_mb = gpu.total_memory / 1e6
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    for name in CANDIDATES:
        profile = get_profile(name)
        needs_mb = max(predicted_memory(profile, stage, gpu=True).total_mb for stage in STAGES)
        if needs_mb <= USABLE * has_mb and (bf16 or profile.dtype != "bfloat16"):
            return name, f"it takes about {needs_mb / 1000:.0f} GB of the {has_mb / 1000:.0f} GB of this {gpu.name}"
    return None, f"The {gpu.name} has too little memory, {has_mb / 1000:.0f} GB."


def _satisfied(requirement: Requirement, installed: Callable[[str], str]) -> bool:
    if requirement.name == KEPT:
        return True
    try:
        return requirement.specifier.contains(installed(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
