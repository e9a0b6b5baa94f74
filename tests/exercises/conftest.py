"""Progress of the tests goes to a folder of its own, and hints start anew."""

import pytest

import rlhf_lab.exercises


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(rlhf_lab.exercises, "_hints_shown", {})
    return tmp_path / "data"
