"""What the learner has done: one small JSON file, and the map of the course drawn from it.

Written beside and moved into place, then once more as a spare copy, so a crash at any moment leaves a whole file. A
file that cannot be read is set aside under another name and the spare takes its place. Outputs name no folder.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lab.errors import UserError
from rlhf_lab.exercises.display import Block
from rlhf_lab.exercises.exercise import LESSONS, Exercise
from rlhf_lab.files import data_dir, write_at_once

FILE, SPARE = "progress.json", "progress.spare.json"
VERSION = 1

Entries = dict[str, dict[str, Any]]  # exercise -> {"attempts": 3, "passed": "2026-11-26T10:00:00+00:00" or None}


def record(name: str, *, passed: bool) -> None:
    """Count one attempt, and the time of the first pass. Raises UserError when the folder cannot be written."""
    entries = load()[0]
    entry = entries.setdefault(name, {"attempts": 0, "passed": None})
    entry["attempts"] += 1
    if passed and not entry["passed"]:
        entry["passed"] = datetime.now(UTC).isoformat(timespec="seconds")
    _save(entries)


def load() -> tuple[Entries, str]:
    """(entries, a sentence if something had to be mended). A damaged file is set aside, never deleted.

    Raises UserError when the file is there and cannot be read or moved.
    """
    folder = data_dir()
    wrong = "is missing"
    try:
        return _parse(_read(folder / FILE)), ""
    except FileNotFoundError:
        if not (folder / SPARE).exists():
            return {}, ""
    except ValueError:
        wrong = f"was damaged and is kept as {_set_aside(folder / FILE)}"
    try:
        return _parse(_read(folder / SPARE)), f"The progress file {wrong}; the spare copy took its place."
    except FileNotFoundError:
        pass
    except ValueError:
        wrong += f", the spare copy too ({_set_aside(folder / SPARE)})"
    return {}, f"The progress file {wrong}. There is no other copy: this map begins anew."


def export_to(path: Path) -> str:
    """Write all entries to `path`; a sentence that says how many."""
    entries = load()[0]
    write_at_once(path, _text(entries))
    return f"{_count(entries)} written to {path.name}."


def import_from(path: Path) -> str:
    """Merge the entries of an exported file; a sentence that says what came of it."""
    fix = "Name a file from export_progress"
    try:
        theirs = _parse(_read(path))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), fix=fix) from None
    except ValueError as error:
        raise UserError(f"is no exported progress ({error})", where=str(path), fix=fix) from None
    entries = load()[0]
    for name, entry in theirs.items():
        ours = entries.setdefault(name, {"attempts": 0, "passed": None})
        ours["attempts"] = max(ours["attempts"], entry["attempts"])
        ours["passed"] = min(filter(None, (ours["passed"], entry["passed"])), default=None)  # the earlier one
    _save(entries)
    return f"{_count(theirs)} read from {path.name}; now there are {_count(entries)}."


def course_map(exercises: Iterable[Exercise]) -> Block:
    """Every exercise of the course with its mark, by lesson, and the first that is not passed yet."""
    entries, mended = load()
    exercises = list(exercises)
    lines = [mended, ""] if mended else []
    width = max(len(exercise.name) for exercise in exercises)
    for number, title in LESSONS.items():
        ours = [exercise for exercise in exercises if exercise.lesson == number]
        done = sum(_is_passed(entries, exercise) for exercise in ours)
        lines.append(f"{number:02} {title}: {done} of {len(ours)}")
        for exercise in ours:
            attempts = entries.get(exercise.name, {}).get("attempts", 0)
            passed = _is_passed(entries, exercise)
            mark = "[x]" if passed else "[~]" if attempts else "[ ]"
            tries = f", {attempts} {'try' if attempts == 1 else 'tries'}" if attempts and not passed else ""
            lines.append(f"  {mark} {exercise.name:<{width}}  {exercise.effort}{tries}")
    lines += ["", "[x] passed   [~] tried   [ ] not tried yet"]
    waiting = [exercise for exercise in exercises if not _is_passed(entries, exercise)]
    if waiting:
        lines.append(f"Next: {waiting[0].name}, {waiting[0].minutes} minutes ({waiting[0].title}).")
    else:
        lines.append("All passed.")
    return Block(f"{len(exercises) - len(waiting)} of {len(exercises)} exercises passed", "\n".join(lines), "plain")


def _is_passed(entries: Entries, exercise: Exercise) -> bool:
    return bool(entries.get(exercise.name, {}).get("passed"))


def _count(entries: Entries) -> str:
    passed = sum(bool(entry["passed"]) for entry in entries.values())
    return f"{len(entries)} exercises ({passed} passed)"


def _save(entries: Entries) -> None:
    text = _text(entries)
    write_at_once(data_dir() / FILE, text)
    write_at_once(data_dir() / SPARE, text)


def _text(entries: Entries) -> str:
    return json.dumps({"version": VERSION, "exercises": entries}, indent=1, sort_keys=True) + "\n"


def _parse(text: str) -> Entries:
    """The entries of a progress file. Raises ValueError, in a few words, for anything else."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:
        raise ValueError("broken JSON") from None
    entries = content.get("exercises") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ValueError('no "exercises" in it')
    for name, entry in entries.items():
        attempts, passed = (entry.get("attempts"), entry.get("passed")) if isinstance(entry, dict) else (None, None)
        if type(attempts) is not int or attempts < 0 or not (passed is None or isinstance(passed, str)):
            raise ValueError(f'the entry "{name}" is malformed')
    return entries


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror or error})", where=str(path), fix="Check its permissions"
        ) from error


def _set_aside(path: Path) -> str:
    """Rename a damaged file to the first free name, and give that name."""
    target = next(t for n in itertools.count(1) if not (t := path.with_name(f"progress.damaged-{n}.json")).exists())
    try:
        os.replace(path, target)
    except OSError as error:
        raise UserError(
            f"is damaged and cannot be moved aside ({error.strerror or error})", where=str(path), fix="Move it yourself"
        ) from error
    return target.name
