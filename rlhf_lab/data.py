"""Read, check and split preference data: everything a trainer will see passes through here first.

Whatever a file looks like, a row leaves in TRL's conversational format:

    preference     {"prompt": [message, ...], "chosen": [message], "rejected": [message]}
    demonstration  {"prompt": [message, ...], "completion": [message]}
    prompt         {"prompt": [message, ...]}

with message = {"role": "system" | "user" | "assistant", "content": str}; a prompt ends with the user's turn and a
reply is one assistant turn. Files: JSON lines or a JSON array (.json and .jsonl alike, also .gz), .csv, .parquet;
layouts.py says which column layouts are understood without being told.

Every fault is a UserError of one line that names file, row and column. A row is the line of a JSONL file, the element
of an array, the record of a CSV or Parquet file; all count from 1.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lab.errors import UserError
from rlhf_lab.files import read_rows
from rlhf_lab.layouts import (
    At,
    Message,
    NoiseError,
    Row,
    demonstration,
    is_public_layout,
    kind_of,
    preference,
    prompt_only,
)

OUR_COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages", "instruction", "input", "output")

# Public sets carry a little noise that their readers cannot mend at the source: pairs whose two sides are the same
# text (6 of 1,100 in the Alpaca-style file the course tries things on), and in HH-RLHF replies left empty or
# transcripts that part ways early. Up to this share is set aside and said so; above it, or in a file of the user's
# own, it is a fault.
NOISE_OF_A_PUBLIC_SET = 0.01


def parse_columns(text: str | None) -> dict[str, str]:
    """Turn "prompt=question,chosen=best" into {"prompt": "question", "chosen": "best"} (ours = the file's).

    Raises UserError for a part without "=", an empty side, a name that is not ours, or one named twice.
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or not ours or not theirs:
            raise UserError(
                f"{part.strip()!r} is not of the form ours=theirs",
                where="--columns",
                fix="Write for example --columns prompt=question,chosen=best,rejected=worst",
            )
        if ours not in OUR_COLUMNS:
            raise UserError(
                f"{ours!r} is not one of our columns",
                where="--columns",
                fix=f"Left of = stands one of: {', '.join(OUR_COLUMNS)}; right of it the file's name",
            )
        if ours in columns:
            raise UserError(f"{ours!r} is mapped twice", where="--columns", fix="Name each of our columns once")
        columns[ours] = theirs
    return columns


def load_preferences(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read preference pairs: [{"prompt": [message, ...], "chosen": [message], "rejected": [message]}, ...].

    `columns` maps our names to the file's. Pairs whose two sides are the same text (surrounding whitespace apart)
    raise; in the public layouts (HH-RLHF, UltraFeedback, Alpaca) up to 1 % of them are set aside, which stderr is told.
    Raises UserError with file, row and column for anything else it cannot use.
    """
    return _load(path, columns, preference)


def load_demonstrations(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read demonstrations: [{"prompt": [message, ...], "completion": [message]}, ...].

    From prompt/completion, `messages` (the last assistant turn is the completion), instruction/input/output, or a
    preference file, whose chosen reply becomes the completion. Raises UserError as load_preferences does.
    """
    return _load(path, columns, demonstration)


def load_prompts(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read prompts: [{"prompt": [message, ...]}, ...], from any of the layouts above; replies are left unread.

    Raises UserError as load_preferences does.
    """
    return _load(path, columns, prompt_only)


def split_rows(rows: list, n_train: int, n_test: int, seed: int) -> tuple[list, list]:
    """A seeded, disjoint (train, test) of n_train and n_test rows; no prompt stands on both sides.

    Rows that share a prompt stay together: split row by row, a public set leaks its test prompts into training. The
    test side depends on `seed` and `n_test` alone, so runs with more or less training data are measured on the same
    rows. Raises UserError with the counts when there are too few rows.
    """
    if n_train < 0 or n_test < 0:
        raise UserError(f"cannot draw {n_train} training and {n_test} test rows", fix="Ask for zero or more of each")
    if n_train + n_test > len(rows):
        raise UserError(
            f"{n_train} training and {n_test} test rows asked for, {len(rows)} usable rows there",
            fix=f"Ask for at most {len(rows)} rows in all, or bring more data",
        )
    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["prompt"], sort_keys=True), []).append(row)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    test: list = []
    train: list = []
    for group in shuffled:
        (test if len(test) + len(group) <= n_test else train).extend(group)
    if len(test) < n_test or len(train) < n_train:
        raise UserError(
            f"{n_train} training and {n_test} test rows asked for, but the {len(rows)} rows have only "
            f"{len(groups)} different prompts, and none may stand on both sides",
            fix="Ask for fewer rows, or bring more prompts",
        )
    return train[:n_train], test


def by_length(rows: list, batch_size: int, length: Callable[[Any], int], seed: int, window: int | None = None) -> list:
    """The rows in an order whose consecutive batches hold rows of like length, the batches in random order.

    A trainer that reads them in sequence pads little. No row leaves its window of so many batches; without one they
    may go anywhere. What fills no batch comes last.
    """
    rng = random.Random(seed)
    ordered: list = []
    size = batch_size * window if window else max(1, len(rows))
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        rng.shuffle(part)  # rows of equal length are not kept in the file's order
        part.sort(key=length)
        batches = [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
        whole = [batch for batch in batches if len(batch) == batch_size]
        rng.shuffle(whole)
        ordered += [row for batch in whole + batches[len(whole) :] for row in batch]
    return ordered


def check_tokens(rows: list, tokenizer, max_length: int, where: str) -> list[int]:
    """Refuse rows that lose their meaning at `max_length` tokens, before any model loads; returns how long each is.

    Lengths are in tokens, template included: of the prompt alone, or with its reply, the longer one of a pair, uncut.

    Rows are prompts, demonstrations or preferences; those loaded above know their file and line, for others `where`
    and their position are named.
    Raises UserError, naming the first such row, its token counts and how many there are, for

    - a prompt that with the template leaves no room for a reply within max_length;
    - a pair whose two sides are the same tokens once cut to max_length: its gradient is exactly zero
      (rlhf-book issue 503).
    """
    if not rows:
        return []
    prompts = _token_ids(tokenizer, [row["prompt"] for row in rows], add_generation_prompt=True)
    full = [i for i, ids in enumerate(prompts) if len(ids) >= max_length]
    if full:
        i = full[0]
        raise UserError(
            f"the prompt alone takes {len(prompts[i])} of {max_length} tokens, so no room is left for a "
            f"reply{_and_more(full)}",
            where=f"{_place(rows, i, where)}, column 'prompt'",
            fix=f"Shorten or remove it, or raise max_length above {max(map(len, prompts))}",
        )

    with_reply = {
        side: dict(zip(at, _token_ids(tokenizer, [rows[i]["prompt"] + rows[i][side] for i in at]), strict=True))
        for side in ("completion", "chosen", "rejected")
        if (at := [i for i, row in enumerate(rows) if side in row])
    }
    chosen, rejected = with_reply.get("chosen", {}), with_reply.get("rejected", {})
    same = [i for i in sorted(chosen.keys() & rejected) if chosen[i][:max_length] == rejected[i][:max_length]]
    if same:
        i = same[0]
        ever = chosen[i] == rejected[i]
        raise UserError(
            f"chosen ({len(chosen[i])} tokens with its prompt) and rejected ({len(rejected[i])}) are the "
            f"same {'tokens' if ever else f'in their first {max_length} tokens'}, so the pair's gradient "
            f"is zero{_and_more(same)}",
            where=f"{_place(rows, i, where)}, column 'rejected'",
            fix="Remove the row" if ever else "Raise max_length, or remove the row",
        )
    longest = [len(ids) for ids in prompts]
    for sides in with_reply.values():
        for i, ids in sides.items():
            longest[i] = max(longest[i], len(ids))
    return longest


# --- files --------------------------------------------------------------------------------------------------------


def _load(path: str | Path, columns: Mapping[str, str] | None, reads: Callable[[dict, At], Row]) -> list[Row]:
    """Every row of the file through `reads`. Raises UserError on the first fault, and for a file without rows."""
    columns = dict(columns or {})
    rows: list[Row] = []
    noise: list[tuple[int, NoiseError]] = []
    for number, value in read_rows(Path(path)):
        at = At(str(path), number, columns)
        if not isinstance(value, dict):
            raise UserError(
                f"is {kind_of(value)}, not an object with columns",
                where=str(at),
                fix='A row looks like {"prompt": "...", "chosen": "...", "rejected": "..."}',
            )
        named = _rename(value, columns, at)
        try:
            row = reads(named, at)
        except NoiseError as error:
            if not is_public_layout(named):
                raise
            noise.append((number, error))
        else:
            row.file, row.number = str(path), number
            rows.append(row)
    total = len(rows) + len(noise)
    if not total:
        raise UserError("the file has no rows", where=str(path), fix="Check that it was written to the end")
    if len(noise) > NOISE_OF_A_PUBLIC_SET * total:
        raise noise[0][1]
    if noise:
        numbers = ", ".join(str(number) for number, _ in noise[:10]) + (", ..." if len(noise) > 10 else "")
        first = noise[0][1].what
        print(f"{path}: {len(noise)} of {total} rows set aside (rows {numbers}); the first: {first}.", file=sys.stderr)
    return rows


def _rename(row: dict, columns: Mapping[str, str], at: At) -> dict:
    for ours, theirs in columns.items():
        if theirs not in row:
            raise UserError(
                f"--columns maps {ours} to it, but the row has {', '.join(map(str, row)) or 'none'}",
                where=at.column(ours),
                fix="Name a column the file has",
            )
    untouched = {name: value for name, value in row.items() if name not in columns.values()}
    return untouched | {ours: row[theirs] for ours, theirs in columns.items()}


# --- tokens -------------------------------------------------------------------------------------------------------


def _token_ids(tokenizer, conversations: list[list[Message]], add_generation_prompt: bool = False) -> list[list[int]]:
    if not conversations:
        return []
    texts = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=add_generation_prompt)
    # The template writes BOS itself; adding special tokens here would count a second one.
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _place(rows: list, i: int, where: str) -> str:
    row = rows[i]
    if isinstance(row, Row) and row.number:  # split and shuffled since, it still knows its line
        return f"{row.file or where}, row {row.number}"
    return f"{where}, row {i + 1}"


def _and_more(indices: list[int]) -> str:
    return f" (and {len(indices) - 1} more rows)" if len(indices) > 1 else ""
