"""PPO's dashboard, live: one figure in a notebook that is redrawn in place while a trainer trains."""

from __future__ import annotations

import time

from transformers import TrainerCallback

from rlhf_lab.figures.rollout import curves_of, dashboard


class LiveDashboard(TrainerCallback):
    """`PPOTrainer(..., callbacks=[LiveDashboard()])`: its log as curves, under the running cell.

    Does nothing where there is no notebook to draw in (a script, a terminal, a process beside the first).

    Args:
        label: what the run is called in the legend.
        beside: label -> curves of runs to compare with, as `figures.rollout.dashboard` takes them.
        every: seconds at least between two drawings; the last one is always made.
    """

    def __init__(self, label: str = "this run", beside: dict | None = None, every: float = 1.0) -> None:
        self.label, self.beside, self.every = label, beside or {}, every
        self._handle, self._drawn = None, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Forget what an earlier run has shown: this one gets a figure of its own."""
        self._handle, self._drawn = None, 0.0

    def on_log(self, args, state, control, **kwargs):
        """Draw, unless that was just done."""
        if time.monotonic() - self._drawn >= self.every:
            self._draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        """Draw all of it."""
        self._draw(state)

    def _draw(self, state) -> None:
        if not state.is_world_process_zero or not _in_notebook():
            return
        from IPython.display import display

        figure = dashboard({self.label: curves_of(state.log_history)} | self.beside)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
        self._drawn = time.monotonic()


def _in_notebook() -> bool:
    """Whether a kernel runs this, so that a figure can be shown and replaced."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None
