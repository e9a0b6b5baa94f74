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
from rlhf_lab.profiles import REPO_ROOT

NOTEBOOKS = REPO_ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
REPO = "owner/name"  # until `make colab REPO=...` says where the course lives
_NAME = r"[\w.-]+/[\w.-]+"
_COLAB_CELL = """\
# On Colab this fetches the course and installs what is missing; anywhere else it does nothing.
import pathlib, subprocess, sys

if "google.colab" in sys.modules:
    course = pathlib.Path("course").resolve()
    if not course.exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", "https://github.com/{repo}", course], check=True)
    sys.path.insert(0, str(course))
    from rlhf_lab.colab import install_missing

    install_missing()"""


def lessons() -> list[Path]:
    """The lessons in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def colab_cell(repo: str = REPO) -> str:
    """The text of the first cell of every lesson."""
    return _COLAB_CELL.format(repo=repo)


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
    if not re.fullmatch(re.escape(colab_cell("@")).replace("@", _NAME), notebook.cells[0].source):
        raise UserError("its first cell is not the Colab cell", where=path.name, fix="Put colab_cell() there")
    notebook.cells[0].source = colab_cell(repo)
    title, *paragraphs = notebook.cells[1].source.split("\n\n")
    paragraphs = [paragraph for paragraph in paragraphs if not paragraph.startswith("[![Open in Colab]")]
    notebook.cells[1].source = "\n\n".join([title, badge(repo, path), *paragraphs])
    nbformat.write(notebook, path)


def execute(path: Path, timeout: int = 1200) -> None:
    """Run every cell of one lesson from a fresh kernel and save it, outputs included.

    It runs as for a learner who has answered nothing yet. What cannot work without a kernel, or would change every
    time, is not kept: of a widget the text that stands for it, of times and widget ids nothing.
    Raises UserError naming the cell; the file is then left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
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
        with _new_learner():
            client.execute()
    except CellExecutionError as error:
        last = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()[-1]  # without the colours of the traceback
        raise UserError(f"a cell raised: {last}", where=path.name, fix="Run it in JupyterLab to see where") from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    nbformat.write(notebook, path)


def main() -> None:
    """Execute all lessons, or those named; or, with --colab owner/name, stamp them all."""
    try:
        if sys.argv[1:2] == ["--colab"]:
            for path in lessons():
                stamp(path, " ".join(sys.argv[2:]))
            return
        chosen = [Path(name) for name in sys.argv[1:]] or lessons()
        for path in tqdm(chosen, unit="lesson"):
            execute(path)
    except UserError as error:
        sys.exit(str(error))


@contextmanager
def _new_learner() -> Iterator[None]:
    """An empty folder for progress and labels, so that whoever executes the lessons leaves none of theirs in them."""
    before = os.environ.get("RLHF_LAB_DATA")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLHF_LAB_DATA"] = folder
        try:
            yield
        finally:
            os.environ.pop("RLHF_LAB_DATA")
            if before is not None:
                os.environ["RLHF_LAB_DATA"] = before


if __name__ == "__main__":
    main()
