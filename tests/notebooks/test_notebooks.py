"""Every lesson as committed: executed, small, private, readable without eyes or a kernel, with all its bones."""

import getpass
import json
import re
import socket
from collections import Counter

import nbformat
import pytest

from rlhf_lab.exercises import heading, names, stub
from rlhf_lab.exercises.exercise import catalogue
from rlhf_lab.lessons import NOTEBOOKS, WIDGET, colab_cell, lessons

CHECKED, FREE = "nbval-check-output", "nbval-ignore-output"
CALL = re.compile(r'^check\("(\w+)"', re.MULTILINE)
# Which parts of the article a lesson teaches: its rows, and what the article gets wrong. A cell is tagged row-9 or E1.
TAUGHT = {
    1: ({1, 2, 3, 4, 34}, {"E3", "E14"}),
    2: ({9, 10, 11, 12}, {"E1", "E2", "E19"}),
    3: ({13, 14, 15, 16, 17, 18, 19}, {"E4", "E5", "E18", "E20", "E21"}),
    4: ({20, 21, 22, 23, 24, 25, 26, 27}, {"E6", "E7", "E21"}),
    5: ({5, 35, 36, 37}, {"E22", "E26"}),
    6: ({6, 7, 38, 39, 40, 53}, {"E16", "E23"}),
    7: ({8, 19, 41, 42}, {"E17", "E20", "E27"}),
    8: ({27, 43}, {"E8", "E15", "E24"}),
    9: ({4, 28, 29, 30, 31, 32, 33, 66}, {"E9", "E11"}),
}
BONES = (
    r"\A# \d\d · ",
    r"\*\*You will be able to\*\*",
    r"\*\*Time\*\*",
    r"\*\*Needs\*\*",
    r"\*Predict first",
    r"^## The article says",
    r"^## Break it",
    r"^## Interview corner",
    r"^## Summary",
    r"^## Sources",
)

every_lesson = pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tags(cell):
    return cell.metadata.get("tags", [])


def outputs(notebook):
    return [(cell, output) for cell in code(notebook) for output in cell.outputs]


def texts(output):
    """Everything in an output that a reader may see as text."""
    return [
        output.get("text", ""),
        *(str(value) for kind, value in output.get("data", {}).items() if "png" not in kind),
    ]


@every_lesson
def test_it_is_executed_in_order_without_an_error_or_a_warning(path):
    notebook = read(path)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "make notebooks"
    assert [o.output_type for _, o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"] == []


@every_lesson
def test_it_is_small_and_holds_nothing_that_changes_every_time(path):
    assert path.stat().st_size < 1_500_000
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert not [cell.id for cell in notebook.cells if "execution" in cell.metadata]
    assert not [cell.id for cell, output in outputs(notebook) if WIDGET in output.get("data", {})]
    assert not [cell.id for cell, output in outputs(notebook) if any("%|" in text for text in texts(output))]


@every_lesson
def test_no_output_tells_whose_machine_it_was(path):
    names_of_this_machine = {socket.gethostname(), getpass.getuser()} - {"root", "localhost"}
    private = re.compile(
        "|".join([r"(?<![\w.])/(home|root|tmp|Users|usr|opt|var|mnt|work|content)\b", r"[A-Z]:\\",
                  r"\bhf_\w{10,}", *map(re.escape, names_of_this_machine)])
    )  # fmt: skip
    found = [m.group() for _, out in outputs(read(path)) for text in texts(out) if (m := private.search(text))]
    assert found == []


@every_lesson
def test_every_picture_has_its_text(path):
    notebook = read(path)
    for cell, output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            alt = output.metadata.get("image/png", {}).get("alt", "")
            assert len(alt) > 40, cell.id
            assert output.data["text/plain"] == alt, cell.id
    assert not re.findall(r"!\[\s*\]\(|<img(?![^>]*\balt=\"[^\"]+\")", prose(notebook))


@every_lesson
def test_what_a_cell_prints_is_compared_or_said_to_be_free(path):
    for cell, output in outputs(read(path)):
        if output.output_type == "stream":
            assert (CHECKED in tags(cell)) != (FREE in tags(cell)), cell.id
    assert any(CHECKED in tags(cell) for cell in code(read(path)))


@every_lesson
def test_the_bones_stand_in_their_order(path):
    text = prose(read(path))
    at = [found.start() if (found := re.search(bone, text, re.MULTILINE)) else None for bone in BONES]
    assert None not in at, [bone for bone, place in zip(BONES, at, strict=True) if place is None]
    assert at[5:] == sorted(at[5:])
    assert text.startswith(f"# {path.stem[:2]} · ")


@every_lesson
def test_it_begins_with_the_colab_cell(path):
    first = read(path).cells[0]
    repo = re.search(r"github\.com/([\w.-]+/[\w.-]+)\"", first.source)
    assert repo and first.source == colab_cell(path.name[:2], repo.group(1))
    assert first.cell_type == "code" and first.outputs == []


@every_lesson
def test_its_exercises_are_all_there_under_their_headings_untouched(path):
    cells, lesson = read(path).cells, int(path.stem[:2])
    calls = {i: CALL.search(cell.source) for i, cell in enumerate(cells) if cell.cell_type == "code"}
    found = {call.group(1): i for i, call in calls.items() if call}
    assert sorted(found) == sorted(names(lesson))
    for name, i in found.items():
        assert cells[i].source == stub(name)
        assert cells[i - 1].source.startswith(heading(name)), name
        assert cells[i].outputs[0].data["text/plain"].startswith("Not tried yet"), name


@every_lesson
def test_it_teaches_its_rows_of_the_article_and_shows_its_errors_with_a_cell_that_runs(path):
    notebook, lesson = read(path), int(path.stem[:2])
    rows, errata = TAUGHT.get(lesson, (set(), set()))
    exercises = [exercise for exercise in catalogue().values() if exercise.lesson == lesson]
    tagged = Counter(tag for cell in notebook.cells for tag in tags(cell))
    run = {tag for cell in code(notebook) for tag in tags(cell)}
    taught = {int(tag[4:]) for tag in tagged if tag.startswith("row-")}
    taught |= {row for exercise in exercises for row in exercise.rows}
    assert rows - taught == set()
    assert errata - run == set()


@every_lesson
def test_prose_is_short(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert len(cell.source.split()) <= 220, cell.id
            assert max(map(len, cell.source.splitlines())) <= 400, cell.id
    ids = [cell.id for cell in read(path).cells]
    assert len(set(ids)) == len(ids)


def test_there_is_one_notebook_a_lesson_and_no_copy_with_answers():
    assert [path.stem[:2] for path in lessons()] == sorted({path.stem[:2] for path in lessons()})
    assert sorted(NOTEBOOKS.glob("*.ipynb")) == lessons()
    for path in lessons():
        assert json.loads(path.read_text(encoding="utf-8"))["nbformat"] == 4
