"""Read, check and split preference data: everything a trainer will see passes through here first.

Whatever a file looks like, a row leaves in TRL's conversational format:

    preference     {"prompt": [message, ...], "chosen": [message], "rejected": [message]}
    demonstration  {"prompt": [message, ...], "completion": [message]}
    prompt         {"prompt": [message, ...]}

with message = {"role": "system" | "user" | "assistant", "content": str}; a prompt ends with the user's turn and a
reply is one assistant turn. Files: JSON lines or a JSON array (.json and .jsonl alike, also .gz), .csv, .parquet.
Layouts understood without being told:

    ours, TRL's           prompt / chosen / rejected / completion as message lists, or as plain strings
    Anthropic HH-RLHF     chosen / rejected as whole transcripts: "\\n\\nHuman: ...\\n\\nAssistant: ..." (2204.05862)
    UltraFeedback         prompt string; chosen / rejected as message lists that repeat the user's turn (2310.01377)
    UltraChat             messages: the last assistant turn is the completion (2305.14233)
    Alpaca                instruction, input, output, and chosen / rejected when it is a preference set

Every fault is a UserError of one line that names file, row and column. A row is the line of a JSONL file, the element
of an array, the record of a CSV or Parquet file; all count from 1.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lab.errors import UserError
from rlhf_lab.files import read_rows

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
OUR_COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages", "instruction", "input", "output")

# Public sets carry a little noise that their readers cannot mend at the source: pairs whose two sides are the same
# text (6 of 1,100 in the Alpaca-style file the course tries things on), and in HH-RLHF replies left empty or
# transcripts that part ways early. Up to this share is set aside and said so; above it, or in a file of the user's
# own, it is a fault.
NOISE_OF_A_PUBLIC_SET = 0.01

HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class Row(dict):
    """A row that remembers where it stood, for the error messages. Compares and serialises as a plain dict."""

    file: str = ""
    number: int = 0

    def keeping(self, **columns: Any) -> Row:
        """A row of other columns from the same place: row.keeping(prompt=row["prompt"])."""
        row = Row(columns)
        row.file, row.number = self.file, self.number
        return row


class _NoiseError(UserError):
    """A row that teaches nothing, of a kind that public sets are known to hold."""

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        super().__init__(what, where=where, fix=fix)
        self.what = what


@dataclass(frozen=True)
class _At:
    """A place in a file; `mapped` undoes --columns, so that a message names the column as the file does."""

    file: str
    row: int
    mapped: Mapping[str, str]

    def column(self, name: str) -> str:
        return f"{self.file}, row {self.row}, column '{self.mapped.get(name, name)}'"

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


# --- what the rest of the package calls -------------------------------------------------------------------------


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
    return _load(path, columns, _preference)


def load_demonstrations(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read demonstrations: [{"prompt": [message, ...], "completion": [message]}, ...].

    From prompt/completion, `messages` (the last assistant turn is the completion), instruction/input/output, or a
    preference file, whose chosen reply becomes the completion. Raises UserError as load_preferences does.
    """
    return _load(path, columns, _demonstration)


def load_prompts(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read prompts: [{"prompt": [message, ...]}, ...], from any of the layouts above; replies are left unread.

    Raises UserError as load_preferences does.
    """
    return _load(path, columns, _prompt_only)


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


def check_tokens(rows: list, tokenizer, max_length: int, where: str) -> None:
    """Refuse rows that lose their meaning at `max_length` tokens, before any model loads.

    Rows are prompts, demonstrations or preferences; those loaded above know their file and line, for others `where`
    and their position are named.
    Raises UserError, naming the first such row, its token counts and how many there are, for

    - a prompt that with the template leaves no room for a reply within max_length;
    - a pair whose two sides are the same tokens once cut to max_length: its gradient is exactly zero
      (rlhf-book issue 503).
    """
    if not rows:
        return
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

    pairs = [i for i, row in enumerate(rows) if "chosen" in row and "rejected" in row]
    chosen = _token_ids(tokenizer, [rows[i]["prompt"] + rows[i]["chosen"] for i in pairs])
    rejected = _token_ids(tokenizer, [rows[i]["prompt"] + rows[i]["rejected"] for i in pairs])
    same = [k for k in range(len(pairs)) if chosen[k][:max_length] == rejected[k][:max_length]]
    if same:
        k = same[0]
        ever = chosen[k] == rejected[k]
        raise UserError(
            f"chosen ({len(chosen[k])} tokens with its prompt) and rejected ({len(rejected[k])}) are the "
            f"same {'tokens' if ever else f'in their first {max_length} tokens'}, so the pair's gradient "
            f"is zero{_and_more(same)}",
            where=f"{_place(rows, pairs[k], where)}, column 'rejected'",
            fix="Remove the row" if ever else "Raise max_length, or remove the row",
        )


# --- one row, of whatever layout ----------------------------------------------------------------------------------


def _preference(row: dict, at: _At) -> Row:
    prompt, replies = _prompt_and_replies(row, at, ("chosen", "rejected"))
    # Llama 3's template trims the content, so a difference in outer whitespace is none.
    if replies[0]["content"].strip() == replies[1]["content"].strip():
        raise _NoiseError(
            "chosen and rejected are the same text, and such a pair teaches nothing",
            where=at.column("rejected"),
            fix="Remove the row or mend it",
        )
    return Row(prompt=prompt, chosen=[replies[0]], rejected=[replies[1]])


def _demonstration(row: dict, at: _At) -> Row:
    if "completion" not in row and "chosen" in row:
        prompt, replies = _prompt_and_replies(row, at, ("chosen",))
    elif "completion" not in row and "messages" in row:
        prompt, reply = _split_messages(row["messages"], at)
        replies = [reply]
    elif "completion" not in row and "output" in row and "instruction" in row:
        prompt, replies = _prompt_and_replies(row, at, ("output",))
    else:
        prompt, replies = _prompt_and_replies(row, at, ("completion",))
    return Row(prompt=prompt, completion=[replies[0]])


def _prompt_only(row: dict, at: _At) -> Row:
    # An UltraFeedback row may keep a system turn that its prompt string lacks, and HH-RLHF has no prompt at all.
    if isinstance(row.get("chosen"), list) or ("prompt" not in row and "instruction" not in row and "chosen" in row):
        return Row(prompt=_prompt_and_replies(row, at, ("chosen",))[0])
    if "prompt" not in row and "instruction" not in row and "messages" in row:
        return Row(prompt=_split_messages(row["messages"], at, reply_needed=False)[0])
    return Row(prompt=_own_prompt(row, at))


def _prompt_and_replies(row: dict, at: _At, sides: tuple[str, ...]) -> tuple[list[Message], list[Message]]:
    """The prompt and one assistant message for each column in `sides`."""
    for side in sides:
        _demand(row, side, at)
    if "prompt" not in row and "instruction" not in row:
        if all(isinstance(row[side], str) and HH_TURN.match(row[side]) for side in sides):
            conversations = [_transcript(row[side], at, side) for side in sides]
        elif all(isinstance(row[side], list) for side in sides):
            conversations = [_messages(row[side], at, side) for side in sides]
        else:
            _demand(row, "prompt", at)
        return _shared_prompt(conversations, at, sides)

    prompt = _own_prompt(row, at)
    replies = [_reply(row[side], at, side) for side in sides]
    if any(len(reply) > 1 for reply in replies):  # UltraFeedback: the prompt is inside, perhaps with a system turn
        repeated, lasts = _shared_prompt(replies, at, sides)
        if _last_user(repeated) != _last_user(prompt):
            raise UserError(
                "the conversation before the reply is not the row's prompt",
                where=at.column(sides[0]),
                fix="Give the reply alone, or repeat the prompt as it stands",
            )
        return repeated, lasts
    return prompt, [reply[0] for reply in replies]


def _own_prompt(row: dict, at: _At) -> list[Message]:
    if "prompt" not in row and "instruction" in row:
        text = _text(row["instruction"], at, "instruction")
        extra = row.get("input")  # absent, null and "" all mean: no input
        if extra is not None and _text(extra, at, "input", may_be_empty=True).strip():
            text = f"{text}\n\n{extra}"
        return [{"role": "user", "content": text}]
    _demand(row, "prompt", at)
    value = row["prompt"]
    if isinstance(value, list):
        return _ends_with_user(_messages(value, at, "prompt"), at, "prompt")
    text = _text(value, at, "prompt")
    if HH_TURN.match(text) and "\n\nAssistant:" in text:  # HH-RLHF as others republish it, prompt cut off already
        turns = _transcript(text, at, "prompt", open_ended=True)
        return _ends_with_user(turns, at, "prompt")
    return [{"role": "user", "content": text}]


def _shared_prompt(conversations: list[list[Message]], at: _At, sides: tuple[str, ...]):
    """All turns but the last, which every side must share, and each side's last turn, an assistant's."""
    prompt = conversations[0][:-1]
    for conversation, side in zip(conversations, sides, strict=True):
        if conversation[-1]["role"] != "assistant":
            raise UserError(
                f"the conversation ends with the {conversation[-1]['role']}'s turn, so there is no reply",
                where=at.column(side),
                fix="End it with an assistant turn, or remove the row",
            )
        if conversation[:-1] != prompt:
            raise _NoiseError(
                "chosen and rejected differ before their last reply, so they do not answer one prompt",
                where=at.column(side),
                fix="Remove the row, or make the earlier turns the same",
            )
    return _ends_with_user(prompt, at, sides[0]), [conversation[-1] for conversation in conversations]


def _split_messages(value: Any, at: _At, reply_needed: bool = True) -> tuple[list[Message], Message | None]:
    messages = _messages(value, at, "messages")
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if not reply_needed and messages[-1]["role"] == "user":
        return messages, None
    if last is None:
        raise UserError(
            "no assistant turn in the conversation",
            where=at.column("messages"),
            fix="Add the reply to learn from, or remove the row",
        )
    return _ends_with_user(messages[:last], at, "messages"), messages[last]


def _transcript(text: str, at: _At, column: str, open_ended: bool = False) -> list[Message]:
    """HH-RLHF's "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; open_ended drops an empty last Assistant turn."""
    marks = list(HH_TURN.finditer(text))
    messages: list[Message] = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : after.start() if after else len(text)].strip()
        role = "user" if mark[1] == "Human" else "assistant"
        if open_ended and after is None and role == "assistant" and not content:
            break
        if not content:
            raise _NoiseError(
                f"turn {len(messages) + 1} ({mark[1]}) is empty",
                where=at.column(column),
                fix="Remove the row or fill it in",
            )
        messages.append({"role": role, "content": content})
    return messages


def _reply(value: Any, at: _At, column: str) -> list[Message]:
    if isinstance(value, list):
        messages = _messages(value, at, column)
        if messages[-1]["role"] != "assistant":
            raise UserError(
                f"a reply's role is 'assistant', this one is {messages[-1]['role']!r}",
                where=at.column(column),
                fix="End the list with the assistant's message",
            )
        return messages
    return [{"role": "assistant", "content": _text(value, at, column)}]


def _messages(value: Any, at: _At, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise UserError(
            f"is {_kind(value)} where a list of messages is due",
            where=at.column(column),
            fix='Write [{"role": "user", "content": "..."}]',
        )
    if not value:
        raise UserError("the list of messages is empty", where=at.column(column), fix="Fill it in or remove the row")
    messages = []
    for i, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise UserError(
                f"message {i} is {_kind(message)}, not an object with role and content",
                where=at.column(column),
                fix='Write {"role": "user", "content": "..."}',
            )
        missing = [key for key in ("role", "content") if key not in message]
        if missing:
            raise UserError(
                f"message {i} has no {' and no '.join(missing)}, it has {', '.join(message) or 'nothing'}",
                where=at.column(column),
                fix='Write {"role": "user", "content": "..."}',
            )
        if message["role"] not in ROLES:
            raise UserError(
                f"message {i} has the unknown role {message['role']!r}",
                where=at.column(column),
                fix=f"Use one of: {', '.join(ROLES)}",
            )
        content = _text(message["content"], at, column, what=f"the content of message {i}")
        messages.append({"role": message["role"], "content": content})
    return messages


def _text(value: Any, at: _At, column: str, what: str = "", may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(
            f"{what + ' ' if what else ''}is {_kind(value)} where text is due",
            where=at.column(column),
            fix="Put a string there, or remove the row",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{what + ' ' if what else ''}holds half of a surrogate pair, which no tokenizer takes",
            where=at.column(column),
            fix="Replace the broken character",
        ) from None
    if not may_be_empty and not value.strip():
        raise UserError(
            f"{what or ('the prompt' if column in ('prompt', 'instruction') else 'the reply')} is empty",
            where=at.column(column),
            fix="Fill it in or remove the row",
        )
    return value


def _ends_with_user(messages: list[Message], at: _At, column: str) -> list[Message]:
    if not messages or messages[-1]["role"] != "user":
        ends = f"ends with the {messages[-1]['role']}'s turn" if messages else "has no turn before the reply"
        raise UserError(
            f"the prompt {ends}, so there is nothing to answer",
            where=at.column(column),
            fix="End the prompt with a user turn, or remove the row",
        )
    return messages


def _demand(row: dict, column: str, at: _At) -> None:
    if column not in row:
        raise UserError(
            f"the column is missing, the row has {', '.join(map(str, row)) or 'none'}",
            where=at.column(column),
            fix=f"Name the file's own with --columns {column}=<its name>",
        )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return {list: "a list", dict: "an object", str: "text"}.get(type(value), type(value).__name__)


def _last_user(messages: list[Message]) -> str:
    return messages[-1]["content"].strip()


def _is_public_layout(row: dict) -> bool:
    """Whether the row is laid out as HH-RLHF, UltraFeedback or Alpaca: a set that its reader did not write."""
    chosen = row.get("chosen")
    transcript = isinstance(chosen, str) and HH_TURN.match(chosen) is not None
    conversation = isinstance(chosen, list) and len(chosen) > 1
    return transcript or conversation or ("instruction" in row and "prompt" not in row)


# --- files --------------------------------------------------------------------------------------------------------


def _load(path: str | Path, columns: Mapping[str, str] | None, reads: Callable[[dict, _At], Row]) -> list[Row]:
    """Every row of the file through `reads`. Raises UserError on the first fault, and for a file without rows."""
    columns = dict(columns or {})
    rows: list[Row] = []
    noise: list[tuple[int, _NoiseError]] = []
    for number, value in read_rows(Path(path)):
        at = _At(str(path), number, columns)
        if not isinstance(value, dict):
            raise UserError(
                f"is {_kind(value)}, not an object with columns",
                where=str(at),
                fix='A row looks like {"prompt": "...", "chosen": "...", "rejected": "..."}',
            )
        named = _rename(value, columns, at)
        try:
            row = reads(named, at)
        except _NoiseError as error:
            if not _is_public_layout(named):
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


def _rename(row: dict, columns: Mapping[str, str], at: _At) -> dict:
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
