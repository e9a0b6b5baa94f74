"""The lessons' cells are the exercises' stubs, and check works in a real kernel."""

import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from rlhf_lab.exercises import heading, names, stub
from rlhf_lab.lessons import lessons

CALL = re.compile(r'^check\("(\w+)"', re.MULTILINE)


def drift(notebook, lesson):
    """Cells that call check and are not the exercise's own text, and exercises that a lesson with some leaves out."""
    found, problems = [], []
    for cell in notebook.cells:
        if cell.cell_type == "code" and (call := CALL.search(cell.source)):
            name = call.group(1)
            found.append(name)
            if name not in names(lesson):
                problems.append(f"{name} is no exercise of lesson {lesson}")
            elif cell.source != stub(name):
                problems.append(f"{name}: the cell is not stub({name!r})")
    return problems + [f"{name} is missing" for name in names(lesson) if found and name not in found]


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_the_cells_of_the_lessons_are_the_stubs_of_the_exercises(path):
    lesson = int(path.stem[:2])
    assert drift(nbformat.read(path, as_version=4), lesson) == []


def test_a_cell_that_has_drifted_is_found():
    cells = [new_code_cell(stub(name)) for name in names(1)]
    assert drift(new_notebook(cells=cells), 1) == []
    cells[3].source = cells[3].source.replace("one half", "half")
    assert drift(new_notebook(cells=cells), 1) == ["longer_reply_wins: the cell is not stub('longer_reply_wins')"]
    assert drift(new_notebook(cells=cells[:3]), 1) == ["longer_reply_wins is missing", "kappa is missing"]
    assert drift(new_notebook(cells=[new_code_cell(stub("gae"))]), 1)[0] == "gae is no exercise of lesson 1"


def test_the_text_of_a_cell():
    assert stub("elo_probability") == (
        "def elo_probability(rating_a, rating_b):\n"
        '    """P(a beats b) for two Elo ratings, such as 2000 and 1600: a number from 0 to 1."""\n'
        "    ...\n\n\n"
        'check("elo_probability", elo_probability)'
    )
    assert stub("cycle").endswith('\ncycle = ...\n\n\ncheck("cycle", cycle)')
    assert heading("gae") == (
        "### Exercise: Generalised advantage estimation\n\nDifficulty 4/5 · Importance 5/5 · 20 minutes"
    )
    for name in names():
        assert max(map(len, stub(name).splitlines())) <= 120 and stub(name).count("check(") == 1


def test_in_a_kernel_a_loop_is_stopped_a_line_is_named_and_blocks_are_shown():
    cells = [
        "from rlhf_lab.exercises import check, grading\ngrading.SECONDS = 1.0",
        'def elo_probability(a, b):\n    while True:\n        a += 1\n\n\ncheck("elo_probability", elo_probability)',
        'def elo_probability(a, b):\n    return a / c\n\n\ncheck("elo_probability", elo_probability)',
        'check("elo_probability", lambda a, b: 1 / (1 + 10 ** ((b - a) / 400)))',
        stub("elo_probability"),
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    texts = [cell.outputs[0].data["text/plain"] for cell in notebook.cells[1:]]
    assert "Still running after 1 seconds" in texts[0] and "in elo_probability: " in texts[0]
    assert "NameError: name 'c' is not defined" in texts[1] and "line 2, in elo_probability: return a / c" in texts[1]
    assert texts[2].startswith("Passed") and texts[3].startswith("Not tried yet")
    assert all("<strong>" in cell.outputs[0].data["text/html"] for cell in notebook.cells[1:])
    assert not re.search(r"/(tmp|home|root)\b", "".join(texts))
