"""The live dashboard: one figure, replaced in place, in a kernel; nothing at all elsewhere."""

from types import SimpleNamespace

import IPython.display
import nbformat
import pytest
from nbclient import NotebookClient

import rlhf_lab.dashboard
from rlhf_lab.dashboard import LiveDashboard
from rlhf_lab.figures.rollout import WATCHED

CELL = """
from types import SimpleNamespace
from rlhf_lab.dashboard import LiveDashboard
from rlhf_lab.figures.rollout import WATCHED

live, log = LiveDashboard("mine", every=0), []
state = SimpleNamespace(is_world_process_zero=True, log_history=log)
live.on_train_begin(None, state, None)
for episode in (8, 16, 24):
    log.append({"episode": episode} | {name: episode / 8 for name in WATCHED})
    live.on_log(None, state, None)
live.on_train_end(None, state, None)
"""


def state(first=True):
    return SimpleNamespace(is_world_process_zero=first, log_history=[dict.fromkeys(WATCHED, 1.0) | {"episode": 8}])


@pytest.fixture
def shown(monkeypatch):
    """What has been displayed and updated, with a display that is there."""
    calls = []
    handle = SimpleNamespace(update=lambda figure: calls.append("update"))
    monkeypatch.setattr(IPython.display, "display", lambda figure, display_id: calls.append("display") or handle)
    monkeypatch.setattr(rlhf_lab.dashboard, "_in_notebook", lambda: True)
    return calls


def run(live, state):
    live.on_train_begin(None, state, None)
    live.on_log(None, state, None)
    live.on_log(None, state, None)
    live.on_train_end(None, state, None)


def test_one_figure_a_run_is_shown_once_and_then_replaced(shown):
    live = LiveDashboard(every=0)
    run(live, state())
    assert shown == ["display", "update", "update"]
    run(live, state())
    assert shown[3:] == ["display", "update", "update"]


def test_it_is_drawn_no_more_often_than_asked_but_always_at_the_end(shown):
    run(LiveDashboard(every=1000), state())
    assert shown == ["display", "update"]


def test_without_a_notebook_or_on_another_process_nothing_is_shown(shown, monkeypatch):
    run(LiveDashboard(every=0), state(first=False))
    monkeypatch.undo()
    run(LiveDashboard(every=0), state())  # under pytest there is no kernel
    assert shown == []


def test_in_a_kernel_the_cell_ends_with_one_picture_of_the_whole_run():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (output,) = [o for o in notebook.cells[0].outputs if o.output_type == "display_data"]
    assert output.metadata["image/png"]["alt"] == output.data["text/plain"]
    assert "Score (reward units): mine 1 to 3" in output.data["text/plain"]
