"""The lessons' graded exercises: check, hint, solution, progress.

    check("elo_probability", elo_probability)   # passed; or what went wrong, on the smallest input that shows it
    hint("elo_probability")                     # one more hint each time
    solution("elo_probability")                 # the source that the tests grade
    progress()                                  # the map of the course, with what is done
    export_progress("mine.json"); import_progress("mine.json")

Each shows itself as the last line of a cell. `check` never raises, whatever it is given. Importing this package is
instant: the lessons' exercises, and torch with them, load when the first of these functions is called.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lab.errors import UserError
from rlhf_lab.exercises.display import Block, fill

if TYPE_CHECKING:
    from rlhf_lab.exercises.exercise import Exercise
    from rlhf_lab.exercises.grading import Verdict

__all__ = [
    "check",
    "export_progress",
    "heading",
    "hint",
    "import_progress",
    "names",
    "progress",
    "solution",
    "stub",
]

_hints_shown: dict[str, int] = {}


def check(name: str, answer: Any) -> Verdict:
    """Grade an answer: the learner's function for most exercises, a number or a word for some.

    Functions are called with positional arguments on copies of seeded inputs, for at most 10 seconds in all. torch
    tensors, numpy arrays and Python numbers are taken alike, except where a gradient must flow: then the answer has to
    be of torch operations. The result is kept for `progress`; an untouched stub does not count as an attempt.
    """
    from rlhf_lab.exercises import store
    from rlhf_lab.exercises.grading import Verdict, grade

    exercise = _find(name)
    if isinstance(exercise, Block):
        return Verdict(exercise.title, exercise.body, exercise.tone, str(name), "unknown")
    try:
        verdict = grade(exercise, answer)
    except Exception as error:  # a fault of ours must not look like one of the learner's
        text = f"{exercise.name}: {type(error).__name__}: {error}\nPlease report it."
        return Verdict("The grader itself failed", text, "warn", exercise.name, "unknown")
    if verdict.status == "untried":
        return verdict
    try:
        store.record(exercise.name, passed=verdict.passed)
    except (UserError, OSError) as error:
        reason = getattr(error, "what", None) or getattr(error, "strerror", None) or type(error).__name__
        note = f"\n\n(Not kept for progress(): {reason}. Set RLHF_LAB_DATA to a folder that can be written.)"
        return replace(verdict, body=verdict.body + note)
    return verdict


def hint(name: str) -> Block:
    """The hints so far and one more, until there are no more."""
    exercise = _find(name)
    if isinstance(exercise, Block):
        return exercise
    shown = min(_hints_shown.get(exercise.name, 0) + 1, len(exercise.hints))
    _hints_shown[exercise.name] = shown
    lines = [fill(f"{i}. {text}", "   ") for i, text in enumerate(exercise.hints[:shown], start=1)]
    left = len(exercise.hints) - shown
    lines.append(
        f"\n{left} more: call hint again." if left else f'\nThat was the last. solution("{exercise.name}") shows it.'
    )
    return Block(f"Hint {shown} of {len(exercise.hints)} · {exercise.name}", "\n".join(lines), "plain")


def solution(name: str) -> Block:
    """The source of the function that answers are graded against; for a value, the value and where it comes from."""
    from rlhf_lab.exercises.grading import solution_text

    exercise = _find(name)
    return (
        exercise
        if isinstance(exercise, Block)
        else Block(f"Solution · {exercise.name}", solution_text(exercise), "plain")
    )


def progress() -> Block:
    """The map of the course: every exercise, whether it is passed, tried or new, and what could come next."""
    from rlhf_lab.exercises import store
    from rlhf_lab.exercises.exercise import catalogue

    return store.course_map(catalogue().values())


def export_progress(path: str | Path) -> str:
    """Write the progress to a file of your choice (JSON), to take it to another machine.

    Raises UserError when the file cannot be written.
    """
    from rlhf_lab.exercises import store

    return store.export_to(Path(path))


def import_progress(path: str | Path) -> str:
    """Add the progress of an exported file to what is here; nothing that is passed on either side is lost.

    Raises UserError when the file is missing or is no exported progress; what is here stays as it was.
    """
    from rlhf_lab.exercises import store

    return store.import_from(Path(path))


def names(lesson: int | None = None) -> list[str]:
    """Names of the exercises, in the order of the course; of one lesson only, if given."""
    from rlhf_lab.exercises.exercise import catalogue

    return [name for name, exercise in catalogue().items() if lesson in (None, exercise.lesson)]


def stub(name: str) -> str:
    """The text of the notebook cell of an exercise: the stub and its call of check. KeyError for an unknown name."""
    from rlhf_lab.exercises.exercise import catalogue

    return catalogue()[name].cell


def heading(name: str) -> str:
    """The markdown that stands above that cell. KeyError for an unknown name."""
    from rlhf_lab.exercises.exercise import catalogue

    return catalogue()[name].heading


def _find(name: str) -> Exercise | Block:
    from rlhf_lab.exercises.exercise import catalogue

    exercises = catalogue()
    if isinstance(name, str) and name in exercises:
        return exercises[name]
    close = get_close_matches(str(name), exercises, n=1)
    advice = f'Did you mean "{close[0]}"?' if close else "progress() lists them."
    shown = f'"{name}"' if isinstance(name, str) else f"{type(name).__name__} (the name, in quotes, comes first)"
    return Block("No such exercise", f"{shown}. {advice}", "warn")
