"""Call a learner's function and note everything that happened: result, exception, endless loop, inputs changed.

The time limit: in the main thread of Linux and macOS (a notebook cell, a script, pytest) an interval timer interrupts
the call wherever Python code runs, and fires again in case a bare `except:` swallowed it. Elsewhere (Windows, another
thread) the call runs in a daemon thread that we stop waiting for and ask to end. In neither does a single long call
into compiled code (a huge matrix product, time.sleep on Windows) end before it returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import linecache
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from rlhf_lab.exercises.display import as_numbers


class TimeUp(BaseException):
    """The time limit. Not an Exception, so that `except Exception` in the learner's code lets it through."""

    place = ""


@dataclass
class Outcome:
    """What came of one call. place: the line of the learner's code, for an exception or an endless loop."""

    value: Any = None
    error: BaseException | None = None
    place: str = ""
    changed: tuple[int, ...] = ()  # positions of arguments that were changed in place

    @property
    def late(self) -> bool:
        """Whether the time limit ended it."""
        return isinstance(self.error, TimeUp)


def observe(function: Callable, arguments: tuple, seconds: float, learner: Callable | None = None) -> Outcome:
    """Call function(*copies of arguments) for at most `seconds`. Raises nothing but KeyboardInterrupt.

    `learner` is the learner's own function, where `function` only wraps it: its lines are the ones to name.
    """
    learner = function if learner is None else learner
    given = [copy(argument) for argument in arguments]
    outcome = Outcome()
    try:
        with _quiet():
            outcome.value = call_within(seconds, function, given, learner)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # exit() and pytest's outcomes too: it is their code
        outcome.error = error
        outcome.place = getattr(error, "place", "") or _place(_frames(error), learner)
    outcome.changed = tuple(i for i, (a, b) in enumerate(zip(arguments, given, strict=True)) if not _is_unchanged(a, b))
    return outcome


def call_within(seconds: float, function: Callable, arguments: Sequence, learner: Callable) -> Any:
    """function(*arguments), or TimeUp."""
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        return _call_by_alarm(seconds, function, arguments)
    return _call_by_thread(seconds, function, arguments, learner)


def _call_by_alarm(seconds: float, function: Callable, arguments: Sequence) -> Any:
    armed, here = True, sys._getframe()

    def ring(_signal: int, frame: FrameType | None) -> None:
        if armed and frame is not here:  # not between two lines of the clean-up below
            raise TimeUp

    def call() -> Any:  # a frame of its own, for functions written in C
        return function(*arguments)

    handler_before = signal.signal(signal.SIGALRM, ring)
    started = time.monotonic()
    delay_before, interval_before = signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
    try:
        return call()
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before if handler_before is not None else signal.SIG_DFL)
        if delay_before:  # someone else's timer (a test's time limit, say) goes on
            remaining = max(delay_before - (time.monotonic() - started), 0.001)
            signal.setitimer(signal.ITIMER_REAL, remaining, interval_before)


def _call_by_thread(seconds: float, function: Callable, arguments: Sequence, learner: Callable) -> Any:
    came: dict[str, Any] = {}

    def work() -> None:
        try:
            came["value"] = function(*arguments)
        except BaseException as error:
            came["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        late = TimeUp()
        late.place = _place(_stack(sys._current_frames().get(thread.ident)), learner)
        # CPython only: raise in that thread when it next runs Python code, so that it stops eating a core.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
        thread.join(0.5)
        raise late
    if "error" in came:
        raise came["error"]
    return came["value"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def copy(argument: Any) -> Any:
    """A copy that shares nothing: tensors (with their requires_grad), arrays, lists; the rest cannot be changed."""
    if hasattr(argument, "detach"):
        return argument.detach().clone().requires_grad_(argument.requires_grad)
    if isinstance(argument, np.ndarray):
        return argument.copy()
    if isinstance(argument, list):
        return [copy(part) for part in argument]
    return argument


def _is_unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, list):
        return (
            isinstance(after, list)
            and len(before) == len(after)
            and all(_is_unchanged(a, b) for a, b in zip(before, after, strict=True))
        )
    if hasattr(before, "detach") or isinstance(before, np.ndarray):
        a, b = as_numbers(before), as_numbers(after)
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return before is after or before == after


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _stack(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    frames = []
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return iter(frames[::-1])


def _place(frames: Iterator[tuple[FrameType, int]], function: Callable) -> str:
    """The innermost line in the file (or cell) of the learner's function: `line 3 of gae: x = y / 0`."""
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return ""
    theirs = [(f, line) for f, line in frames if f.f_code.co_filename == code.co_filename]
    if not theirs:
        return ""
    frame, number = theirs[-1]
    text = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    where = f"line {number}, in {frame.f_code.co_name}"
    return f"{where}: {text}" if text else where
