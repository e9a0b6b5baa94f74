"""One row of a data file, whatever its layout, turned into TRL's conversational format.

Layouts understood without being told:

    ours, TRL's           prompt / chosen / rejected / completion as message lists, or as plain strings
    Anthropic HH-RLHF     chosen / rejected as whole transcripts: "\\n\\nHuman: ...\\n\\nAssistant: ..." (2204.05862)
    UltraFeedback         prompt string; chosen / rejected as message lists that repeat the user's turn (2310.01377)
    UltraChat             messages: the last assistant turn is the completion (2305.14233)
    Alpaca                instruction, input, output, and chosen / rejected when it is a preference set

Every fault is a UserError that names file, row and column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_lab.errors import UserError

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
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


class NoiseError(UserError):
    """A row that teaches nothing, of a kind that public sets are known to hold."""


@dataclass(frozen=True)
class At:
    """A place in a file; `mapped` undoes --columns, so that a message names the column as the file does."""

    file: str
    row: int
    mapped: Mapping[str, str]

    def column(self, name: str) -> str:
        return f"{self.file}, row {self.row}, column '{self.mapped.get(name, name)}'"

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


def preference(row: dict, at: At) -> Row:
    """{"prompt", "chosen", "rejected"}. Raises NoiseError when the two sides are the same text."""
    prompt, replies = _prompt_and_replies(row, at, ("chosen", "rejected"))
    # Llama 3's template trims the content, so a difference in outer whitespace is none.
    if replies[0]["content"].strip() == replies[1]["content"].strip():
        raise NoiseError(
            "chosen and rejected are the same text, and such a pair teaches nothing",
            where=at.column("rejected"),
            fix="Remove the row or mend it",
        )
    return Row(prompt=prompt, chosen=[replies[0]], rejected=[replies[1]])


def demonstration(row: dict, at: At) -> Row:
    """{"prompt", "completion"}; of a preference, the chosen reply is the completion."""
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


def prompt_only(row: dict, at: At) -> Row:
    """{"prompt"}; replies are left unread."""
    # An UltraFeedback row may keep a system turn that its prompt string lacks, and HH-RLHF has no prompt at all.
    if isinstance(row.get("chosen"), list) or ("prompt" not in row and "instruction" not in row and "chosen" in row):
        return Row(prompt=_prompt_and_replies(row, at, ("chosen",))[0])
    if "prompt" not in row and "instruction" not in row and "messages" in row:
        return Row(prompt=_split_messages(row["messages"], at, reply_needed=False)[0])
    return Row(prompt=_own_prompt(row, at))


def _prompt_and_replies(row: dict, at: At, sides: tuple[str, ...]) -> tuple[list[Message], list[Message]]:
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


def _own_prompt(row: dict, at: At) -> list[Message]:
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


def _shared_prompt(conversations: list[list[Message]], at: At, sides: tuple[str, ...]):
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
            raise NoiseError(
                "chosen and rejected differ before their last reply, so they do not answer one prompt",
                where=at.column(side),
                fix="Remove the row, or make the earlier turns the same",
            )
    return _ends_with_user(prompt, at, sides[0]), [conversation[-1] for conversation in conversations]


def _split_messages(value: Any, at: At, reply_needed: bool = True) -> tuple[list[Message], Message | None]:
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


def _transcript(text: str, at: At, column: str, open_ended: bool = False) -> list[Message]:
    """HH-RLHF's "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; open_ended drops an empty last Assistant turn."""
    marks = list(HH_TURN.finditer(text))
    messages: list[Message] = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : after.start() if after else len(text)].strip()
        role = "user" if mark[1] == "Human" else "assistant"
        if open_ended and after is None and role == "assistant" and not content:
            break
        if not content:
            raise NoiseError(
                f"turn {len(messages) + 1} ({mark[1]}) is empty",
                where=at.column(column),
                fix="Remove the row or fill it in",
            )
        messages.append({"role": role, "content": content})
    return messages


def _reply(value: Any, at: At, column: str) -> list[Message]:
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


def _messages(value: Any, at: At, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise UserError(
            f"is {kind_of(value)} where a list of messages is due",
            where=at.column(column),
            fix='Write [{"role": "user", "content": "..."}]',
        )
    if not value:
        raise UserError("the list of messages is empty", where=at.column(column), fix="Fill it in or remove the row")
    messages = []
    for i, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise UserError(
                f"message {i} is {kind_of(message)}, not an object with role and content",
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


def _text(value: Any, at: At, column: str, what: str = "", may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(
            f"{what + ' ' if what else ''}is {kind_of(value)} where text is due",
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


def _ends_with_user(messages: list[Message], at: At, column: str) -> list[Message]:
    if not messages or messages[-1]["role"] != "user":
        ends = f"ends with the {messages[-1]['role']}'s turn" if messages else "has no turn before the reply"
        raise UserError(
            f"the prompt {ends}, so there is nothing to answer",
            where=at.column(column),
            fix="End the prompt with a user turn, or remove the row",
        )
    return messages


def _demand(row: dict, column: str, at: At) -> None:
    if column not in row:
        raise UserError(
            f"the column is missing, the row has {', '.join(map(str, row)) or 'none'}",
            where=at.column(column),
            fix=f"Name the file's own with --columns {column}=<its name>",
        )


def kind_of(value: Any) -> str:
    """What a JSON value is, in the words of an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return {list: "a list", dict: "an object", str: "text"}.get(type(value), type(value).__name__)


def _last_user(messages: list[Message]) -> str:
    return messages[-1]["content"].strip()


def is_public_layout(row: dict) -> bool:
    """Whether the row is laid out as HH-RLHF, UltraFeedback or Alpaca: a set that its reader did not write."""
    chosen = row.get("chosen")
    transcript = isinstance(chosen, str) and HH_TURN.match(chosen) is not None
    conversation = isinstance(chosen, list) and len(chosen) > 1
    return transcript or conversation or ("instruction" in row and "prompt" not in row)
