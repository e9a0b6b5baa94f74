"""The machinery around the lessons: executing one, and making it open on Colab."""

import json
import os
import subprocess
import sys
import tomllib
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rlhf_lab import colab
from rlhf_lab.errors import UserError
from rlhf_lab.lessons import badge, colab_cell, execute, stamp
from rlhf_lab.profiles import REPO_ROOT

# Colab's image of 2026-08, as far as it was read off there; rich, psutil and filelock are its usual ones.
COLAB = {
    "accelerate": "1.14.0", "datasets": "4.0.0", "filelock": "3.20.0",
    "huggingface_hub": "1.20.0", "ipywidgets": "7.7.1", "jinja2": "3.1.6",
    "matplotlib": "3.10.0", "numpy": "2.1.3", "packaging": "25.0", "peft": "0.20.0", "platformdirs": "4.9.0",
    "psutil": "5.9.5", "rich": "13.9.4", "safetensors": "0.8.0", "scipy": "1.16.3", "torch": "2.11.0+cu128",
    "tqdm": "4.67.1", "transformers": "5.15.0", "typer": "0.25.0",
}  # fmt: skip


def on_colab(name):
    if name not in COLAB:
        raise PackageNotFoundError(name)
    return COLAB[name]


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What would have been run, in a folder of its own; every command succeeds."""
    ran = []

    def run(command, **_):
        ran.append([str(part) for part in command])
        if "--constraint" in command:
            ran.append(Path(command[command.index("--constraint") + 1]).read_text())
        return types.SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(colab, "version", on_colab)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(colab.missing, "__defaults__", (on_colab,))
    return ran


def test_elsewhere_the_colab_cell_does_nothing(commands, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    before = [*sys.path]
    exec(colab_cell("03", "someone/course"), {})
    assert commands == [] and sys.path == before and os.listdir() == []


def test_on_colab_it_clones_and_installs_what_is_missing_and_holds_torch(commands, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(colab_cell("03", "someone/course"), {})
    clone, pip, pins = commands
    assert clone == ["git", "clone", "-q", "--depth", "1", "https://github.com/someone/course", f"{os.getcwd()}/course"]
    assert sys.path[0] == f"{os.getcwd()}/course"
    assert pip[1:5] == ["-m", "pip", "install", "--quiet"]
    assert {text.partition(">")[0] for text in pip[7:]} == {"trl", "bitsandbytes", "datasets"}
    assert pins == "torch==2.11.0+cu128\n"


def test_run_again_it_neither_clones_nor_installs(commands, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    os.mkdir("course")
    for name, version in {"trl": "1.16.0", "bitsandbytes": "0.50.2", "datasets": "4.8.0"}.items():
        monkeypatch.setitem(COLAB, name, version)
    exec(colab_cell("03", "someone/course"), {})
    assert commands == []


def test_what_is_wanted_is_what_the_package_depends_on():
    project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())["project"]
    assert colab.requirements() == project["dependencies"]
    assert colab.missing(["torch>=99", "numpy>=2.0,<3", "trl>=1.16"], on_colab) == ["trl>=1.16"]


def test_a_pip_that_fails_is_told_in_its_own_last_line(commands, monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stdout="", stderr="one\nERROR: no matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=r"could not install .*trl.*: ERROR: no matching distribution$"):
        colab.install_missing()


@pytest.fixture
def lesson(tmp_path):
    """A lesson of three cells."""

    def make(source="1 + 1", first=None):
        title = new_markdown_cell("# 99 · A lesson\n\nText.")
        notebook = new_notebook(cells=[new_code_cell(first or colab_cell("99")), title, new_code_cell(source)])
        path = tmp_path / "99_a_lesson.ipynb"
        nbformat.write(notebook, path)
        return path

    return make


def test_stamping_writes_the_address_and_the_badge_and_can_be_done_again(lesson):
    path = lesson()
    for repo in ("someone/course", "other-one/rlhf.lab"):
        stamp(path, repo)
        first, title, _ = nbformat.read(path, as_version=4).cells
        assert first.source == colab_cell("99", repo) and f'"https://github.com/{repo}"' in first.source
        assert title.source == f"# 99 · A lesson\n\n{badge(repo, path)}\n\nText."
        assert f"colab.research.google.com/github/{repo}/blob/main/notebooks/99_a_lesson.ipynb" in title.source


@pytest.mark.parametrize("repo", ["", "course", "https://github.com/a/b", "a/b c", "a/b/c", "a/b'"])
def test_only_owner_and_name_can_be_stamped(lesson, repo):
    path = lesson()
    before = path.read_bytes()
    with pytest.raises(UserError, match="is no repository"):
        stamp(path, repo)
    assert path.read_bytes() == before


def test_a_lesson_without_the_colab_cell_is_refused(lesson):
    with pytest.raises(UserError, match="its first cell is not the Colab cell"):
        stamp(lesson(first="import torch"), "someone/course")


def test_executing_keeps_outputs_and_nothing_of_who_ran_it(lesson, monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_LAB_DATA", str(tmp_path / "mine"))
    path = lesson(
        "import os, ipywidgets\nfrom IPython.display import display\n"
        "print(os.environ['RLHF_LAB_DATA'].endswith('mine'))\ndisplay(ipywidgets.IntSlider(7))"
    )
    execute(path)
    notebook = nbformat.read(path, as_version=4)
    printed, slider = notebook.cells[2].outputs
    assert printed.text == "False\n"
    assert list(slider.data) == ["text/plain"] and "value=7" in slider.data["text/plain"]
    assert "widgets" not in notebook.metadata and all("execution" not in cell.metadata for cell in notebook.cells)
    assert os.environ["RLHF_LAB_DATA"] == str(tmp_path / "mine")


def test_a_cell_that_raises_is_named_and_the_file_stays(lesson):
    path = lesson("1 / 0")
    before = json.loads(path.read_text())
    with pytest.raises(UserError, match="a cell raised: ZeroDivisionError"):
        execute(path)
    assert json.loads(path.read_text()) == before
