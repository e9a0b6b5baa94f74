"""Rows in and out of files: JSON lines, a JSON array, CSV, Parquet, each also gzipped; and text in one move."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lab.errors import UserError


def data_dir() -> Path:
    """Where what the user made here is kept (progress): $RLHF_LAB_DATA, or the user's data folder of this platform."""
    if chosen := os.environ.get("RLHF_LAB_DATA"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("rlhf_lab"))


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number, value) for every row of the file; a row counts from 1, a JSONL file's by its lines.

    Raises UserError for a file that is missing, a folder, unreadable, not UTF-8, or broken, naming the row.
    """
    if path.is_dir():
        raise UserError("is a folder, not a file", where=str(path), fix="Name a .jsonl, .json, .csv or .parquet in it")
    if not path.exists():
        raise UserError(
            "no such file", where=str(path), fix=f"Check the path; a relative one starts from here: {Path.cwd()}"
        )
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise UserError(
            f"cannot be read ({getattr(error, 'strerror', None) or error})",
            where=str(path),
            fix="Check its permissions and that the download finished",
        ) from error
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() == ".parquet":
        return _parquet_rows(data, path)
    text = _decode(data, path)
    if suffix.lower() == ".csv":
        return _csv_rows(text, path)
    return _array_rows(text, path) if text.lstrip().startswith("[") else _json_lines(text, path)


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"byte {error.start + 1} is not UTF-8", where=f"{path}, row {line}", fix="Save the file as UTF-8"
        ) from None


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would cut at U+2028 inside a string
        if line.strip():
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise _broken_json(error, f"{path}, row {number}") from None


def _array_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(text), start=1)
    except (json.JSONDecodeError, RecursionError) as error:
        position = getattr(error, "pos", 0)
        raise _broken_json(error, f"{path}, row {_element_at(text, position)}") from None


def _element_at(text: str, position: int) -> int:
    """Which element of the array, from 1, is the one that json gave up on at `position`."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    index, cursor = 1, text.index("[") + 1
    while True:
        cursor = between.match(text, cursor).end()
        try:
            _, cursor = decoder.raw_decode(text, cursor)
        except (json.JSONDecodeError, RecursionError):
            return index
        if cursor >= position:
            return index
        index += 1


def _broken_json(error: Exception, where: str) -> UserError:
    if isinstance(error, json.JSONDecodeError):
        reason = f"broken JSON, {error.msg} (line {error.lineno}, character {error.colno})"
    else:
        reason = "broken JSON, nested too deep"
    return UserError(reason, where=where, fix="One JSON object a line, or one array of objects")


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 kB is less than one long transcript
    number = 0
    try:
        for number, record in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), start=1):
            if None in record or None in record.values():
                raise UserError(
                    "the record has more or fewer cells than the header",
                    where=f"{path}, row {number}",
                    fix="Quote cells that hold commas or line breaks",
                )
            yield number, record
    except csv.Error as error:
        raise UserError(f"broken CSV, {error}", where=f"{path}, row {number + 1}", fix="Mend the quotes") from None


def _parquet_rows(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"broken Parquet ({str(error).splitlines()[0]})", where=str(path), fix="Download or write the file again"
        ) from None
    return iter(list(enumerate(table.to_pylist(), start=1)))


def write_jsonl(path: str | Path, rows: Iterable[Mapping]) -> Path:
    """Write one JSON object a line (UTF-8, keys in their own order), as `write_at_once` writes; returns the path."""
    return write_at_once(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_at_once(path: str | Path, text: str) -> Path:
    """Write `text` whole or not at all, folders included; returns the path.

    Written beside the target and moved over it, so a reader sees the old file or the new one and an interrupted run
    leaves the old one. Raises UserError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})",
            where=str(path),
            fix="Free some space or choose another folder",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path
