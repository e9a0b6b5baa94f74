"""What this machine has, what is missing, and which profiles can run on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.checks import check_model_dir, check_profile_machine, why_no_bitsandbytes
from rlhf_lab.errors import UserError
from rlhf_lab.fetch import SMOL_NEEDS_MB, cache_dir
from rlhf_lab.profiles import PROFILES, REPO_ROOT, Profile

GB = 2**30
PURPOSE_OF_EXTRAS = {
    "lab": "only for `make lab`",
    "gguf": "only for `rlhf-lab fetch smol` without a hub",
    "tracking": "only for logging by flag",
    "dev": "only for the tests",
}


class Finding(NamedTuple):
    """One line of the report: status is "ok", "warn" (something will not work) or "bad" (the course will not)."""

    name: str
    status: str
    message: str


def diagnose() -> list[Finding]:
    """Look at Python, libraries, processor, memory, disk, GPU, models and profiles. Never raises.

    Takes about as long as importing torch, and imports nothing heavier on a machine without a GPU.
    """
    return [
        _python(),
        *_libraries(),
        _cores(),
        _memory(),
        _disk(),
        *_gpu(),
        _model("tiny Llama", PROFILES["tiny"].model, absent="bad", fix="`rlhf-lab pretrain` trains it in 20 minutes"),
        _model("SmolLM2", cache_dir() / "models" / "smol", absent="warn", fix="`rlhf-lab fetch smol` brings it"),
        *(_profile(profile) for profile in PROFILES.values()),
    ]


def print_report() -> bool:
    """Print the findings as a table; True when none is bad."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    findings = diagnose()
    table = Table(title="rlhf-lab doctor", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    colour = {"ok": "green", "warn": "yellow", "bad": "bold red"}
    for name, status, message in findings:
        # Text, not str: rich would read the brackets of an error message as markup.
        table.add_row(Text(status, style=colour[status]), Text(name), Text(message))
    Console().print(table)
    return all(finding.status != "bad" for finding in findings)


# --- software -----------------------------------------------------------------------------------------------------


def _python() -> Finding:
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    wanted = _project().get("requires-python", ">=3.11")
    if version in SpecifierSet(wanted):
        return Finding("Python", "ok", version)
    return Finding("Python", "bad", f"{version}, the course needs {wanted}: install a newer Python")


def _libraries() -> Iterator[Finding]:
    project = _project()
    for line in project.get("dependencies", ()):
        yield _library(line)
    seen = set(project.get("dependencies", ()))
    for extra, lines in project.get("optional-dependencies", {}).items():
        for line in lines:
            if line not in seen:
                seen.add(line)
                yield _library(line, extra)


def _library(line: str, extra: str = "") -> Finding:
    """`line` is a requirement of pyproject.toml; one of an extra that is missing or old is a warning only."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    wanted = Requirement(line)
    serious = "warn" if extra else "bad"
    purpose = f", {PURPOSE_OF_EXTRAS.get(extra, f'only for the extra {extra}')}" if extra else ""
    try:
        found = Version(importlib.metadata.version(wanted.name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(wanted.name, serious, f"not installed{purpose}: pip install '{line}'")
    if wanted.specifier.contains(found, prereleases=True):
        return Finding(wanted.name, "ok", str(found))
    lower = SpecifierSet(",".join(str(part) for part in wanted.specifier if part.operator in (">=", ">", "==")))
    if not lower.contains(found, prereleases=True):
        return Finding(wanted.name, serious, f"{found} is too old{purpose}: pip install '{line}'")
    return Finding(wanted.name, "warn", f"{found} is newer than tested ({wanted.specifier}), it may work")


def _project() -> dict:
    """The [project] table: from pyproject.toml in a clone, else from what pip wrote down when it installed us."""
    file = REPO_ROOT / "pyproject.toml"
    if file.is_file():
        return tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    try:
        lines = importlib.metadata.requires("rlhf_lab") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {"dependencies": [line for line in lines if "extra ==" not in line]}


# --- the machine --------------------------------------------------------------------------------------------------


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Finding("CPU cores", "warn", f"{cores}: expect twice the times the lessons state, they are for 2")
    return Finding("CPU cores", "ok", str(cores))


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    message = f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f}"
    needed = PROFILES["tiny"].expected_memory_mb / 1024
    if memory.available / GB < needed:
        return Finding("memory", "warn", f"{message}, profile tiny needs {needed:.1f}: close other programs")
    return Finding("memory", "ok", message)


def _disk() -> Finding:
    folder = _nearest(cache_dir())
    free = shutil.disk_usage(folder).free
    message = f"{free / GB:.1f} GB free at {folder}"
    if free / 2**20 < SMOL_NEEDS_MB:
        return Finding(
            "disk", "warn", f"{message}, a real Llama needs {SMOL_NEEDS_MB} MB: set RLHF_LAB_CACHE elsewhere"
        )
    return Finding("disk", "ok", message)


def _gpu() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a torch built for another machine fails in many ways
        yield Finding("torch", "bad", f"does not import ({_first_line(error)})")
        return
    gpu = torch.cuda.is_available()
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        kind = "bfloat16 in hardware" if bf16 else "no bfloat16 in hardware, so float16"
        yield Finding("GPU", "ok", f"{properties.name}, {properties.total_memory / GB:.0f} GB, {kind}")
    else:
        yield Finding("GPU", "ok", "none, and profile tiny needs none")
    yield _bitsandbytes(gpu)


def _bitsandbytes(gpu: bool) -> Finding:
    # Importing it takes longer than torch, so it is done where only it can tell: does it match the GPU's CUDA?
    name = "4-bit weights"
    if importlib.util.find_spec("bitsandbytes") is None:
        return Finding(name, "warn", "bitsandbytes is not installed: the 4-bit profiles need it")
    if gpu and (reason := why_no_bitsandbytes()):
        return Finding(name, "warn", f"bitsandbytes does not import ({reason}): the 4-bit profiles need it")
    return Finding(name, "ok", "bitsandbytes imports" if gpu else "bitsandbytes is installed")


# --- models and profiles ------------------------------------------------------------------------------------------


def _model(name: str, folder: str | Path, absent: str, fix: str) -> Finding:
    try:
        check_model_dir(Path(folder))
    except UserError as error:
        return Finding(name, absent, f"{error} {fix}.")
    return Finding(name, "ok", str(folder))


def _profile(profile: Profile) -> Finding:
    name = f"profile {profile.name}"
    try:
        check_profile_machine(profile)
    except UserError as error:
        return Finding(name, "warn", str(error).removeprefix(f"{name}: "))
    except ImportError as error:
        return Finding(name, "bad", _first_line(error))
    needed, there = profile.expected_memory_mb / 1024, _memory_for(profile) / GB
    if needed > there:
        return Finding(name, "warn", f"expects {needed:.1f} GB, this machine has {there:.1f}")
    return Finding(name, "ok", f"can run here, expects {needed:.1f} GB of {there:.1f} ({profile.runs_on})")


def _memory_for(profile: Profile) -> int:
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total


def _nearest(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
