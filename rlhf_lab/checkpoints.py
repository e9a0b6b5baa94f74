"""Checkpoints that are whole or refused.

A trainer writes many files, and a machine can stop between any two. The list of what each file must be is written
last: a folder without its list was not finished, one whose files differ from it is damaged.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rlhf_lab.errors import UserError
from rlhf_lab.files import write_at_once

SEAL = "files.json"  # name of each file -> its sha256


def seal(folder: str | Path) -> None:
    """Declare the checkpoint in `folder` finished: write what its files are."""
    folder = Path(folder)
    files = {str(path.relative_to(folder)): _sha256(path) for path in _files(folder)}
    write_at_once(folder / SEAL, json.dumps(files, indent=1))


def fault(folder: str | Path) -> str | None:
    """Why training cannot go on from `folder`, or None when it can."""
    folder = Path(folder)
    if not (folder / SEAL).is_file():
        return "was not written to its end" if folder.is_dir() else "does not exist"
    try:
        expected = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except ValueError:
        return f"{SEAL} is damaged"
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != digest:
            return f"{name} is damaged"
    return None


def last_good(output_dir: str | Path) -> Path | None:
    """The latest checkpoint-N under `output_dir` that is whole, or None."""
    numbered = (path for path in Path(output_dir).glob("checkpoint-*") if path.name[11:].isdigit())
    return next((p for p in sorted(numbered, key=lambda p: -int(p.name[11:])) if fault(p) is None), None)


def require_whole(folder: str | Path) -> Path:
    """`folder`, if training can go on from it. Raises UserError that names the last good checkpoint beside it."""
    why = fault(folder)
    if why:
        good = last_good(Path(folder).parent)
        fix = f"Go on from {good}" if good else "There is no good one beside it: start again"
        raise UserError(f"checkpoint {why}", where=str(folder), fix=fix)
    return Path(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
