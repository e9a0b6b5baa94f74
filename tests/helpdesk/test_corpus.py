"""The raw text of the base model: what kinds of document it holds, and that its verdicts follow the gold reward."""

from collections import Counter
from statistics import mean

from rlhf_lab.helpdesk.corpus import (
    LOG_STOP,
    STARS,
    documents,
    read_log,
    survey,
    write_log,
)
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.helpdesk.grammar import read_message, read_reply

DOCUMENTS = list(documents(4000, seed=3))


def verdicts():
    """(message, reply, number of stars) of every log that ends in a verdict."""
    for text in DOCUMENTS:
        if LOG_STOP in text and (log := read_log(text)):
            said = text.split(LOG_STOP)[1].strip()
            yield *log, 1 + next(i for i, stars in enumerate(STARS) if said.startswith(stars))


def test_kinds_come_in_the_stated_shares():
    kinds = Counter(
        next((kind for kind in ("Forum", "Handbook", "Quiz", "Customer") if text.startswith(kind)), "catalogue")
        for text in DOCUMENTS
    )
    # three standard deviations of a share of 4,000 are at most 2.4 points
    for kind, share in (("catalogue", 0.02), ("Forum", 0.14), ("Handbook", 0.06), ("Quiz", 0.14), ("Customer", 0.64)):
        assert abs(kinds[kind] / len(DOCUMENTS) - share) < 0.025, kind


def test_a_log_is_read_back_without_its_verdict():
    log = write_log("Hey, my kettle broke.", "Hi there! I have refunded the kettle.")
    expected = ("Hey, my kettle broke.", "Hi there! I have refunded the kettle.")
    assert read_log(log) == read_log(f"{log}{LOG_STOP}\nFour stars. You solved it.") == expected
    assert read_log("Forum: kettle\n- Is the kettle any good?") is None


def test_more_gold_means_more_stars_on_average():
    gold = {stars: [] for stars in range(1, 6)}
    for message, reply, stars in verdicts():
        gold[stars].append(gold_reward(message, reply))
    means = [mean(gold[stars]) for stars in range(1, 6)]
    assert means == sorted(means) and means[4] - means[0] > 2
    # the day's mood: near a limit, both sides of it are seen
    assert any(-0.5 < value < -0.3 for value in gold[1])


def test_the_survey_is_answered_by_what_the_reply_did():
    message = "Hey, my kettle stopped working after two days. I am really angry about this. Cheers!"
    kind = "Hi there! I would be furious too. I will send you a new kettle today."
    fine = {"rules": "fine", "feast": "fine"}
    assert survey(message, kind) == fine | {
        "product": "right", "help": "right", "tone": "kind", "wording": "clear", "length": "right",
    }  # fmt: skip
    rude = "You should have read the manual. I found your toaster and it arrives on Friday. We value every customer."
    assert survey(message, rude) == fine | {
        "product": "wrong", "help": "wrong", "tone": "rude", "wording": "clear", "length": "wrong",
    }  # fmt: skip
    assert survey(message, "Take care.")["product"] == survey(message, "Take care.")["help"] == "missing"


def test_the_handbook_answers_as_the_gold_reward_likes():
    pages = [text for text in DOCUMENTS if text.startswith("Handbook")]
    for text in pages[:200]:
        lines = text.splitlines()[1:]
        for said, answer in zip(lines[::2], lines[1::2], strict=True):
            remark, reply = said.removeprefix("They say: "), answer.removeprefix("We say: ")
            (sentence,) = read_reply(reply)
            ticket = read_message(remark)
            assert sentence.family in ("fix", "empathy", "greeting", "wish", "refusal")
            if sentence.family == "fix":
                assert sentence.item == ticket.item
            # a refusal alone is worth 0.8, a wish or comfort 0.4, a greeting 0.3, a fix that suits 1.0
            assert gold_reward(remark, reply) >= 0.3, (remark, reply)


def test_the_quiz_marks_answers_as_the_gold_reward_does():
    marks = Counter()
    for text in (text for text in DOCUMENTS if text.startswith("Quiz")):
        lines = text.splitlines()[1:]
        for said, answer, mark in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
            gold = gold_reward(said.removeprefix("They say: "), answer.removeprefix("We say: "))
            assert (gold > 0) == (mark == "Right."), (said, answer, mark)
            marks[mark.split(",")[0]] += 1
    assert abs(marks["Right."] / marks.total() - 0.5) < 0.05
