"""What rlhf_lab.data understands, and what it says about what it does not."""

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lab import data, files
from rlhf_lab.errors import UserError
from rlhf_lab.profiles import REPO_ROOT

REAL_FILE = REPO_ROOT.parent / "shared" / "data" / "instruction-preferences.json"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


OURS = {
    "prompt": [user("Where is my parcel?")],
    "chosen": [assistant("On its way.")],
    "rejected": [assistant("Dunno.")],
}
PLAIN = {"prompt": "Where is my parcel?", "chosen": "On its way.", "rejected": "Dunno."}


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows, name="pairs.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, Llama 3's frame around each turn in miniature: <b> once, then <u> or <a> ... <e>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<b>", eos_token="<e>", pad_token="<p>")
    made.add_special_tokens({"additional_special_tokens": ["<u>", "<a>"]})
    made.chat_template = (
        "<b>{% for m in messages %}{{ '<u>' if m.role == 'user' else '<a>' }}{{ m.content | trim }}<e>{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    return made


def message_of(call, *arguments, **named):
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- layouts ------------------------------------------------------------------------------------------------------


def test_our_format_comes_back_as_it_is(jsonl):
    rows = data.load_preferences(jsonl(OURS))
    assert rows == [OURS]
    assert rows[0].number == 1


def test_plain_strings_become_messages(jsonl):
    assert data.load_preferences(jsonl(PLAIN)) == [OURS]


def test_unknown_columns_are_left_out(jsonl):
    assert data.load_preferences(jsonl({**PLAIN, "score": 3, "id": None})) == [OURS]


def test_hh_rlhf_of_one_turn(jsonl):
    row = {
        "chosen": "\n\nHuman: Hi: you?\n\nAssistant: Well, thanks.",
        "rejected": "\n\nHuman: Hi: you?\n\nAssistant: No.",
    }
    assert data.load_preferences(jsonl(row)) == [
        {"prompt": [user("Hi: you?")], "chosen": [assistant("Well, thanks.")], "rejected": [assistant("No.")]}
    ]


def test_hh_rlhf_of_several_turns_with_paragraphs_inside(jsonl):
    start = "\n\nHuman: One\n\nAssistant: First.\n\nSecond paragraph.\n\nHuman: Two\n\nAssistant:"
    rows = data.load_preferences(jsonl({"chosen": f"{start} Good.\n\nMore.", "rejected": f"{start} Good for nothing."}))
    assert rows == [
        {
            "prompt": [user("One"), assistant("First.\n\nSecond paragraph."), user("Two")],
            "chosen": [assistant("Good.\n\nMore.")],
            "rejected": [assistant("Good for nothing.")],
        }
    ]


def test_hh_rlhf_republished_with_the_prompt_cut_off(jsonl):
    row = {"prompt": "\n\nHuman: One\n\nAssistant: Yes\n\nHuman: Two\n\nAssistant:", "chosen": " A", "rejected": " B"}
    assert data.load_preferences(jsonl(row))[0]["prompt"] == [user("One"), assistant("Yes"), user("Two")]


def test_a_plain_prompt_that_speaks_of_humans_stays_plain(jsonl):
    text = "Human: is that a good name for a bot?"
    assert data.load_preferences(jsonl({**PLAIN, "prompt": text}))[0]["prompt"] == [user(text)]


def test_ultrafeedback_repeats_the_users_turn(jsonl):
    row = {
        "prompt": "Name a colour.",
        "prompt_id": "f0e3",
        "chosen": [user("Name a colour."), assistant("Blue.")],
        "rejected": [user("Name a colour."), assistant("Tuesday.")],
        "messages": [user("Name a colour."), assistant("Blue.")],
        "score_chosen": 8.5,
        "score_rejected": 4.0,
    }
    pair = {"prompt": [user("Name a colour.")], "chosen": [assistant("Blue.")], "rejected": [assistant("Tuesday.")]}
    assert data.load_preferences(jsonl(row)) == [pair]
    assert data.load_demonstrations(jsonl(row)) == [{"prompt": pair["prompt"], "completion": pair["chosen"]}]
    assert data.load_prompts(jsonl(row)) == [{"prompt": pair["prompt"]}]


def test_ultrafeedback_keeps_a_system_turn_everywhere(jsonl):
    start = [{"role": "system", "content": "Be brief."}, user("Name a colour.")]
    row = {"prompt": "Name a colour.", "chosen": [*start, assistant("Blue.")], "rejected": [*start, assistant("Hm.")]}
    assert data.load_preferences(jsonl(row))[0]["prompt"] == start
    assert data.load_prompts(jsonl(row))[0]["prompt"] == start


def test_message_lists_without_a_prompt_column_share_their_prompt(jsonl):
    row = {"chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("What.")]}
    assert data.load_preferences(jsonl(row))[0]["prompt"] == [user("Hi")]


def test_alpaca_with_and_without_input(jsonl):
    row = {"instruction": "Translate.", "input": "chat", "output": "cat", "chosen": "cat", "rejected": "dog"}
    path = jsonl(row, {**row, "input": ""}, {**row, "input": None})
    prompts = [row["prompt"] for row in data.load_preferences(path)]
    assert prompts == [[user("Translate.\n\nchat")], [user("Translate.")], [user("Translate.")]]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("Q")], "completion": [assistant("A")]},
        {"prompt": "Q", "completion": "A"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"messages": [user("Q"), assistant("A")]},
        {"messages": [user("Q"), assistant("A"), user("Thanks!")]},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"instruction": "Q", "input": "", "output": "C", "chosen": "A", "rejected": "B"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    ],
)
def test_demonstrations_from_every_layout(jsonl, row):
    assert data.load_demonstrations(jsonl(row)) == [{"prompt": [user("Q")], "completion": [assistant("A")]}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q"},
        {"prompt": [user("Q")], "anything": 3},
        {"instruction": "Q"},
        {"messages": [user("Q"), assistant("A")]},
        {"messages": [user("Q")]},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    ],
)
def test_prompts_from_every_layout(jsonl, row):
    assert data.load_prompts(jsonl(row)) == [{"prompt": [user("Q")]}]


def test_ultrachat_ends_with_the_last_assistant_turn(jsonl):
    row = {"messages": [user("1"), assistant("2"), user("3"), assistant("4")]}
    assert data.load_demonstrations(jsonl(row)) == [
        {"prompt": [user("1"), assistant("2"), user("3")], "completion": [assistant("4")]}
    ]


# --- files --------------------------------------------------------------------------------------------------------


def test_json_array(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([PLAIN, PLAIN], indent=2))
    assert [row.number for row in data.load_preferences(path)] == [1, 2]


def test_byte_order_mark_blank_lines_and_line_separators(tmp_path):
    path = tmp_path / "pairs.jsonl"
    odd = {**PLAIN, "chosen": "one\u2028two"}  # U+2028 is legal inside JSON and splitlines() would cut there
    path.write_text(f"\ufeff{json.dumps(odd, ensure_ascii=False)}\n\n{json.dumps(PLAIN)}\r\n", encoding="utf-8")
    rows = data.load_preferences(path)
    assert [row.number for row in rows] == [1, 3]
    assert rows[0]["chosen"] == [assistant("one\u2028two")]


def test_gzip_as_hh_rlhf_ships(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PLAIN).encode()))
    assert data.load_preferences(path) == [OURS]


def test_csv(tmp_path):
    path = tmp_path / "pairs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, PLAIN)
        writer.writeheader()
        writer.writerow({**PLAIN, "chosen": 'Say "yes",\nplease.'})
    assert data.load_preferences(path)[0]["chosen"] == [assistant('Say "yes",\nplease.')]


def test_parquet_with_message_lists(tmp_path):
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([OURS, OURS]), path)
    assert data.load_preferences(path) == [OURS, OURS]


# --- what is wrong with a file ------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    message = message_of(data.load_preferences, tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl: no such file" in message


def test_folder_given(tmp_path):
    message = message_of(data.load_preferences, tmp_path)
    assert str(tmp_path) in message
    assert "is a folder" in message


def test_unreadable_file(jsonl, monkeypatch):
    path = jsonl(PLAIN)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "pairs.jsonl: cannot be read (Permission denied)" in message_of(data.load_preferences, path)


def test_cut_gzip(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PLAIN).encode())[:-9])
    assert "train.jsonl.gz: cannot be read" in message_of(data.load_preferences, path)


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_empty_file(tmp_path, text):
    path = tmp_path / "pairs.json"
    path.write_text(text)
    assert "pairs.json: the file has no rows" in message_of(data.load_preferences, path)


def test_not_utf8_names_the_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(PLAIN).encode() + b'\n{"prompt": "caf\xe9"}\n')
    message = message_of(data.load_preferences, path)
    assert "pairs.jsonl, row 2: byte" in message
    assert "not UTF-8" in message


def test_broken_json_line(jsonl):
    message = message_of(data.load_preferences, jsonl(PLAIN, PLAIN, '{"prompt": "Hi", "chosen": '))
    assert "pairs.jsonl, row 3: broken JSON, Expecting value" in message


def test_broken_json_array_names_the_element(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text("[\n" + json.dumps(PLAIN) + ",\n" + json.dumps(PLAIN) + ',\n{"prompt": oops}\n]')
    message = message_of(data.load_preferences, path)
    assert "pairs.json, row 3: broken JSON" in message
    assert "line 4" in message


def test_json_array_cut_short(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([PLAIN, PLAIN])[:-5])
    assert "pairs.json, row 2: broken JSON" in message_of(data.load_preferences, path)


def test_json_nested_too_deep(jsonl):
    message = message_of(data.load_preferences, jsonl(PLAIN, "[" * 100_000))
    assert "pairs.jsonl, row 2: broken JSON" in message


def test_broken_csv(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected\na,b,c\na,b,"c')
    assert "pairs.csv, row 2: broken CSV" in message_of(data.load_preferences, path)


def test_csv_record_with_a_cell_too_many(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\na,b,c\na,b,c,d\n")
    message = message_of(data.load_preferences, path)
    assert "pairs.csv, row 2: the record has more or fewer cells than the header" in message


def test_broken_parquet(tmp_path):
    path = tmp_path / "pairs.parquet"
    path.write_bytes(b"PAR1 and then nothing of use")
    assert "pairs.parquet: broken Parquet" in message_of(data.load_preferences, path)


# --- what is wrong with a row -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"), [("[1, 2]", "a list"), ("3", "a number"), ("null", "null"), ('"a"', "text")]
)
def test_row_that_is_no_object(jsonl, value, kind):
    message = message_of(data.load_preferences, jsonl(PLAIN, value))
    assert f"pairs.jsonl, row 2: is {kind}, not an object" in message


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_missing_column_names_those_there_are(jsonl, column):
    row = {name: value for name, value in PLAIN.items() if name != column}
    message = message_of(data.load_preferences, jsonl(PLAIN, row))
    assert f"pairs.jsonl, row 2, column '{column}': the column is missing, the row has {', '.join(row)}" in message
    assert f"--columns {column}=" in message


def test_missing_completion(jsonl):
    message = message_of(data.load_demonstrations, jsonl({"prompt": "Hi", "answer": "Hello"}))
    assert "pairs.jsonl, row 1, column 'completion': the column is missing, the row has prompt, answer" in message


def test_missing_prompt_of_prompts(jsonl):
    message = message_of(data.load_prompts, jsonl({"prompt": "Hi"}, {"question": "Hi"}))
    assert "pairs.jsonl, row 2, column 'prompt': the column is missing, the row has question" in message


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize(
    ("value", "kind"), [(3, "a number"), (None, "null"), (True, "true or false"), ({}, "an object")]
)
def test_wrong_type(jsonl, column, value, kind):
    message = message_of(data.load_preferences, jsonl(PLAIN, {**PLAIN, column: value}))
    assert f"pairs.jsonl, row 2, column '{column}': is {kind} where text is due" in message


def test_list_where_text_is_due(jsonl):
    row = {"instruction": ["Translate."], "input": "", "chosen": "a", "rejected": "b"}
    message = message_of(data.load_preferences, jsonl(row))
    assert "pairs.jsonl, row 1, column 'instruction': is a list where text is due" in message


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the list of messages is empty"),
        (["Hi"], "message 1 is text, not an object with role and content"),
        ([{"role": "user"}], "message 1 has no content, it has role"),
        ([{"from": "human", "value": "Hi"}], "message 1 has no role and no content, it has from, value"),
        ([user("Hi"), {"role": "robot", "content": "Hi"}], "message 2 has the unknown role 'robot'"),
        ([user(3)], "the content of message 1 is a number where text is due"),
        ([user(None)], "the content of message 1 is null where text is due"),
        ([user([{"type": "text"}])], "the content of message 1 is a list where text is due"),
        ([user(" \n")], "the content of message 1 is empty"),
        ([user("Hi"), assistant("Yes?")], "the prompt ends with the assistant's turn"),
    ],
)
def test_broken_messages(jsonl, messages, reason):
    message = message_of(data.load_preferences, jsonl(OURS, {**OURS, "prompt": messages}))
    assert f"pairs.jsonl, row 2, column 'prompt': {reason}" in message


def test_reply_by_the_user(jsonl):
    message = message_of(data.load_preferences, jsonl({**OURS, "chosen": [user("On its way.")]}))
    assert "pairs.jsonl, row 1, column 'chosen': a reply's role is 'assistant', this one is 'user'" in message


def test_half_a_surrogate_pair(jsonl):
    message = message_of(data.load_preferences, jsonl({**PLAIN, "chosen": "\ud83d"}))
    assert "pairs.jsonl, row 1, column 'chosen': holds half of a surrogate pair" in message


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_empty_prompt(jsonl, text):
    message = message_of(data.load_preferences, jsonl(PLAIN, {**PLAIN, "prompt": text}))
    assert "pairs.jsonl, row 2, column 'prompt': the prompt is empty" in message
    message = message_of(data.load_prompts, jsonl(PLAIN, {"prompt": text}))
    assert "pairs.jsonl, row 2, column 'prompt': the prompt is empty" in message


@pytest.mark.parametrize("column", ["chosen", "rejected"])
def test_empty_reply(jsonl, column):
    message = message_of(data.load_preferences, jsonl(PLAIN, {**PLAIN, column: " "}))
    assert f"pairs.jsonl, row 2, column '{column}': the reply is empty" in message


def test_chosen_equal_to_rejected(jsonl):
    same = {**PLAIN, "rejected": PLAIN["chosen"] + " \n"}
    message = message_of(data.load_preferences, jsonl(*[PLAIN] * 300, same))
    assert "pairs.jsonl, row 301, column 'rejected': chosen and rejected are the same text" in message


def test_ultrafeedback_with_another_prompt_inside(jsonl):
    row = {"prompt": "One", "chosen": [user("Two"), assistant("A")], "rejected": [user("Two"), assistant("B")]}
    message = message_of(data.load_preferences, jsonl(row))
    assert "pairs.jsonl, row 1, column 'chosen': the conversation before the reply is not the row's prompt" in message


def test_transcripts_that_part_ways_early(jsonl):
    row = {"chosen": "\n\nHuman: A\n\nAssistant: 1", "rejected": "\n\nHuman: B\n\nAssistant: 2"}
    message = message_of(data.load_preferences, jsonl(row))
    assert "pairs.jsonl, row 1, column 'rejected': chosen and rejected differ before their last reply" in message


def test_transcript_that_ends_with_the_human(jsonl):
    row = {"chosen": "\n\nHuman: A\n\nAssistant: 1\n\nHuman: B", "rejected": "\n\nHuman: A\n\nAssistant: 2"}
    message = message_of(data.load_preferences, jsonl(row))
    assert "pairs.jsonl, row 1, column 'chosen': the conversation ends with the user's turn" in message


def test_conversation_without_an_assistant(jsonl):
    message = message_of(data.load_demonstrations, jsonl({"messages": [user("Hi")]}))
    assert "pairs.jsonl, row 1, column 'messages': no assistant turn" in message


# --- the noise of public sets -------------------------------------------------------------------------------------


ALPACA = {"instruction": "Q", "input": "", "output": "A", "chosen": "A", "rejected": "B"}
HH = {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}


@pytest.mark.parametrize(
    ("good", "noise"),
    [
        (ALPACA, {**ALPACA, "rejected": "A"}),
        (HH, {**HH, "rejected": HH["chosen"]}),
        (HH, {**HH, "rejected": "\n\nHuman: Q\n\nAssistant:"}),
    ],
)
def test_a_public_set_may_hold_a_little_noise(jsonl, capsys, good, noise):
    assert len(data.load_preferences(jsonl(*[good] * 99, noise))) == 99
    said = capsys.readouterr().err
    assert "pairs.jsonl: 1 of 100 rows set aside (rows 100)" in said
    message = message_of(data.load_preferences, jsonl(*[good] * 98, noise, noise))
    assert "pairs.jsonl, row 99, column 'rejected'" in message


@pytest.mark.skipif(not REAL_FILE.exists(), reason="the shared file is outside the repo")
def test_the_real_file(capsys):
    rows = data.load_preferences(REAL_FILE)
    assert len(rows) == 1094  # of 1,100; counted by hand: 6 pairs are the same text
    assert "6 of 1100 rows set aside (rows 123, 227, 401, 567, 629, 677)" in capsys.readouterr().err
    assert rows[0]["prompt"][0]["content"].endswith("\n\nfreind --> friend")
    train, test = data.split_rows(rows, 96, 200, seed=0)
    assert not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in test}


# --- columns ------------------------------------------------------------------------------------------------------


def test_parse_columns():
    assert data.parse_columns("prompt=question, chosen = best") == {"prompt": "question", "chosen": "best"}
    assert data.parse_columns("") == data.parse_columns(None) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt", "'prompt' is not of the form ours=theirs"),
        ("prompt=", "'prompt=' is not of the form ours=theirs"),
        ("=question", "'=question' is not of the form ours=theirs"),
        ("question=prompt", "'question' is not one of our columns"),
        ("prompt=a,prompt=b", "'prompt' is mapped twice"),
    ],
)
def test_parse_columns_refuses(text, reason):
    message = message_of(data.parse_columns, text)
    assert message.startswith(f"--columns: {reason}")


def test_columns_are_mapped_even_crosswise(jsonl):
    path = jsonl({"question": "Q", "chosen": "bad", "rejected": "good"})
    columns = data.parse_columns("prompt=question,chosen=rejected,rejected=chosen")
    assert data.load_preferences(path, columns) == [
        {"prompt": [user("Q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}
    ]


def test_faults_of_a_mapped_column_carry_the_files_own_name(jsonl):
    row = {"question": "", "chosen": "a", "rejected": "b"}
    message = message_of(data.load_preferences, jsonl(row), {"prompt": "question"})
    assert "pairs.jsonl, row 1, column 'question': the prompt is empty" in message


def test_mapped_column_that_is_not_there(jsonl):
    message = message_of(data.load_preferences, jsonl(PLAIN), {"prompt": "question"})
    assert (
        "pairs.jsonl, row 1, column 'question': --columns maps prompt to it, but the row has prompt, chosen" in message
    )


# --- splitting ----------------------------------------------------------------------------------------------------


def numbered(n):
    return [{"prompt": [user(str(i))]} for i in range(n)]


def test_split_is_seeded_disjoint_and_of_the_size_asked():
    rows = numbered(100)
    train, test = data.split_rows(rows, 60, 30, seed=1)
    assert (len(train), len(test)) == (60, 30)
    assert not {id(row) for row in train} & {id(row) for row in test}
    assert (train, test) == data.split_rows(rows, 60, 30, seed=1)
    assert test != data.split_rows(rows, 60, 30, seed=2)[1]


def test_the_test_side_does_not_depend_on_the_amount_of_training_data():
    rows = numbered(100)
    assert data.split_rows(rows, 10, 30, seed=0)[1] == data.split_rows(rows, 70, 30, seed=0)[1]


def test_rows_of_one_prompt_stay_on_one_side():
    rows = [{"prompt": [user(str(i // 4))], "row": i} for i in range(100)]
    train, test = data.split_rows(rows, 60, 40, seed=0)
    assert not {row["prompt"][0]["content"] for row in train} & {row["prompt"][0]["content"] for row in test}


def test_too_few_rows():
    message = message_of(data.split_rows, numbered(10), 8, 3, seed=0)
    assert "8 training and 3 test rows asked for, 10 usable rows there" in message


def test_too_few_prompts():
    message = message_of(data.split_rows, [{"prompt": [user("one")]}] * 10, 5, 5, seed=0)
    assert "the 10 rows have only 1 different prompts" in message


# --- tokens -------------------------------------------------------------------------------------------------------


def test_tokens_that_fit(tokenizer):
    data.check_tokens([OURS, OURS], tokenizer, 64, "pairs.jsonl")
    assert data.check_tokens([], tokenizer, 64, "pairs.jsonl") == []


def test_lengths_of_the_longer_side_template_included(tokenizer):
    # <b> <u> Q <e> <a> are 5, a reply adds its letters and <e>
    rows = [
        {"prompt": [user("Q")]},
        {"prompt": [user("Q")], "completion": [assistant("abc")]},
        {"prompt": [user("Q")], "chosen": [assistant("a")], "rejected": [assistant("x" * 70)]},
        {"prompt": [user("Q")], "chosen": [assistant("abcd")], "rejected": [assistant("x")]},
    ]
    assert data.check_tokens(rows, tokenizer, 64, "rows.jsonl") == [5, 9, 76, 10]


def test_prompt_without_room_for_a_reply(tokenizer):
    # <b> <u> 20 letters <e> <a> are 24 tokens: in 25 there is room for one more, in 24 for none.
    row = data.Row(prompt=[user("x" * 20)])
    row.number = 7
    data.check_tokens([row], tokenizer, 25, "prompts.jsonl")
    message = message_of(data.check_tokens, [{"prompt": [user("a")]}, row, row], tokenizer, 24, "prompts.jsonl")
    assert "prompts.jsonl, row 7, column 'prompt': the prompt alone takes 24 of 24 tokens" in message
    assert "(and 1 more rows)" in message
    assert "raise max_length above 24" in message


def test_pair_identical_after_truncation(tokenizer):
    row = {"prompt": [user("Q")], "chosen": [assistant("same" * 5 + "A")], "rejected": [assistant("same" * 5 + "BCD")]}
    # <b> <u> Q <e> <a> are 5, 20 shared letters make 25; the 26th token is the first that differs.
    data.check_tokens([row], tokenizer, 26, "pairs.jsonl")
    message = message_of(data.check_tokens, [OURS, row], tokenizer, 25, "pairs.jsonl")
    assert "pairs.jsonl, row 2, column 'rejected': chosen (27 tokens with its prompt) and rejected (29)" in message
    assert "the same in their first 25 tokens" in message


def test_pair_that_the_template_makes_identical(tokenizer):
    row = {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": [assistant("A  ")]}
    message = message_of(data.check_tokens, [row], tokenizer, 64, "pairs.jsonl")
    assert "pairs.jsonl, row 1, column 'rejected': chosen (7 tokens" in message
    assert "Remove the row" in message


def test_a_row_knows_its_line_after_split_and_conversion(jsonl, tokenizer):
    path = jsonl(*[{**PLAIN, "prompt": f"Question {i}"} for i in range(8)], {**PLAIN, "prompt": "x" * 60})
    train, _ = data.split_rows(data.load_preferences(path), 9, 0, seed=0)
    for rows in (train, [row.keeping(prompt=row["prompt"], completion=row["chosen"]) for row in train]):
        message = message_of(data.check_tokens, rows, tokenizer, 40, "data")
        assert "pairs.jsonl, row 9, column 'prompt': the prompt alone takes 64 of 40 tokens" in message


def test_rows_go_into_a_dataset(jsonl):
    rows = data.load_preferences(jsonl(PLAIN, PLAIN))
    assert datasets.Dataset.from_list(rows).to_list() == [OURS, OURS]


# --- order --------------------------------------------------------------------------------------------------------


def test_batches_hold_rows_of_like_length_and_every_row_once():
    rows = ["abc"[i % 3] * (1 + i * 37 % 60) for i in range(203)]
    ordered = data.by_length(rows, 10, len, seed=0)
    assert sorted(ordered) == sorted(rows)
    batches = [ordered[start : start + 10] for start in range(0, 203, 10)]
    assert [len(batch) for batch in batches] == [10] * 20 + [3]
    # 203 lengths, each of 1 to 60 three or four times: ten neighbours span at most four of them
    assert all(max(map(len, batch)) - min(map(len, batch)) <= 4 for batch in batches)
    lengths = [len(batch[0]) for batch in batches]
    assert lengths != sorted(lengths)  # long and short batches come mixed
    assert data.by_length(rows, 10, len, seed=1) != ordered == data.by_length(rows, 10, len, seed=0)


def test_no_row_leaves_its_window():
    ordered = data.by_length(list(range(100)), 5, lambda row: -row % 7, seed=0, window=4)
    assert [sorted(ordered[start : start + 20]) for start in range(0, 100, 20)] == [
        list(range(start, start + 20)) for start in range(0, 100, 20)
    ]
    assert data.by_length([], 5, len, seed=0) == []


# --- writing ------------------------------------------------------------------------------------------------------


def test_written_rows_are_read_back(tmp_path):
    path = tmp_path / "deep" / "pairs.jsonl"
    row = {"prompt": [user("Grüße, 你好")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert files.write_jsonl(path, [row, row]) == path
    text = path.read_text(encoding="utf-8")
    assert "Grüße, 你好" in text
    assert text.endswith("}\n")
    assert data.load_preferences(path) == [row, row]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "pairs.jsonl"
    files.write_jsonl(path, [PLAIN])

    def rows():
        yield PLAIN
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_jsonl(path, rows())
    assert data.load_preferences(path) == [OURS]
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_while_writing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    message = message_of(files.write_jsonl, tmp_path / "pairs.jsonl", [PLAIN])
    assert "pairs.jsonl: cannot be written (No space left on device)" in message
    assert list(tmp_path.iterdir()) == []
