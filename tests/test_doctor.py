"""The doctor names what is wrong, whatever is wrong, and never fails itself."""

import builtins
import importlib.metadata
from types import SimpleNamespace

import psutil
import pytest
import torch

from rlhf_lab import doctor
from rlhf_lab.profiles import PROFILES


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path))


def found(name):
    findings = [finding for finding in doctor.diagnose() if finding.name == name]
    assert len(findings) == 1, f"{len(findings)} findings named {name}"
    return findings[0]


def with_version(monkeypatch, library, version):
    real = importlib.metadata.version

    def fake(name):
        if name != library:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)


def test_every_topic_is_covered_and_has_a_status():
    findings = doctor.diagnose()
    names = [finding.name for finding in findings]
    topics = ("Python", "torch", "trl", "CPU cores", "memory", "disk", "GPU", "4-bit weights", "tiny Llama", "SmolLM2")
    assert set(topics) <= set(names)
    assert {f"profile {name}" for name in PROFILES} <= set(names)
    assert {finding.status for finding in findings} <= {"ok", "warn", "bad"}
    assert all(finding.message and "\n" not in finding.message for finding in findings)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("version", "status", "message"),
    [
        ("1.16.0", "ok", "1.16.0"),
        ("1.12.0", "bad", "1.12.0 is too old: pip install 'trl>=1.16,<2'"),
        ("2.0.1", "warn", "2.0.1 is newer than tested"),
        (None, "bad", "not installed: pip install 'trl>=1.16,<2'"),
    ],
)
def test_library_against_its_range(monkeypatch, version, status, message):
    project = {"dependencies": ["trl>=1.16,<2"]}
    monkeypatch.setattr(doctor, "_project", lambda: project)
    with_version(monkeypatch, "trl", version)
    finding = found("trl")
    assert finding.status == status
    assert message in finding.message


def test_missing_extra_is_a_warning_that_says_what_it_is_for(monkeypatch):
    monkeypatch.setattr(doctor, "_project", lambda: {"optional-dependencies": {"gguf": ["gguf>=0.17,<1"]}})
    with_version(monkeypatch, "gguf", None)
    finding = found("gguf")
    assert finding.status == "warn"
    assert "only for `rlhf-lab fetch smol` without a hub" in finding.message


def test_requirements_outside_a_clone_come_from_what_pip_wrote(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "REPO_ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["trl>=1.16", 'gguf>=0.17; extra == "gguf"'])
    assert doctor._project() == {"dependencies": ["trl>=1.16"]}


def test_old_python(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    assert found("Python") == ("Python", "bad", "3.10.4, the course needs >=3.11: install a newer Python")


def test_one_core(monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert found("CPU cores").status == "warn"


def test_little_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**29, total=2**30))
    assert found("memory").status == "warn"
    assert "expects 2.0 GB, this machine has 1.0" in found("profile tiny").message


def test_little_disk(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert found("disk").status == "warn"


@pytest.mark.parametrize(("bf16", "words"), [(True, "bfloat16 in hardware"), (False, "no bfloat16 in hardware")])
def test_gpu_without_trusting_emulation(monkeypatch, bf16, words):
    properties = SimpleNamespace(name="Tesla T4", total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(doctor, "why_no_bitsandbytes", lambda: "CUDA setup failed")
    findings = {finding.name: finding for finding in doctor._gpu()}
    assert findings["GPU"].message.startswith(f"Tesla T4, 16 GB, {words}")
    assert findings["4-bit weights"].status == "warn"
    assert "CUDA setup failed" in findings["4-bit weights"].message


def test_no_bitsandbytes(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert found("4-bit weights").status == "warn"


def test_torch_that_does_not_import(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **named):
        if name == "torch":
            raise ImportError("libtorch.so: cannot open\nshared object file")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    findings = {(finding.name, finding.status): finding.message for finding in doctor.diagnose()}
    assert ("profile tiny", "bad") in findings
    assert any("does not import (libtorch.so: cannot open)" in message for message in findings.values())


def test_tiny_llama_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PROFILES", {"tiny": SimpleNamespace(**vars(PROFILES["tiny"]) | {"model": tmp_path})})
    finding = found("tiny Llama")
    assert finding.status == "bad"
    assert "no config.json" in finding.message
    assert "`rlhf-lab pretrain`" in finding.message


def test_report_says_every_finding_and_whether_all_is_well(monkeypatch, capsys):
    findings = [doctor.Finding("GPU", "ok", "none [not markup]"), doctor.Finding("disk", "warn", "small")]
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    assert doctor.print_report() is True
    out = capsys.readouterr().out
    assert "none [not markup]" in out
    assert "small" in out
    findings.append(doctor.Finding("trl", "bad", "not installed"))
    assert doctor.print_report() is False
