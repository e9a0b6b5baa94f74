"""Pairs that are nearly the same text, for lesson 08: where DPO pulls the chosen reply down with the rejected one.

Smaug (Pal et al. 2024, arXiv 2402.13228) finds it where the edit distance within a pair is small; Razin et al. 2024
(arXiv 2410.08847) name it likelihood displacement and trace it to pairs whose hidden states are alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from random import Random

from rlhf_lab.helpdesk import gold_reward, vocabulary
from rlhf_lab.helpdesk.grammar import read_message, read_reply


def clear(rows: Sequence[dict], gap: float = 2.0) -> list[dict]:
    """The help-desk preferences whose chosen reply is better by at least `gap` in gold: any annotator would agree."""
    return [row for row in rows if _gold(row, "chosen") - _gold(row, "rejected") >= gap]


def _gold(row: dict, side: str) -> float:
    return gold_reward(row["prompt"][-1]["content"], row[side][0]["content"])


def one_word_apart(rows: Sequence[dict], seed: int = 0) -> tuple[list[dict], list[dict]]:
    """(close, far) pairs on the same prompts with the same chosen replies, from help-desk preferences.

    Kept are the rows whose chosen reply names the customer's item once. In `close` the rejected reply is the chosen one
    with another item in that place; in `far` it is the row's own.
    """
    rng = Random(seed)
    close, far = [], []
    for row in rows:
        reply, item = row["chosen"][0]["content"], read_message(row["prompt"][-1]["content"]).item
        named = re.findall(rf"\b{re.escape(item)}\b", reply) if item else []
        if len(named) != 1 or not any(sentence.item == item for sentence in read_reply(reply)):
            continue
        other = rng.choice([name for name in vocabulary.ITEMS if name != item])
        wrong = re.sub(rf"\b{re.escape(item)}\b", other, reply)
        close.append(row | {"rejected": [{"role": "assistant", "content": wrong}]})
        far.append(row)
    return close, far


def edit_share(chosen: Sequence, rejected: Sequence) -> float:
    """How much of two token sequences is not shared, 0 (the same) to 1 (nothing in common), by difflib's matching."""
    return 1 - SequenceMatcher(None, list(chosen), list(rejected), autojunk=False).ratio()
