"""Each check speaks one line on what it is there to stop, and is silent on what is sound."""

import json
from collections import namedtuple
from dataclasses import replace

import numpy
import pytest
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rlhf_lab import checks
from rlhf_lab.errors import UserError
from rlhf_lab.profiles import get_profile

TURNS = "{% for m in messages %}[{{ m.content }}] <e>{% endfor %}"


def message_of(call, *arguments, **named):
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_config(folder)
    save_file({"weight": numpy.zeros(3, dtype=numpy.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_config(folder, **changes):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **changes}
    (folder / "config.json").write_text(json.dumps(config))


def make_tokenizer(template="<b>" + TURNS, bos="<b>", eos="<e>", pad="<p>", extra=()):
    backend = Tokenizer(models.WordLevel({"<u>": 0, "[Hello]": 1}, unk_token="<u>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    given = {name: token for name, token in special.items() if token}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<u>", **given)
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    tokenizer.chat_template = template
    return tokenizer


# --- model folders ------------------------------------------------------------------------------------------------


def test_sound_model_folder(model_dir):
    assert checks.check_model_dir(model_dir)["model_type"] == "llama"
    assert checks.check_model_dir(str(model_dir))["model_type"] == "llama"


def test_folder_of_the_repo(model_dir, monkeypatch):
    monkeypatch.setattr(checks, "REPO_ROOT", model_dir.parent)
    assert checks.check_model_dir("model")["model_type"] == "llama"


@pytest.mark.parametrize("hub_id", ["meta-llama/Llama-3.2-1B", "gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_hub_id_is_left_alone(hub_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checks.check_model_dir(hub_id) is None


@pytest.mark.parametrize(
    "path", ["/no/where", "./nowhere", "../nowhere", "runs/nowhere", "data/nowhere", "a/b/c", "~/no"]
)
def test_missing_folder(path):
    assert f"{path}: no such model folder" in message_of(checks.check_model_dir, path)


def test_missing_folder_beside_others(model_dir, monkeypatch):
    monkeypatch.chdir(model_dir.parent)
    assert "model/checkpoint: no such model folder" in message_of(checks.check_model_dir, "model/checkpoint")


def test_file_given(model_dir):
    message = message_of(checks.check_model_dir, model_dir / "config.json")
    assert "config.json: is a file, not a model folder" in message


def test_no_config(model_dir):
    (model_dir / "config.json").unlink()
    assert f"{model_dir}: no config.json" in message_of(checks.check_model_dir, model_dir)


def test_adapter_alone(model_dir):
    (model_dir / "config.json").rename(model_dir / "adapter_config.json")
    assert "holds a LoRA adapter, not a model" in message_of(checks.check_model_dir, model_dir)


@pytest.mark.parametrize("text", ['{"model_type": ', "[]", "\x00"])
def test_broken_config(model_dir, text):
    (model_dir / "config.json").write_text(text)
    assert "config.json: broken config" in message_of(checks.check_model_dir, model_dir)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", None])
def test_not_a_llama(model_dir, kind):
    write_config(model_dir, model_type=kind, architectures=["GPT2LMHeadModel"])
    message = message_of(checks.check_model_dir, model_dir)
    assert f"config.json: not a Llama, its model_type is {kind!r}" in message


@pytest.mark.parametrize("architectures", [["LlamaForSequenceClassification"], ["LlamaModel"], [], None])
def test_not_a_causal_lm(model_dir, architectures):
    write_config(model_dir, architectures=architectures)
    message = message_of(checks.check_model_dir, model_dir)
    assert f"config.json: not a causal language model, its architectures are {architectures or []}" in message


def test_a_reward_model_where_one_is_due(model_dir):
    write_config(model_dir, architectures=["LlamaForSequenceClassification"])
    assert checks.check_model_dir(model_dir, head="ForSequenceClassification")
    write_config(model_dir)
    message = message_of(checks.check_model_dir, model_dir, head="ForSequenceClassification")
    assert "not a ForSequenceClassification" in message


def test_only_pickled_weights(model_dir):
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    message = message_of(checks.check_model_dir, model_dir)
    assert f"{model_dir}: weights only as pickle (pytorch_model.bin), and no pickle is loaded" in message
    assert "save_pretrained" in message


def test_no_weights(model_dir):
    (model_dir / "model.safetensors").unlink()
    assert f"{model_dir}: no weights" in message_of(checks.check_model_dir, model_dir)


def test_shard_missing(model_dir):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 of 2 weight files are missing (model-2.safetensors)" in message_of(checks.check_model_dir, model_dir)


def test_broken_index(model_dir):
    (model_dir / "model.safetensors.index.json").write_text("[]")
    assert "index.json: broken index" in message_of(checks.check_model_dir, model_dir)


@pytest.mark.parametrize("start", [b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", b""])
def test_weights_that_are_a_pointer_or_cut_short(model_dir, start):
    (model_dir / "model.safetensors").write_bytes(start)
    assert "model.safetensors: broken weights" in message_of(checks.check_model_dir, model_dir)


def test_no_tokenizer(model_dir):
    (model_dir / "tokenizer.json").unlink()
    assert f"{model_dir}: no tokenizer" in message_of(checks.check_model_dir, model_dir)


# --- tokenizers ---------------------------------------------------------------------------------------------------


def test_sound_tokenizer():
    checks.check_tokenizer(make_tokenizer(), "model")


def test_no_chat_template():
    assert "model: the tokenizer has no chat template" in message_of(
        checks.check_tokenizer, make_tokenizer(template=None), "model"
    )
    checks.check_tokenizer(make_tokenizer(template=None), "model", for_chat=False)


def test_no_eos():
    message = message_of(checks.check_tokenizer, make_tokenizer(eos=None), "model")
    assert "model: the tokenizer has no eos token" in message


@pytest.mark.parametrize(("pad", "what"), [(None, "is missing"), ("<e>", "is the eos token (<e>)")])
def test_pad_missing_or_eos(pad, what):
    message = message_of(checks.check_tokenizer, make_tokenizer(pad=pad), "model", for_chat=False)
    assert f"model: the pad token {what}" in message
    assert "<|finetune_right_pad_id|>" in message


def test_pad_is_looked_for_among_the_tokens_there_are():
    message = message_of(checks.check_tokenizer, make_tokenizer(pad=None, extra=["<|endoftext|>"]), "model")
    assert message.endswith("such as <|endoftext|>.")


def test_double_bos():
    message = message_of(checks.check_tokenizer, make_tokenizer("<b>{{ bos_token }}" + TURNS), "model")
    assert "model: a rendered conversation begins with 2 BOS (<b>) instead of one" in message


def test_no_bos():
    message = message_of(checks.check_tokenizer, make_tokenizer(TURNS), "model")
    assert "model: a rendered conversation begins with no BOS (<b>) instead of one" in message


def test_a_bos_that_opens_every_turn_passes_as_in_llama_2_and_smollm2():
    checks.check_tokenizer(make_tokenizer("{% for m in messages %}<b>[{{ m.content }}] <e>{% endfor %}"), "model")


def test_a_tokenizer_that_knows_no_bos_passes():
    checks.check_tokenizer(make_tokenizer(TURNS, bos=None), "model")


@pytest.mark.parametrize("template", ["{{ raise_exception('roles must\nalternate') }}", "{% for %}"])
def test_template_that_fails(template):
    assert "model: the chat template fails" in message_of(checks.check_tokenizer, make_tokenizer(template), "model")


# --- lengths and disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{"max_position_embeddings": 256}, LlamaConfig(max_position_embeddings=256)])
def test_too_long_for_the_model(config):
    checks.check_lengths(config, 256)
    message = message_of(checks.check_lengths, config, 257)
    assert (
        message == "--max-length: 257 tokens are too long for the model, which has 256 positions. Ask for at most 256."
    )


def test_disk_space(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(0, 0, 100 * 2**20)

    monkeypatch.setattr(checks.shutil, "disk_usage", disk_usage)
    target = tmp_path / "not" / "yet" / "there"
    checks.check_disk(target, 100)
    assert asked == [tmp_path]
    message = message_of(checks.check_disk, target, 1500)
    assert f"{target}: no disk space, 100 MB free and 1,500 MB needed" in message


# --- machines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    def is_a(gpu=False, bf16=False, bitsandbytes=""):
        def supported(including_emulation=True):
            return bf16 or including_emulation  # a T4 says yes by emulation

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
        monkeypatch.setattr(checks, "why_no_bitsandbytes", lambda: bitsandbytes)

    return is_a


def test_tiny_runs_anywhere(machine):
    machine()
    checks.check_profile_machine(get_profile("tiny"))


def test_no_gpu_for_a_gpu_profile(machine):
    machine(gpu=False)
    profile = replace(get_profile("tiny"), name="llama-1b", needs_gpu=True)
    assert "profile llama-1b: needs a GPU" in message_of(checks.check_profile_machine, profile)
    machine(gpu=True)
    checks.check_profile_machine(profile)


def test_no_bitsandbytes(machine):
    machine(gpu=True, bitsandbytes="No module named 'bitsandbytes'")
    profile = replace(get_profile("tiny"), quantisation="nf4")
    message = message_of(checks.check_profile_machine, profile)
    assert "profile tiny: 4-bit weights need bitsandbytes, which does not import (No module named" in message
    assert "pip install bitsandbytes" in message


@pytest.mark.parametrize("error", [ImportError("No module named 'bitsandbytes'"), RuntimeError("CUDA\nsetup failed")])
def test_why_no_bitsandbytes(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(checks.importlib, "import_module", fail)
    checks.why_no_bitsandbytes.cache_clear()
    try:
        assert checks.why_no_bitsandbytes() == str(error).splitlines()[0]
    finally:
        checks.why_no_bitsandbytes.cache_clear()


def test_bfloat16_by_emulation_or_on_a_cpu(machine):
    profile = replace(get_profile("tiny"), dtype="bfloat16")
    machine(gpu=True, bf16=False)
    message = message_of(checks.check_profile_machine, profile)
    assert "profile tiny: bfloat16 is not in the hardware of this GPU (Tesla T4)" in message
    machine(gpu=False)
    message = message_of(checks.check_profile_machine, profile)
    assert "profile tiny: bfloat16 on a CPU is up to 30 times slower" in message
    machine(gpu=True, bf16=True)
    checks.check_profile_machine(profile)
