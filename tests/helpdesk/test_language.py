"""The help-desk language: rich enough, unambiguous, and read back as it was written."""

import random
import re

import pytest

from rlhf_lab.helpdesk import vocabulary as words
from rlhf_lab.helpdesk.grammar import (
    AVERAGE_AGENT,
    BAD_AGENT,
    GOOD_AGENT,
    draw_ticket,
    read_message,
    read_reply,
    write_message,
    write_reply,
)

AGENTS = {"good": GOOD_AGENT, "average": AVERAGE_AGENT, "bad": BAD_AGENT}


def exchanges(agent, n, seed=0):
    rng = random.Random(seed)
    for _ in range(n):
        ticket = draw_ticket(rng)
        yield ticket, write_message(ticket, rng), write_reply(ticket, agent, rng)


def test_it_is_as_rich_as_promised():
    assert len(set(words.ITEMS)) >= 40
    assert len(words.ISSUES) == 8 and all(len(set(wordings)) >= 4 for wordings in words.ISSUES.values())
    assert set(words.SUITS) == set(words.ISSUES)
    assert len(words.MOODS) >= 3 and len(words.CUES) >= 5 and len(words.BAITS) >= 3


def test_no_sentence_of_a_reply_is_ambiguous():
    seen = {}
    for family, groups in words.FAMILIES.items():
        for group, sentences in groups.items():
            for sentence in sentences:
                assert sentence.lower() not in seen, (
                    f"{sentence!r} is in {(family, group)} and {seen[sentence.lower()]}"
                )
                assert re.fullmatch(r"[^.!?]+[.!?]", sentence), f"{sentence!r} would split into two sentences"
                seen[sentence.lower()] = (family, group)


@pytest.mark.parametrize("name", AGENTS)
def test_what_is_written_is_read_back(name):
    for ticket, message, reply in exchanges(AGENTS[name], 1000):
        assert read_message(message) == ticket
        assert all(sentence.family for sentence in read_reply(reply))
        assert 1 <= len(read_reply(reply)) <= 12


def test_replies_seldom_repeat():
    replies = [reply for _, _, reply in exchanges(AVERAGE_AGENT, 2000)]
    assert len(set(replies)) / len(replies) > 0.95


def test_better_agents_have_the_habits_they_claim():
    shares = {}
    for name, agent in AGENTS.items():
        fixes = [(t, s) for t, _, reply in exchanges(agent, 2000) for s in read_reply(reply) if s.family == "fix"]
        shares[name] = sum(s.item == t.item for t, s in fixes) / len(fixes)
        assert shares[name] == pytest.approx(agent.right_item, abs=0.03)
    assert shares["good"] > shares["average"] > shares["bad"]


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n\n", "...", "?!", "日本語", "\x00", "a" * 10_000, "The {item} broke.", "💥 kettle toaster", "{", "%s"],
)
def test_any_string_can_be_read(text):
    read_message(text)
    read_reply(text)


def test_a_message_from_elsewhere_leaves_unknown_what_cannot_be_known():
    ticket = read_message("What is the capital of France?")
    assert (ticket.item, ticket.issue, ticket.mood, ticket.register, ticket.cue, ticket.bait) == (None,) * 6
    assert read_message("How heavy is a kettle?").item == "kettle"
    assert read_message("Is a kettle better than a toaster?").item is None
