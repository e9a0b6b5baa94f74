"""The lessons as files: `make notebooks` executes them and keeps their outputs, `make colab` makes them open there."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from rlhf_lab.errors import UserError
from rlhf_lab.lab import RECORDING
from rlhf_lab.profiles import REPO_ROOT, get_profile

NOTEBOOKS = REPO_ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
REPO = "owner/name"  # until `make colab REPO=...` says where the course lives
_NAME = r"[\w.-]+/[\w.-]+"
WITH_PROFILE = "05"  # from this lesson on, the first cell says which Llama
_HEAD = "# On Colab this fetches the course and installs what is missing; anywhere else it does nothing."
_PROFILE_HEAD = """\
# Which Llama: "tiny" (the repository's own), "smol", "llama-1b", "llama-2-7b" or "llama-8b". None is tiny here, and on
# Colab what its GPU can hold. On Colab this cell also fetches the course and installs what is missing.
PROFILE = None
"""
_COLAB_CELL = """\
{head}
import pathlib, subprocess, sys

if "google.colab" in sys.modules:
    course = pathlib.Path("course").resolve()
    if not course.exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", "https://github.com/{repo}", course], check=True)
    sys.path.insert(0, str(course))
    from rlhf_lab.colab import install_missing

    install_missing()"""
_PROFILE_TAIL = """

    from rlhf_lab.colab import choose_profile

    PROFILE = choose_profile(PROFILE)"""


def lessons() -> list[Path]:
    """The lessons in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def colab_cell(lesson: str, repo: str = REPO) -> str:
    """The text of the first cell of a lesson ("03"); from 05 on it sets PROFILE too."""
    if lesson >= WITH_PROFILE:
        return _COLAB_CELL.format(head=_PROFILE_HEAD, repo=repo) + _PROFILE_TAIL
    return _COLAB_CELL.format(head=_HEAD, repo=repo)


def badge(repo: str, path: Path) -> str:
    """Markdown that opens a lesson on Colab."""
    link = f"https://colab.research.google.com/github/{repo}/blob/main/notebooks/{path.name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def stamp(path: Path, repo: str) -> None:
    """Write the repository's address into a lesson's first cell, and the badge under its title; again with another.

    Raises UserError when `repo` is not owner/name, or the lesson does not begin with the Colab cell.
    """
    if not re.fullmatch(_NAME, repo):
        raise UserError(f"{repo!r} is no repository", fix="Say it as make colab REPO=owner/name")
    notebook = nbformat.read(path, as_version=4)
    lesson = path.name[:2]
    if not re.fullmatch(re.escape(colab_cell(lesson, "@")).replace("@", _NAME), notebook.cells[0].source):
        raise UserError("its first cell is not the Colab cell", where=path.name, fix="Put colab_cell() there")
    notebook.cells[0].source = colab_cell(lesson, repo)
    title, *paragraphs = notebook.cells[1].source.split("\n\n")
    paragraphs = [paragraph for paragraph in paragraphs if not paragraph.startswith("[![Open in Colab]")]
    notebook.cells[1].source = "\n\n".join([title, badge(repo, path), *paragraphs])
    nbformat.write(notebook, path)


def execute(path: Path, timeout: int = 1200, profile: str | None = None) -> None:
    """Run every cell of one lesson from a fresh kernel and save it, outputs included.

    With `profile` the lesson runs on that Llama and only what it measured is kept, in data/records.
    It runs as for a learner who has answered nothing yet. What cannot work without a kernel, or would change every
    time, is not kept: of a widget the text that stands for it, of times and widget ids nothing.
    Raises UserError naming the cell, and for a profile that is unknown or that the lesson does not ask for; the file
    is then left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    if profile is not None:
        first = notebook.cells[0].source
        if "\nPROFILE = None\n" not in first:
            raise UserError("its first cell sets no PROFILE", where=path.name, fix="Record lessons from 05 on")
        notebook.cells[0].source = first.replace("PROFILE = None", f"PROFILE = {get_profile(profile).name!r}", 1)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources=resources,
        store_widget_state=False,
        coalesce_streams=True,
    )
    try:
        with _new_learner(), _set(RECORDING, profile):
            client.execute()
    except CellExecutionError as error:
        last = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()[-1]  # without the colours of the traceback
        raise UserError(f"a cell raised: {last}", where=path.name, fix="Run it in JupyterLab to see where") from error
    if profile is not None:
        return
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        # Progress bars say how long it took this once.
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if "%|" not in _words(output)]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    nbformat.write(notebook, path)


def _words(output) -> str:
    """What a library wrote on stderr, or shows of a widget without a kernel."""
    if output.get("name") == "stderr":
        return output.text
    return output.get("data", {}).get("text/plain", "") if output.output_type == "display_data" else ""


def main() -> None:
    """Execute all lessons, or those named; with --record PROFILE, those named on that Llama, to keep what they measure.

    With --colab owner/name, stamp them all.
    """
    try:
        if sys.argv[1:2] == ["--colab"]:
            for path in lessons():
                stamp(path, " ".join(sys.argv[2:]))
            return
        arguments, profile = sys.argv[1:], None
        if arguments[:1] == ["--record"]:
            profile, arguments = " ".join(arguments[1:2]), arguments[2:]
        chosen = [Path(name) for name in arguments] or lessons()
        for path in tqdm(chosen, unit="lesson"):
            execute(path, profile=profile, timeout=7200 if profile else 1200)
    except UserError as error:
        sys.exit(str(error))


@contextmanager
def _new_learner() -> Iterator[None]:
    """An empty folder for progress and labels, so that whoever executes the lessons leaves none of theirs in them."""
    with tempfile.TemporaryDirectory() as folder, _set("RLHF_LAB_DATA", folder):
        yield


@contextmanager
def _set(name: str, value: str | None) -> Iterator[None]:
    """The environment's variable `name` as `value` meanwhile, or absent."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


if __name__ == "__main__":
    main()
