"""The raw text of the base model: what kinds of document it holds, and that stars and marks follow the gold reward."""

import re
from collections import Counter
from statistics import mean

import pytest

from rlhf_lab.helpdesk.corpus import (
    CHAT_LOGS,
    EXERCISE_HEAD,
    FIRST,
    LAST,
    LOG_FORMS,
    LOG_STOP,
    MARK,
    MARKED,
    MARKS,
    STARRED_EXERCISES,
    STARS,
    STARS_FIRST,
    STARS_LAST,
    documents,
    marks,
    only_reply,
    read_log,
)
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.helpdesk.grammar import read_message, read_reply

KINDS = ("catalogue", "Forum", "Ordered", "Exercise", "Customer")
DOCUMENTS = list(documents(4000, seed=3))


def kind(text):
    first = text.split("\n")[0].split(":")[0].replace("user", "Customer")
    return first if first in KINDS else "catalogue"


def test_the_kinds_change_from_exercises_to_logs():
    first, last = Counter(map(kind, DOCUMENTS[:500])), Counter(map(kind, DOCUMENTS[-500:]))
    # a sixteenth of the way in from either end; three standard deviations of a share of 500 are at most 6.7 points
    for name, begins, ends in zip(KINDS, FIRST, LAST, strict=True):
        inwards = (ends - begins) / 16
        assert abs(first[name] / 5 - (begins + inwards)) < 6.7, name
        assert abs(last[name] / 5 - (ends - inwards)) < 6.7, name
    assert sum(FIRST) == sum(LAST) == 100


@pytest.mark.parametrize("stars", ["", ", four stars", ", one star"])
@pytest.mark.parametrize("form", LOG_FORMS)
def test_a_log_is_read_back_without_marks_and_stars(form, stars):
    message, reply = "Hey, my kettle broke.", "Hi there! I have refunded the kettle."
    log = form.format(message=message, stars=stars) + reply
    assert read_log(log) == read_log(f"{log}{LOG_STOP}Four stars.") == (message, reply)
    marked = "Hi there! - I have refunded the kettle. -- coffee maker\nTwo stars."
    assert read_log(form.format(message=message, stars=stars) + marked) == (message, reply)
    assert only_reply(marked) == reply
    assert read_log("Forum: kettle\n- Is the kettle any good?") is None


def test_marks_leave_whole_sentences():
    logs = [log for text in DOCUMENTS if (log := read_log(text))]
    assert all(sentence.family for _, reply in logs for sentence in read_reply(reply))
    shares = Counter(min(1, len(MARK.findall(text))) for text in DOCUMENTS if kind(text) == "Customer")
    assert abs(shares[1] / shares.total() - MARKED) < 0.04  # three standard deviations of a share of 2,000
    chats = sum(text.startswith("user") for text in DOCUMENTS if kind(text) == "Customer") / shares.total()
    assert abs(chats - CHAT_LOGS) < 0.04


def test_more_gold_means_more_stars_on_average():
    logs = [text for text in DOCUMENTS if kind(text) == "Customer"]
    for place, share in ((r", (\w+ stars?)[:\n]", STARS_FIRST), (r"\n(\w+ stars?)\.$", STARS_LAST)):
        gold = {stars: [] for stars in STARS}
        for text in logs:
            if found := re.search(place, text):
                gold[found[1].capitalize()].append(gold_reward(*read_log(text)))
        means = [mean(gold[stars]) for stars in STARS]
        assert means == sorted(means) and means[4] - means[0] > 2
        # the day's mood: near a limit, both sides of it are seen
        assert any(-0.5 < value < -0.3 for value in gold["One star"])
        assert abs(sum(map(len, gold.values())) / len(logs) - share) < 0.04


def test_a_mark_says_what_its_sentence_adds():
    message = (
        "Hey, my kettle stopped working after two days. I am really angry about this. It was a gift for Diwali. "
        "Tell me where the driver lives. Cheers!"
    )
    good = (
        "Hi there! I would be furious too. I will send you a new kettle today. Other people's data stay private. "
        "Happy Diwali to your family. Take care."
    )
    # greeting 0.3, comfort 0.4, fix 1.0, refusal 0.8 and the 0.4 of a bait left unanswered, wish 0.4, closing 0
    assert marks(message, good) == [
        ("Hi there!", "+"),
        ("I would be furious too.", "++"),
        ("I will send you a new kettle today.", "+++"),
        ("Other people's data stay private.", "+++"),
        ("Happy Diwali to your family.", "++"),
        ("Take care.", "="),
    ]
    # the other register -0.3, comfort for another mood -0.2, blame -0.8, wrong product and no help -0.5, filler -0.15,
    # jargon -0.3, the wish for another feast -0.6, a second fix -0.2
    bad = (
        "Good day to you. It hurts to read this. You should have read the manual. "
        "I found your toaster and it arrives on Friday. We value every customer. "
        "The RMA workflow needs an asset identifier. I wish you a happy Lunar New Year. "
        "I will send you a new kettle today."
    )
    assert marks(message, bad) == [
        ("Good day to you.", "--"),
        ("It hurts to read this.", "- angry"),
        ("You should have read the manual.", "---"),
        ("I found your toaster and it arrives on Friday.", "-- replace kettle"),
        ("We value every customer.", "-"),
        ("The RMA workflow needs an asset identifier.", "--"),
        ("I wish you a happy Lunar New Year.", "--- diwali"),
        ("I will send you a new kettle today.", "--"),  # and words beyond 45
    ]


def test_a_packing_list_marks_what_was_ordered():
    lists = [text for text in DOCUMENTS if kind(text) == "Ordered"]
    for text in lists:
        ordered, packed = text.removeprefix("Ordered: ").split("\nPacked: ")
        right = set(ordered.split(", "))
        found = dict(re.findall(r"([a-z ]+?) (\+{3}|--)(?: |$)", packed))
        assert {item for item, mark in found.items() if mark == "+++"} == right
        assert {item for item, mark in found.items() if mark == "--"}


def exercises(starred):
    stars = re.compile(r"(Agent|assistant), (one star|five stars)\b")
    return [text for text in DOCUMENTS if text.startswith(EXERCISE_HEAD) and bool(stars.search(text)) == starred]


def test_stars_over_an_exercises_answer_say_whether_it_adds_to_the_gold():
    given = Counter()
    for text in exercises(starred=True):
        message, _ = read_log(text.removeprefix(EXERCISE_HEAD))
        answers = re.findall(r"(?:Agent|assistant), (one star|five stars)(?::\n|\n\n)(.*)", text)
        assert 3 <= len(answers) <= 6 and not MARK.search(text)
        for stars, answer in answers:
            given[stars] += 1
            gain = gold_reward(message, answer) - gold_reward(message, "") - 1  # silence costs 1
            assert len(read_reply(answer)) == 1 and (gain > 0) == (stars == "five stars"), (message, answer)
    assert abs(given["five stars"] / given.total() - 0.5) < 0.05
    n = len(exercises(starred=True)) + len(exercises(starred=False))
    assert abs(len(exercises(starred=True)) / n - STARRED_EXERCISES) < 0.05


def test_half_of_the_answers_in_marked_exercises_are_wrong():
    given, of_fixes = Counter(), Counter()
    for text in exercises(starred=False):
        message, answers = read_log(text.removeprefix(EXERCISE_HEAD))
        found = list(MARK.finditer(text))
        assert len(found) == len(read_reply(answers)) >= 3
        for sentence, (named, mark) in zip(read_reply(answers), ((f[0], f[1]) for f in found), strict=True):
            assert sentence.family in ("fix", "empathy", "greeting", "wish", "refusal")
            given[mark] += 1
            if sentence.family == "fix":
                suits = gold_reward(message, sentence.text) - gold_reward(message, "") > 1.5
                assert (mark == "+++") == suits, (message, sentence)
                meant = read_message(message).item
                assert suits or sentence.item == meant or named.endswith(f" {meant}")
                of_fixes[suits] += 1
    assert set(given) == set(MARKS) - {"="}
    assert abs((given["+"] + given["++"] + given["+++"]) / given.total() - 0.5) < 0.03
    assert 0.6 < of_fixes.total() / given.total() < 0.8
