"""What an exercise is, and the list of all of them.

A lesson's file writes each exercise as its stub, decorated with everything the grader needs. The reference is the
package's own public function wherever there is one, and a usual mistake is the wrong answer itself as code: whoever
gives the same outputs on the test inputs made that mistake.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LESSONS = {
    0: "Start here",
    1: "Why preferences",
    2: "Bradley-Terry",
    3: "PPO, clipped",
    4: "DPO, derived",
    5: "SFT a Llama",
    6: "A reward model",
    7: "PPO on a Llama",
    8: "DPO on a Llama",
    9: "RLHF against DPO",
}

_catalogue: dict[str, Exercise] = {}


@dataclass(frozen=True)
class Mistake:
    """A usual wrong answer.

    name: what it is, as a teacher would call it. says: what to look at, with the line of maths.
    answer: the wrong answer itself, a function or a value.
    """

    name: str
    says: str
    answer: Any


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One exercise. `cases` gives the inputs (None: the answer is a value, not a function).

    rows, errata: what of the article it exercises (numbers of coverage.md).
    differentiable: arguments through which the gradient must be the reference's. constants: arguments that no gradient
    may reach, even if they carry one. canonical: brings answers that mean the same to one form, or raises TypeError.
    """

    name: str
    lesson: int
    title: str
    difficulty: int  # 1 to 5
    importance: int  # 1 to 5
    minutes: int
    rows: tuple[int, ...]
    errata: tuple[str, ...] = ()
    maths: str
    hints: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    reference: Callable
    source: str  # the stub
    parameters: tuple[str, ...] = ()
    cases: Callable[[], Sequence[tuple]] | None = None
    options: Mapping[str, str] | None = None
    canonical: Callable[[Any], Any] | None = None
    tolerance: float = 1e-5
    differentiable: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()

    @property
    def cell(self) -> str:
        """The text of its notebook cell."""
        return f'{self.source}\n\n\ncheck("{self.name}", {self.name})'

    @property
    def effort(self) -> str:
        """Difficulty, importance, minutes, in words."""
        return f"difficulty {self.difficulty}/5, importance {self.importance}/5, {self.minutes} min"

    @property
    def heading(self) -> str:
        """Markdown above the cell."""
        return (
            f"### Exercise: {self.title}\n\n"
            f"Difficulty {self.difficulty}/5 · Importance {self.importance}/5 · {self.minutes} minutes"
        )


def function_exercise(**fields: Any) -> Callable[[Callable], Exercise]:
    """Decorate a stub: the exercise takes its name, its parameters and its text."""

    def register(stub: Callable) -> Exercise:
        text = inspect.getsource(stub)
        source = text[text.index(f"def {stub.__name__}(") :].rstrip()
        parameters = tuple(inspect.signature(stub).parameters)
        return _add(Exercise(name=stub.__name__, source=source, parameters=parameters, **fields))

    return register


def value_exercise(*, name: str, question: str, **fields: Any) -> Exercise:
    """An exercise whose answer is a number or numbers, or, with `options`, one of these words.

    `reference` takes no arguments and gives the right answer.
    """
    lines = [f"# {line}" for line in textwrap.wrap(" ".join(question.split()), width=110)]
    options = fields.get("options")
    if options:
        width = max(map(len, options)) + 2
        quoted = {f'"{option}"': meaning for option, meaning in options.items()}
        lines += [f"#   {option:<{width}}  {meaning}" for option, meaning in quoted.items()]
    return _add(Exercise(name=name, source="\n".join([*lines, f"{name} = ..."]), **fields))


def catalogue() -> dict[str, Exercise]:
    """All exercises by name, in the order of the course. The first call imports the lessons, and torch with them."""
    for number in LESSONS:
        importlib.import_module(f"rlhf_lab.exercises.lesson{number:02}")
    return dict(sorted(_catalogue.items(), key=lambda item: item[1].lesson))


def _add(exercise: Exercise) -> Exercise:
    if exercise.name in _catalogue:
        raise ValueError(f"two exercises are called {exercise.name}")
    _catalogue[exercise.name] = exercise
    return exercise
