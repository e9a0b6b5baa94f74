"""Progress: the map, and that nothing is lost to crashes, damage, or a move to another machine."""

import json
import os
import re
from pathlib import Path

import pytest

from rlhf_lab import exercises, files
from rlhf_lab.errors import UserError
from rlhf_lab.exercises import check, export_progress, import_progress, names, progress, store


def line_of(name):
    return next(line for line in str(progress()).splitlines() if f" {name} " in line)


def test_the_map_lists_every_exercise_with_its_lesson_and_what_comes_next():
    text = str(progress())
    assert text.startswith(f"0 of {len(names())} exercises passed")
    for title in ("00 Start here: 0 of 1", "02 Bradley-Terry: 0 of 8", "04 DPO, derived: 0 of 9"):
        assert title in text
    assert all(f"[ ] {name} " in text for name in names())
    assert "difficulty 3/5, importance 5/5, 15 min" in line_of("dpo_loss")
    assert "Next: gold_from_terms, 3 minutes" in text


def test_passes_and_attempts_are_kept():
    check("cycle", 0.8)
    assert line_of("cycle").strip().startswith("[~] cycle") and line_of("cycle").endswith("1 try")
    check("cycle", 0.2)
    assert line_of("cycle").endswith("2 tries")
    check("cycle", 0.5)
    assert "[x] cycle" in line_of("cycle")
    check("cycle", 0.8)  # playing on with it takes nothing away
    assert "[x] cycle" in line_of("cycle") and str(progress()).startswith(f"1 of {len(names())}")
    entry = json.loads((store.data_dir() / store.FILE).read_text())["exercises"]["cycle"]
    assert entry["attempts"] == 4 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry["passed"])


def test_all_passed_says_so():
    for name in names():
        store.record(name, passed=True)
    assert str(progress()).startswith(f"{len(names())} of {len(names())}") and "All passed." in str(progress())


def test_no_folder_is_shown(data_folder):
    check("cycle", 0.5)
    (data_folder / store.FILE).write_text("{")
    for text in (str(progress()), progress()._repr_html_(), export_progress(data_folder / "out.json")):
        assert str(data_folder) not in text and str(Path.home()) not in text and os.sep + "tmp" not in text


@pytest.mark.parametrize("damage", ["", "{", '{"exercises": {"cy', "[]", '{"exercises": {"cycle": 3}}', "\x00" * 40])
def test_a_damaged_file_is_set_aside_and_the_spare_takes_its_place(damage, data_folder):
    check("cycle", 0.5)
    check("ipo_margin", 1.0)
    (data_folder / store.FILE).write_text(damage)
    text = str(progress())
    assert "was damaged and is kept as progress.damaged-1.json; the spare copy took its place" in text
    assert "[x] cycle" in text and "[~] ipo_margin" in text
    assert (data_folder / "progress.damaged-1.json").read_text() == damage
    check("what_beta_does", "closer")  # and life goes on, with everything in it
    text = str(progress())
    assert "damaged" not in text and "[x] cycle" in text and "[x] what_beta_does" in text


def test_bytes_that_are_no_text_are_damage_too(data_folder):
    check("cycle", 0.5)
    (data_folder / store.FILE).write_bytes(b"\xff\xfe\x00")
    assert "[x] cycle" in str(progress())


def test_both_files_damaged_destroys_neither_and_starts_anew(data_folder):
    check("cycle", 0.5)
    (data_folder / store.FILE).write_text("main")
    (data_folder / store.SPARE).write_text("spare")
    text = str(progress())
    assert "There is no other copy: this map begins anew" in text and text.startswith(f"0 of {len(names())}")
    check("ipo_margin", 2.5)
    (data_folder / store.FILE).write_text("again")
    assert "[x] ipo_margin" in str(progress())
    kept = {path.read_text() for path in data_folder.glob("progress.damaged-*.json")}
    assert kept == {"main", "spare", "again"}


def test_a_missing_file_comes_back_from_the_spare(data_folder):
    check("cycle", 0.5)
    (data_folder / store.FILE).unlink()
    assert "is missing; the spare copy took its place" in str(progress()) and "[x] cycle" in str(progress())


@pytest.mark.parametrize("crash_at", [0, 1])
def test_a_crash_while_writing_leaves_what_was_there(crash_at, monkeypatch, data_folder):
    """The process dies before the first or the second move into place; no half-written file is left to be read."""
    check("cycle", 0.5)
    moves, replace = [], os.replace

    def dying(*args):
        moves.append(args)
        if len(moves) > crash_at:
            raise OSError("killed")
        replace(*args)

    monkeypatch.setattr(files.os, "replace", dying)
    verdict = check("ipo_margin", 2.5)
    assert verdict.passed and "Not kept for progress()" in str(verdict)
    monkeypatch.setattr(files.os, "replace", replace)
    text = str(progress())
    assert "[x] cycle" in text and "damaged" not in text
    assert ("[x] ipo_margin" in text) == (crash_at == 1)


def test_exported_progress_is_merged_on_the_other_side(tmp_path, monkeypatch):
    check("cycle", 0.5)
    check("ipo_margin", 1.0)
    check("dpo_loss", lambda: 1)
    file = tmp_path / "mine.json"
    assert export_progress(file) == "3 exercises (1 passed) written to mine.json."

    monkeypatch.setenv("RLHF_LAB_DATA", str(tmp_path / "another machine"))
    check("ipo_margin", 2.5)
    for _ in range(3):
        check("dpo_loss", lambda: 1)
    assert (
        import_progress(str(file))
        == "3 exercises (1 passed) read from mine.json; now there are 3 exercises (2 passed)."
    )
    text = str(progress())
    assert "[x] cycle" in text and "[x] ipo_margin" in text
    assert line_of("dpo_loss").endswith("3 tries")
    before = text
    import_progress(file)  # again changes nothing
    assert str(progress()) == before


def test_what_a_newer_version_wrote_is_not_lost(data_folder):
    data_folder.mkdir()
    entry = {"attempts": 2, "passed": "2027-01-01T00:00:00+00:00", "stars": 3}
    (data_folder / store.FILE).write_text(json.dumps({"version": 9, "exercises": {"of_the_future": entry}}))
    check("cycle", 0.5)
    kept = json.loads((data_folder / store.FILE).read_text())["exercises"]
    assert kept["of_the_future"] == entry and "cycle" in kept
    assert str(progress()).startswith(f"1 of {len(names())}")


@pytest.mark.parametrize(
    "content", [None, "no json", "{}", '{"exercises": {"cycle": {"attempts": -1, "passed": null}}}']
)
def test_importing_what_is_no_progress_is_refused_and_changes_nothing(content, tmp_path):
    check("cycle", 0.5)
    before = str(progress())
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        import_progress(file)
    assert "\n" not in str(caught.value) and "export_progress" in str(caught.value)
    assert str(progress()) == before


def test_the_folder_is_the_environments_or_the_platforms(monkeypatch, data_folder):
    assert files.data_dir() == data_folder
    monkeypatch.setenv("RLHF_LAB_DATA", "~/elsewhere")
    assert files.data_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("RLHF_LAB_DATA")
    assert "rlhf_lab" in str(files.data_dir())


def test_the_map_is_html_too():
    page = exercises.progress()._repr_html_()
    assert f"0 of {len(names())} exercises passed" in page and "[ ] dpo_loss" in page
