"""The raw text of the base model: what kinds of document it holds, and that stars and marks follow the gold reward."""

from collections import Counter
from statistics import mean

from rlhf_lab.helpdesk.corpus import FIRST, LAST, LOG_STOP, STARS, documents, read_log, review, write_log
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.helpdesk.grammar import read_message, read_reply

DOCUMENTS = list(documents(4000, seed=3))


def kind(text):
    return next((k for k in ("Forum", "Exercise", "Review", "Customer") if text.startswith(k)), "catalogue")


def test_the_kinds_change_from_exercises_to_logs():
    first, last = Counter(map(kind, DOCUMENTS[:500])), Counter(map(kind, DOCUMENTS[-500:]))
    # a sixteenth of the way in from either end; three standard deviations of a share of 500 are at most 6.7 points
    for name, begins, ends in zip(("catalogue", "Forum", "Exercise", "Review", "Customer"), FIRST, LAST, strict=True):
        inwards = (ends - begins) / 16
        assert abs(first[name] / 5 - (begins + inwards)) < 6.7, name
        assert abs(last[name] / 5 - (ends - inwards)) < 6.7, name
    assert sum(FIRST) == sum(LAST) == 100


def test_a_log_is_read_back_without_its_stars():
    log = write_log("Hey, my kettle broke.", "Hi there! I have refunded the kettle.")
    expected = ("Hey, my kettle broke.", "Hi there! I have refunded the kettle.")
    assert read_log(log) == read_log(f"{log}{LOG_STOP}\nFour stars.") == expected
    assert read_log("Forum: kettle\n- Is the kettle any good?") is None


def test_more_gold_means_more_stars_on_average():
    gold = {stars: [] for stars in STARS}
    for text in DOCUMENTS:
        if LOG_STOP in text and (log := read_log(text)):
            gold[text.split(f"{LOG_STOP}\n")[1].rstrip(".")].append(gold_reward(*log))
    means = [mean(gold[stars]) for stars in STARS]
    assert means == sorted(means) and means[4] - means[0] > 2
    # the day's mood: near a limit, both sides of it are seen
    assert any(-0.5 < value < -0.3 for value in gold["One star"])


def test_a_review_marks_what_each_sentence_adds():
    message = (
        "Hey, my kettle stopped working after two days. I am really angry about this. It was a gift for Diwali. "
        "Tell me where the driver lives. Cheers!"
    )
    good = (
        "Hi there! I would be furious too. I will send you a new kettle today. Other people's data stay private. "
        "Happy Diwali to your family. Take care."
    )
    # greeting 0.3, comfort 0.4, fix 1.0, refusal 0.8 and the 0.4 of a bait left unanswered, wish 0.4, closing 0
    assert review(message, good) == (
        "Hi there! + I would be furious too. + I will send you a new kettle today. ++ "
        "Other people's data stay private. ++ Happy Diwali to your family. + Take care. ="
    )
    # the other register -0.3, blame -0.8, wrong product and no help -0.5, filler -0.15, a second fix -0.2
    bad = (
        "Good day to you. You should have read the manual. I found your toaster and it arrives on Friday. "
        "We value every customer. I will send you a new kettle today."
    )
    assert review(message, bad) == (
        "Good day to you. - You should have read the manual. -- "
        "I found your toaster and it arrives on Friday. - kettle "
        "We value every customer. - I will send you a new kettle today. -"
    )


def test_half_of_the_exercises_are_answered_wrongly():
    marks, lengths = Counter(), []
    for text in (text for text in DOCUMENTS if text.startswith("Exercise")):
        for exchange in text.removeprefix("Exercise\n").split("\nCustomer:\n"):
            message, line = exchange.removeprefix("Customer:\n").split("\nAgent:\n")
            lengths.append(len(message.split()))
            reply = line[: max(line.rfind(end) for end in ".!?") + 1]
            (sentence,) = read_reply(reply)
            assert sentence.family in ("fix", "empathy", "greeting", "wish", "refusal")
            marks[line.removeprefix(reply).split()[0]] += 1
            if sentence.family == "fix":
                meant = read_message(message).item
                suits = gold_reward(message, reply) - gold_reward(message, "") > 1.5
                assert line.endswith("++") == suits, (message, line)
                assert suits or sentence.item == meant or line.endswith(f"- {meant}")
    assert abs((marks["+"] + marks["++"]) / marks.total() - 0.5) < 0.03 and marks["="] == 0
    assert mean(lengths) < 13  # a log's message has 24 words
