"""What a person gets wrong: one line that says what, where and what to do; exit code 2; nothing half-written."""

import json
import shutil
from collections import namedtuple

import pytest

from rlhf_lab.profiles import DATA_DIR

TINY_LLAMA = DATA_DIR / "tiny-llama"
PAIR = {"prompt": "Where is my kettle?", "chosen": "I found your kettle.", "rejected": "Do not blame us for this."}


def message(content, role="user"):
    return [{"role": role, "content": content}]


def write_rows(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.fixture
def refuses(cli, tmp_path):
    """refuses(*args, names=(...)): exit 2, one line naming each of `names`, nothing half-written."""

    def check(*args, names):
        before = set(tmp_path.rglob("*"))
        code, _, err = cli(*args)
        lines = [line for line in err.strip().splitlines() if line]
        assert code == 2, err
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        for name in names:
            assert str(name) in lines[0], f"{name!r} is not named in: {lines[0]}"
        left = [p for p in tmp_path.rglob("*") if p not in before and p.is_file()]
        assert not left, left

    return check


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([PAIR, '{"prompt": "x", '], ["pairs.jsonl", "row 2", "JSON"]),
        ([PAIR, {"prompt": "x", "rejected": "y"}], ["row 2", "chosen"]),
        ([PAIR, PAIR | {"rejected": PAIR["chosen"]}], ["row 2", "chosen", "rejected"]),
        ([PAIR, PAIR | {"prompt": "  "}], ["row 2", "prompt", "empty"]),
        ([PAIR, PAIR | {"chosen": 7}], ["row 2", "chosen", "number"]),
        ([PAIR, PAIR | {"chosen": None}], ["row 2", "chosen"]),
        ([PAIR, PAIR | {"prompt": [{"role": "user"}]}], ["row 2", "prompt", "content"]),
        ([PAIR, "[1, 2]"], ["row 2", "list"]),
        ([], ["pairs.jsonl", "no rows"]),
    ],
)
def test_rows(refuses, tmp_path, rows, names):
    refuses("dpo", "--data", write_rows(tmp_path / "pairs.jsonl", *rows), names=names)


def test_missing_file(refuses, tmp_path):
    refuses("dpo", "--data", tmp_path / "nowhere.jsonl", names=["nowhere.jsonl"])


def test_chosen_equal_to_rejected_after_truncation(refuses, tmp_path):
    same = "We value every customer. " * 12
    row = PAIR | {"chosen": same + "Take care.", "rejected": same + "All the best."}
    data = write_rows(tmp_path / "pairs.jsonl", PAIR, row)
    refuses("dpo", "--data", data, "--max-length", 40, names=["row 2", "40", "tokens"])


def test_prompt_that_leaves_no_room(refuses, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", PAIR, PAIR | {"prompt": "kettle " * 300})
    refuses("dpo", "--data", data, names=["row 2", "prompt", "tokens"])


def test_too_long_for_the_model(refuses):
    refuses("dpo", "--max-length", 4096, names=["4096", "512", "max_length"])


@pytest.fixture
def model_copy(tmp_path):
    """A copy of the tiny Llama whose files can be spoiled: spoil(file, **changes of its JSON)."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_LLAMA, folder)

    def spoil(file="config.json", **changes):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
        return folder

    return spoil


def test_model_that_is_no_llama(refuses, model_copy):
    refuses("dpo", "--model", model_copy(model_type="gpt2"), names=["gpt2", "Llama"])


def test_model_that_is_not_causal(refuses, model_copy):
    folder = model_copy(architectures=["LlamaForSequenceClassification"])
    refuses("dpo", "--model", folder, names=["LlamaForSequenceClassification"])


def test_no_such_model_folder(refuses, tmp_path):
    refuses("dpo", "--model", tmp_path / "absent", names=["absent"])


def test_pickled_weights(refuses, model_copy):
    folder = model_copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuses("dpo", "--model", folder, names=["pytorch_model.bin", "safetensors"])


def test_pad_that_is_eos(refuses, model_copy):
    folder = model_copy("tokenizer_config.json", pad_token="<|eot_id|>")
    refuses("dpo", "--model", folder, names=["pad token", "eos"])


def test_no_chat_template(refuses, model_copy):
    folder = model_copy("tokenizer_config.json", chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<|start_header_id|>", "<|other|>"), encoding="utf-8")
    refuses("dpo", "--model", folder, names=["chat template"])


def test_unknown_profile(refuses):
    refuses("dpo", "--profile", "huge", names=["huge", "tiny", "smol"])


def test_no_disk_space(refuses, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("rlhf_lab.checks.shutil.disk_usage", lambda path: usage(1, 1, 2**20))
    refuses("dpo", names=["disk", "MB"])


@pytest.mark.parametrize("profile", ["llama-1b", "llama-2-7b", "llama-8b"])
def test_no_gpu_for_a_gpu_profile(refuses, monkeypatch, profile):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refuses("dpo", "--profile", profile, names=[profile, "GPU"])


def test_no_bitsandbytes(refuses, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("rlhf_lab.checks.why_no_bitsandbytes", lambda: "No module named 'bitsandbytes'")
    refuses("dpo", "--profile", "llama-1b", names=["bitsandbytes", "pip install"])


def test_no_network(refuses, monkeypatch):
    from rlhf_lab import single
    from rlhf_lab.errors import UserError

    def offline(*_):
        raise UserError("the hub does not answer", where="owner/model", fix="Check the network")

    monkeypatch.setattr(single, "fetch_model", offline)
    refuses("dpo", "--model", "owner/model", names=["owner/model", "network"])


def test_unknown_field(refuses):
    refuses("dpo", "--learning-rte", "1", names=["learning_rte"])


def test_field_of_the_wrong_type(refuses):
    refuses("dpo", "--beta", "much", names=["beta", "much"])


def test_ppo_without_a_reward_model(refuses):
    refuses("ppo", names=["--reward", "rlhf-lab reward"])


def test_output_that_holds_other_files(refuses, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refuses("dpo", "--output", tmp_path / "mine", names=["mine", "--output"])
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_unknown_column_mapping(refuses):
    refuses("dpo", "--columns", "best=chosen", names=["--columns"])
