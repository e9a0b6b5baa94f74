"""A conversation as a model reads it: which token is the template's, which is whose turn, and which the loss covers."""

from __future__ import annotations

import copy
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_lab.evaluate import encode_dialogue, encode_prompt
from rlhf_lab.models import LLAMA_2_TEMPLATE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

# What a chat looked like before models had tokens for it. The reply ends in the tokenizer's EOS, or it would never end.
PLAIN_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- 'User: ' + message['content'] | trim + '\n' }}"
    "{%- else %}{{- 'Assistant: ' + message['content'] | trim + eos_token + '\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)
LOSSES = {
    "last": "the last reply",  # prompt and completion, TRL's completion_only_loss
    "replies": "every reply",  # TRL's assistant_only_loss
    "all": "every token",  # plain text
}
_MARK = "\ue000"  # a character of private use, which no chat holds


@dataclass(frozen=True)
class Token:
    """One token of a rendered chat. role: "template", or whose words it is of, "user" or "assistant"."""

    text: str
    id: int
    role: str
    in_loss: bool


def template_tokenizer(tokenizer: PreTrainedTokenizerBase, form: str) -> PreTrainedTokenizerBase:
    """A tokenizer with another chat template: its "own", "llama-2" or "plain".

    Llama 2's `<s>` and `</s>` are added where the vocabulary lacks them, so ids are not Llama 2's; what the template
    writes is. Raises ValueError for another form.
    """
    if form == "own":
        return tokenizer
    if form not in ("llama-2", "plain"):
        raise ValueError(f"the template is own, llama-2 or plain, got {form!r}")
    tokenizer = copy.deepcopy(tokenizer)
    if form == "llama-2":
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.chat_template = LLAMA_2_TEMPLATE if form == "llama-2" else PLAIN_TEMPLATE
    return tokenizer


def chat_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], loss: str = "last") -> list[Token]:
    """The tokens of a chat as its template writes them.

    Args:
        messages: turns of user and assistant, with role and content.
        loss: what is trained on, a key of LOSSES. A reply is covered from its first word to the EOS that ends it; the
            header before it ("assistant", say) is given to the model, and not covered. Of the last reply also what
            the template writes after the EOS, a newline perhaps: so does TRL.

    Raises ValueError for another `loss`, and for a template that writes earlier turns anew when a turn is added.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, got {loss!r}")
    messages = list(messages)
    text = _render(tokenizer, messages)
    words, replies = [], []  # (start, end) in characters
    for i, message in enumerate(messages):
        before, after = _render(tokenizer, messages[:i]) if i else "", _render(tokenizer, messages[: i + 1])
        if not text.startswith(after):
            raise ValueError("this template does not write a longer chat as a shorter one and more")
        marked = _render(tokenizer, [*messages[:i], {"role": message["role"], "content": _MARK}])
        start = marked.index(_MARK, len(before))
        words.append((start, start + len(message["content"].strip()), message["role"]))
        if message["role"] == "assistant":
            opened = _render(tokenizer, messages[:i], add_generation_prompt=True)
            start = len(opened) if after.startswith(opened) else start
            eos = after.rfind(tokenizer.eos_token, start)
            replies.append((start, len(after) if eos < 0 else eos + len(tokenizer.eos_token)))
    last = [(start, len(text)) for start, _ in replies[-1:]]
    covered = {"last": last, "replies": replies, "all": [(0, len(text))]}[loss]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = []
    for id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # A token may hold the space before a word: where it ends says whose it is.
        role = next((role for first, last, role in words if first < end <= last), "template")
        role = "template" if id in tokenizer.all_special_ids else role
        in_loss = any(first < end <= last for first, last in covered)
        tokens.append(Token(text[start:end], id, role, in_loss))
    return tokens


def sft_batch(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping]) -> tuple[Tensor, Tensor, Tensor]:
    """Demonstrations as (input_ids, attention_mask), both (batch, seq), padded right, and prompt_lengths (batch,)."""
    import torch

    starts = [len(encode_prompt(tokenizer, row["prompt"])) for row in rows]
    whole = [torch.tensor(encode_dialogue(tokenizer, row["prompt"], row["completion"][-1]["content"])) for row in rows]
    input_ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=tokenizer.pad_token_id)
    lengths = torch.tensor([len(ids) for ids in whole])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return input_ids, attention_mask, torch.tensor(starts)


def completion_labels(input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor, pad_id: int) -> Tensor:
    """Labels that cover the reply and the EOS that ends it: the ids there, -100 on prompt and padding.

    Args:
        input_ids, attention_mask: (batch, seq), padded on the right. prompt_lengths: (batch,), tokens before the reply.
        pad_id: not needed, and a trap: where pad = eos, masking by id would take the reply's own end.

    Returns:
        (batch, seq), not shifted: models of transformers shift labels themselves.
    """
    import torch

    in_prompt = torch.arange(input_ids.shape[1], device=input_ids.device) < prompt_lengths[:, None]
    return input_ids.masked_fill(in_prompt | (attention_mask == 0), -100)


def assistant_labels(input_ids: Sequence[int], header: Sequence[int], eos_id: int) -> list[int]:
    """Labels of a whole chat: each reply, from after its `header` to and with its EOS; -100 elsewhere.

    A reply that has no EOS, because it was cut off, is covered to the end.
    """
    labels, open_turn = [-100] * len(input_ids), False
    for t in range(len(input_ids)):
        open_turn = open_turn or list(input_ids[max(0, t - len(header)) : t]) == list(header)
        if open_turn:
            labels[t] = input_ids[t]
            open_turn = input_ids[t] != eos_id
    return labels


def count_in_loss(tokens: Sequence[Token]) -> str:
    """ "27 of 58 tokens are in the loss", and how many are the template's."""
    template = sum(token.role == "template" for token in tokens)
    covered = sum(token.in_loss for token in tokens)
    return f"{covered} of {len(tokens)} tokens are in the loss; {template} are the template's own."


# Pale fills under dark ink: 7:1 and more, on a light page and on a dark one. A letter before a run of tokens says the
# role too, and a thick line below says the loss, so that nothing hangs on colour.
_FILLS = {"template": "#EEEEEE", "user": "#CFE6F5", "assistant": "#FBE3C2"}
_LETTERS = {"template": "T", "user": "U", "assistant": "A"}
_NAMES = {"template": "template", "user": "user's words", "assistant": "assistant's words"}
_COVERED = "border-bottom:4px solid #0072B2;font-weight:bold;"
_LEFT_OUT = "border-bottom:4px dotted #AAAAAA;"


def chat_html(tokens: Sequence[Token]) -> str:
    """The tokens in their order as HTML: role by fill and letter, loss by the line below. Ids show on hovering."""
    legend = " ".join(_span(f"{_LETTERS[role]}: {_NAMES[role]}", role, False) for role in _FILLS)
    legend += " " + _span("thick line: in the loss, dotted: not", "assistant", True)
    parts, before = [], None
    for token in tokens:
        if token.role != before:
            parts.append(f'<sup style="color:#222222"><b>{_LETTERS[token.role]}</b></sup>')
            before = token.role
        parts.append(_span(_visible(token.text), token.role, token.in_loss, f"id {token.id}"))
        if token.text.endswith("\n"):
            parts.append("<br>")
    return (
        '<div style="background:#FFFFFF;color:#222222;padding:8px;line-height:2.2">'
        f'<p style="margin:0 0 6px 0">{legend}</p><div style="font-family:monospace">{"".join(parts)}</div>'
        f'<p style="margin:6px 0 0 0" role="status" aria-live="polite">{html.escape(count_in_loss(tokens))}</p></div>'
    )


def chat_text(tokens: Sequence[Token]) -> str:
    """The same without colours, a run of one kind a line: * where in the loss, role, tokens set apart by |."""
    lines, last = [], None
    for token in tokens:
        kind = (token.role, token.in_loss)
        if kind != last:
            lines.append(f"{'*' if token.in_loss else ' '} {token.role:<9} ")
            last = kind
        else:
            lines[-1] += "|"
        lines[-1] += _visible(token.text)
    return "\n".join([*lines, f"* in the loss: {count_in_loss(tokens)}"])


def _span(text: str, role: str, in_loss: bool, title: str = "") -> str:
    style = f"background:{_FILLS[role]};color:#222222;padding:1px 2px;margin:0 1px;white-space:pre-wrap;"
    hover = f' title="{html.escape(title)}"' if title else ""
    return f'<span style="{style}{_COVERED if in_loss else _LEFT_OUT}"{hover}>{html.escape(text)}</span>'


def _visible(text: str) -> str:
    text = text.replace("\n", "⏎")
    return text if text.strip() else "␣" * len(text) or "∅"


def _render(tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
