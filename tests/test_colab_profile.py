"""The first cell of a Llama lesson on a fake Colab: which Llama, which token, and what a reader is told."""

import os
import subprocess
import sys
import types

import pytest
import torch

from rlhf_lab import colab
from rlhf_lab.lessons import colab_cell
from rlhf_lab.memory import STAGES, predicted_memory
from rlhf_lab.profiles import get_profile

SECRET = "hf_a_token_that_no_output_may_hold"
# Memory as the driver reports it, in bytes; of these only the T4 has no bfloat16.
GPUS = {
    "Tesla T4": (15_828_320_256, False),
    "NVIDIA L4": (23_797_891_072, True),
    "NVIDIA A100-SXM4-40GB": (42_474_471_424, True),
    "GeForce 940M": (2_147_483_648, False),
}


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda as on a machine with that GPU, or with none."""

    def plug(name=None):
        memory, bf16 = GPUS.get(name, (0, False))
        properties = types.SimpleNamespace(name=name, total_memory=memory)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
        # By emulation a T4 has it too, which is what it answers unless asked otherwise.
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )

    return plug


@pytest.fixture
def secrets(monkeypatch):
    """A fake google.colab with these secrets; as there, one that is absent raises."""

    class SecretNotFoundError(Exception):
        pass

    def keep(**known):
        def get(name):
            if name not in known:
                raise SecretNotFoundError(f"Secret {name} does not exist.")
            return known[name]

        package = types.ModuleType("google.colab")
        package.userdata = types.SimpleNamespace(get=get)
        google = types.ModuleType("google")
        google.colab = package
        monkeypatch.setitem(sys.modules, "google", google)
        monkeypatch.setitem(sys.modules, "google.colab", package)

    return keep


@pytest.fixture(autouse=True)
def colab_machine(monkeypatch, tmp_path):
    """No token in the environment, an empty folder, and nothing that runs or installs."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "")  # so that what the cell sets is taken back
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: types.SimpleNamespace(returncode=0, stdout="", stderr=""))
    monkeypatch.setattr(colab, "missing", lambda *_: [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def first_cell(profile=None):
    """What the cell leaves in PROFILE."""
    left = {}
    exec(colab_cell("07", "someone/course").replace("PROFILE = None", f"PROFILE = {profile!r}", 1), left)
    return left["PROFILE"]


def test_a_t4_with_a_token_among_the_secrets(gpu, secrets, capsys):
    gpu("Tesla T4")
    secrets(HF_TOKEN=SECRET)
    assert first_cell() == "llama-1b"
    assert os.environ["HF_TOKEN"] == SECRET
    said = capsys.readouterr()
    assert "PROFILE is 'llama-1b': it takes about 3 GB of the 16 GB of this Tesla T4." in said.out
    assert "The token for meta-llama/Llama-3.2-1B is the one in Colab's secrets." in said.out
    assert SECRET not in said.out + said.err


def test_hugging_faces_library_reads_that_token(gpu, secrets):
    from huggingface_hub import get_token

    gpu("Tesla T4")
    secrets(HF_TOKEN=f" {SECRET}\n")  # as a paste leaves it
    first_cell()
    assert get_token() == SECRET


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_in_the_environment(gpu, secrets, capsys, monkeypatch, variable):
    gpu("Tesla T4")
    secrets()
    monkeypatch.setenv(variable, SECRET)
    assert first_cell() == "llama-1b" and os.environ["HF_TOKEN"] == SECRET
    said = capsys.readouterr().out
    assert "the one in the environment" in said and SECRET not in said


def test_without_a_token_the_ungated_one_and_a_sentence(gpu, secrets, capsys):
    gpu("Tesla T4")
    secrets()
    assert first_cell() == "smol"
    said = capsys.readouterr().out
    assert "meta-llama/Llama-3.2-1B is gated and there is no HF_TOKEN" in said
    assert said.endswith("Going on with the ungated smol: PROFILE is 'smol'.\n")


@pytest.mark.parametrize("token", [None, SECRET])
def test_without_a_gpu_the_tiny_one(gpu, secrets, capsys, token):
    gpu(None)
    secrets(**({"HF_TOKEN": token} if token else {}))
    assert first_cell() is None
    assert "There is no GPU" in (said := capsys.readouterr().out) and "tiny Llama" in said and SECRET not in said


@pytest.mark.parametrize(
    ("card", "profile"),
    [
        ("Tesla T4", "llama-1b"),
        ("NVIDIA L4", "llama-8b"),
        ("NVIDIA A100-SXM4-40GB", "llama-8b"),
        ("GeForce 940M", None),
    ],
)
def test_each_card_gets_what_it_can_hold(gpu, secrets, card, profile):
    gpu(card)
    secrets(HF_TOKEN=SECRET)
    assert first_cell() == profile
    if profile:
        needed = max(predicted_memory(get_profile(profile), stage).total_mb for stage in STAGES)
        assert needed * 1e6 < 0.85 * GPUS[card][0]


def test_a_card_too_small_is_named(gpu, secrets, capsys):
    gpu("GeForce 940M")
    secrets(HF_TOKEN=SECRET)
    first_cell()
    assert "The GeForce 940M has too little memory, 2 GB. Lessons run on the tiny Llama." in capsys.readouterr().out


def test_who_names_a_profile_gets_it_whatever_the_card(gpu, secrets, capsys):
    gpu("Tesla T4")
    secrets(HF_TOKEN=SECRET)
    assert first_cell("llama-2-7b") == "llama-2-7b"
    assert "PROFILE is 'llama-2-7b': as you say." in capsys.readouterr().out
    gpu(None)
    assert first_cell("tiny") == "tiny" and first_cell("smol") == "smol"
    assert "token" not in capsys.readouterr().out.lower(), "neither is gated"


def test_access_to_a_secret_that_is_refused_is_no_error(gpu, monkeypatch, secrets):
    gpu("Tesla T4")
    secrets()

    def refuse(name):
        raise TimeoutError("Requesting secret timed out. Secrets can only be fetched when running from the Colab UI.")

    monkeypatch.setattr(sys.modules["google.colab"].userdata, "get", refuse)
    assert first_cell() == "smol"


def test_elsewhere_the_cell_chooses_nothing(gpu, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    gpu("Tesla T4")
    assert first_cell() is None and first_cell("smol") == "smol"
    assert capsys.readouterr().out == ""
