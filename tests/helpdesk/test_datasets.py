"""The data of data/helpdesk is what its code makes, and the held-out messages are held out of everything."""

import json

from rlhf_lab.helpdesk.corpus import documents, read_log
from rlhf_lab.helpdesk.datasets import SIZES, held_out_messages, write_datasets
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.profiles import DATA_DIR

FOLDER = DATA_DIR / "helpdesk"


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_shipped_files_are_regenerated_byte_for_byte(tmp_path):
    write_datasets(tmp_path)
    made = sorted(file.name for file in tmp_path.iterdir())
    assert made == sorted(f"{name}.jsonl" for name in SIZES)
    for name in made:
        assert (FOLDER / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_sizes_and_schema():
    assert SIZES == {"sft": 2000, "preferences_train": 4000, "preferences_test": 1000, "prompts": 512}
    columns = {
        "sft": {"prompt", "completion"},
        "preferences_train": {"prompt", "chosen", "rejected"},
        "preferences_test": {"prompt", "chosen", "rejected"},
        "prompts": {"prompt"},
    }
    for name, size in SIZES.items():
        found = rows(name)
        assert len(found) == size
        assert all(set(row) == columns[name] for row in found)
        assert all(row["prompt"][0]["role"] == "user" for row in found)


def test_no_message_stands_twice_in_or_between_the_files():
    messages = [row["prompt"][0]["content"] for name in SIZES for row in rows(name)]
    assert len(messages) == len(set(messages))


def test_the_raw_text_holds_none_of_the_held_out_messages():
    held_out = held_out_messages()
    assert len(held_out) == 512
    for document in documents(20_000, seed=0, held_out=held_out):
        if exchange := read_log(document):
            assert exchange[0] not in held_out


def test_raw_text_has_no_chat_markup():
    assert not any("<|" in document for document in documents(3000, seed=1))


def test_labels_are_noisy_but_right_more_often_than_not():
    pairs = rows("preferences_train")
    gaps = [
        gold_reward(p["prompt"][0]["content"], p["chosen"][0]["content"])
        - gold_reward(p["prompt"][0]["content"], p["rejected"][0]["content"])
        for p in pairs
    ]
    oracle = sum((gap > 1e-9) + 0.5 * (abs(gap) <= 1e-9) for gap in gaps) / len(gaps)
    assert 0.84 < oracle < 0.92
