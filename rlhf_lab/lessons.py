"""Execute the lessons and keep their outputs: `make notebooks`."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from rlhf_lab.errors import UserError
from rlhf_lab.profiles import REPO_ROOT

NOTEBOOKS = REPO_ROOT / "notebooks"


def lessons() -> list[Path]:
    """The lessons in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def execute(path: Path, timeout: int = 1200) -> None:
    """Run every cell of one lesson from a fresh kernel and save it, outputs included.

    Raises UserError naming the cell; the file is then left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources)
    try:
        client.execute()
    except CellExecutionError as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(f"a cell raised: {last}", where=path.name, fix="Run it in JupyterLab to see where") from error
    for cell in notebook.cells:  # times and machine-made ids would change every file each time
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)


def main() -> None:
    """Execute all lessons, or those named."""
    chosen = [Path(name) for name in sys.argv[1:]] or lessons()
    for path in tqdm(chosen, unit="lesson"):
        execute(path)


if __name__ == "__main__":
    main()
