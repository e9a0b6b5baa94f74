"""From an answer to a verdict: untried, passed, or what went wrong on the smallest input that shows it.

A mistake is recognised by behaviour: the answer's outputs on all test inputs are those of a named wrong answer.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_lab.exercises.display import Block, as_numbers, fill, labelled, show
from rlhf_lab.exercises.exercise import Exercise, Mistake
from rlhf_lab.exercises.running import Outcome, copy, observe

SECONDS = 10.0  # for all calls of one check together


@dataclass(frozen=True, repr=False)
class Verdict(Block):
    """status: passed, failed, untried, or unknown (no such exercise, a fault of the grader).

    mistake: the name of the usual mistake that was recognised, if any.
    """

    exercise: str = ""
    status: str = ""
    mistake: str | None = None

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class Problem:
    """Why an output is not the expected one. kind: exception, nothing, type, shape, not finite, value."""

    kind: str
    text: str


def grade(exercise: Exercise, answer: Any, seconds: float | None = None) -> Verdict:
    """The verdict on an answer; raises nothing for what the answer is or does."""
    seconds = SECONDS if seconds is None else seconds
    if answer is None or answer is Ellipsis or answer is NotImplemented:
        return _untried(exercise)
    if exercise.cases is None:
        return _grade_value(exercise, answer)
    if not callable(answer):
        return _failed(
            exercise,
            f"This exercise takes the function itself, and got {_kind(answer)}.\n"
            f'Write check("{exercise.name}", {exercise.name}), with no brackets after the function.',
        )
    if _is_bare_stub(answer):
        return _untried(exercise)
    if wrong := _wrong_signature(exercise, answer):
        return _failed(exercise, wrong)
    return _grade_function(exercise, answer, seconds)


# --- functions ----------------------------------------------------------------------------------------------------


def _grade_function(exercise: Exercise, answer: Callable, seconds: float) -> Verdict:
    cases = cases_of(exercise.name, exercise)
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for case in cases:
        outcomes.append(observe(answer, case, max(deadline - time.monotonic(), 0.05)))
        if _is_unwritten(outcomes[-1].error) or outcomes[-1].value is Ellipsis:
            return _untried(exercise)
        if outcomes[-1].late:
            return _too_slow(exercise, case, outcomes[-1], seconds)

    expected = outcomes_of(exercise.name, exercise, exercise.reference)
    for number, (case, outcome, right) in enumerate(zip(cases, outcomes, expected, strict=True), start=1):
        problem = _problem(exercise, right, outcome)
        if problem is not None:
            mistake = _recognise(exercise, outcomes)
            return _failed(exercise, _report(exercise, number, case, outcome, right, problem), mistake)
    for case, outcome in zip(cases, outcomes, strict=True):
        if outcome.changed:
            return _changed_inputs(exercise, case, outcome)
    if exercise.differentiable or exercise.constants:
        for case in cases:
            verdict = _grade_gradient(exercise, answer, case, max(deadline - time.monotonic(), 0.05), seconds)
            if verdict is not None:
                return verdict
    and_gradient = " and their gradients" if exercise.differentiable else ""
    return Verdict(
        f"Passed · {exercise.name}",
        f"{exercise.title}. Right on {len(cases)} inputs{and_gradient}.\n{fill(exercise.maths)}",
        "good",
        exercise.name,
        "passed",
    )


@functools.cache
def _cached_cases(_name: str, cases: Callable) -> tuple[tuple, ...]:
    return tuple(sorted(cases(), key=_size))


def cases_of(name: str, exercise: Exercise) -> tuple[tuple, ...]:
    """The test inputs, smallest first; always the same."""
    return _cached_cases(name, exercise.cases)


@functools.cache
def _cached_outcomes(name: str, cases: Callable, function: Callable) -> tuple[Outcome, ...]:
    return tuple(observe(function, case, 60.0) for case in _cached_cases(name, cases))


def outcomes_of(name: str, exercise: Exercise, function: Callable) -> tuple[Outcome, ...]:
    """What a function of ours (reference, or a mistake's answer) gives on the test inputs."""
    return _cached_outcomes(name, exercise.cases, function)


def _size(case: tuple) -> int:
    return sum(int(np.size(as_numbers(x))) if not isinstance(x, str) else 1 + len(x) // 20 for x in _flat(case))


def _flat(parts: tuple | list) -> Iterator[Any]:
    for part in parts:
        yield from _flat(part) if isinstance(part, (tuple, list)) else (part,)


def _problem(exercise: Exercise, right: Outcome, outcome: Outcome) -> Problem | None:
    if outcome.error is not None:
        return Problem("exception", f"raised    {_raised(outcome)}")
    return difference(right.value, outcome.value, exercise)


def difference(expected: Any, got: Any, exercise: Exercise) -> Problem | None:
    """What keeps `got` from being `expected`, None if nothing does."""
    if got is None:
        return Problem("nothing", "got       None: is there a `return`?")
    if exercise.canonical is not None:
        try:
            got = exercise.canonical(got)
        except (TypeError, ValueError) as error:
            return Problem("type", str(error))
        return None if got == exercise.canonical(expected) else Problem("value", "")
    if isinstance(expected, tuple):
        if not isinstance(got, (tuple, list)) or len(got) != len(expected):
            return Problem("type", f"expected {len(expected)} results, as in `return a, b`, got {_kind(got)}")
        for number, (wanted_part, part) in enumerate(zip(expected, got, strict=True), start=1):
            problem = difference(wanted_part, part, exercise)
            if problem is not None:
                said = "it is None" if problem.kind == "nothing" else problem.text
                kind = "type" if problem.kind == "nothing" else problem.kind
                return Problem(kind, f"result {number} of {len(expected)}: {said}" if said else "")
        return None
    try:
        actual = as_numbers(got)
    except Exception:  # a ragged list, a string, an object with ideas of its own
        return Problem("type", f"expected {_form(as_numbers(expected))}, got {_kind(got)}")
    wanted = as_numbers(expected)
    if actual.shape != wanted.shape:
        return Problem("shape", f"expected {_form(wanted)}, got {_form(actual)}")
    if np.isfinite(wanted).all() and not np.isfinite(actual).all():
        kind = "nan" if np.isnan(actual).any() else "inf"
        return Problem(
            "not finite", f"Where does the {kind} come from? An overflow, log(0), 0 / 0, or a nan at the padding?"
        )
    return None if _close(actual, wanted, exercise.tolerance) else Problem("value", "")


def _close(actual: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    return bool(np.allclose(actual, wanted, rtol=tolerance, atol=tolerance, equal_nan=True))


def _recognise(exercise: Exercise, outcomes: list[Outcome]) -> Mistake | None:
    if all(outcome.error is not None for outcome in outcomes):
        return None  # it computes nothing that could be compared
    for mistake in exercise.mistakes:
        wrong = outcomes_of(exercise.name, exercise, mistake.answer)
        if all(_alike(exercise, a, b) for a, b in zip(outcomes, wrong, strict=True)):
            return mistake
    return None


def _alike(exercise: Exercise, a: Outcome, b: Outcome) -> bool:
    """The same output. An overflow is the same whether Python raises it or numpy and torch give inf or nan."""
    if a.error is not None or b.error is not None:
        return (_is_overflow(a) and _is_overflow(b)) or (a.error is not None and type(a.error) is type(b.error))
    return difference(b.value, a.value, exercise) is None


def _is_overflow(outcome: Outcome) -> bool:
    if outcome.error is not None:
        domain = isinstance(outcome.error, ValueError) and "math domain" in str(outcome.error)
        return domain or isinstance(outcome.error, (OverflowError, ZeroDivisionError))
    try:
        return not np.isfinite(as_numbers(outcome.value)).all()
    except Exception:
        return False


# --- gradients ----------------------------------------------------------------------------------------------------


def _grade_gradient(exercise: Exercise, answer: Callable, case: tuple, left: float, seconds: float) -> Verdict | None:
    """None when the gradient is the reference's through the differentiable arguments and reaches no constant."""
    import torch

    watched = [exercise.parameters.index(name) for name in exercise.differentiable + exercise.constants]
    case = tuple(copy(x).requires_grad_() if i in watched else x for i, x in enumerate(case))
    with torch.enable_grad():
        outcome = observe(lambda *given: (answer(*given), given), case, left, learner=answer)
    if outcome.late:
        return _too_slow(exercise, case, outcome, seconds)
    if outcome.error is not None:
        message = str(outcome.error)
        if isinstance(outcome.error, RuntimeError) and "numpy() on Tensor that requires grad" in message:
            return _no_gradient(exercise, case) if exercise.differentiable else None
        what = "The values are right, but with inputs that require a gradient it raised an exception."
        return _failed(exercise, f"{what}\n{_inputs(exercise, case)}\n\nraised    {_raised(outcome)}")
    inputs = tuple(copy(x) for x in case)
    with torch.enable_grad():
        ours = _gradients(exercise.reference(*inputs), inputs, watched)
        try:
            theirs = _gradients(*outcome.value, watched)
        except RuntimeError as error:  # a tensor that backward needs was changed in place, for one
            what = "The values are right, but the backward pass raised an exception."
            return _failed(exercise, f"{what}\n{_inputs(exercise, case)}\n\nraised    {_raised(Outcome(error=error))}")
    for i in watched:
        name, wanted, got = exercise.parameters[i], ours[i], theirs[i]
        if name in exercise.constants:
            if got is not None and bool((got != 0).any()):
                return _leak(exercise, case, name, got)
        elif got is None:
            if bool((wanted != 0).any()):  # a loop that met only clipped tokens has rightly lost touch with logps
                return _no_gradient(exercise, case, name)
        elif not _close(as_numbers(got), as_numbers(wanted), exercise.tolerance):
            text = (
                f"The values are right, but not the gradient through {name}: is a part of it detached, or taken out of "
                f"torch?\n{_inputs(exercise, case)}\n\n{_expected_and_got(wanted, got, 'gradient ')}"
            )
            return _failed(exercise, text)
    return None


def _gradients(result: Any, inputs: tuple, watched: list[int]) -> dict[int, Any]:
    """d (weighted sum of the outputs) / d each watched input; None where no gradient arrives."""
    import torch

    parts = result if isinstance(result, (tuple, list)) else (result,)
    parts = [part for part in parts if isinstance(part, torch.Tensor) and part.requires_grad]
    if not parts:
        return dict.fromkeys(watched)
    # unequal weights, so that gradients of several outputs cannot cancel
    total = sum((part * torch.linspace(1, 2, max(part.numel(), 1)).to(part).view(part.shape)).sum() for part in parts)
    return dict(zip(watched, torch.autograd.grad(total, [inputs[i] for i in watched], allow_unused=True), strict=True))


def _leak(exercise: Exercise, case: tuple, name: str, gradient: Any) -> Verdict:
    known = next((m for m in exercise.mistakes if m.name == "missing detach"), None)
    says = known.says if known else f"{name} is a constant here: .detach() it, or compute it under torch.no_grad()."
    text = (
        f"The values are right, but a gradient flows back through {name}, where none may.\n"
        f"{_inputs(exercise, case)}\n\n"
        f"expected  no gradient through {name}\n" + labelled("got       gradient", show(gradient))
    )
    return _failed(exercise, text, Mistake("missing detach", says, None))


def _no_gradient(exercise: Exercise, case: tuple, name: str = "") -> Verdict:
    name = name or exercise.differentiable[0]
    text = (
        f"The values are right, but no gradient reaches {name}, so nothing could be trained with it.\n"
        f"{_inputs(exercise, case)}"
    )
    says = "Stay in torch operations from the inputs to the result: no .detach(), .item(), .tolist(), numpy or float()."
    return _failed(exercise, text, Mistake("no gradient", says, None))


# --- values -------------------------------------------------------------------------------------------------------


def _grade_value(exercise: Exercise, answer: Any) -> Verdict:
    right = exercise.reference()
    if callable(answer):
        return _failed(exercise, f"This exercise takes a value, and got a function.\nAssign it: {exercise.name} = ...")
    if exercise.options is not None:
        word = answer.strip().lower() if isinstance(answer, str) else answer
        if not isinstance(word, str) or word not in exercise.options:
            words = ", ".join(f'"{option}"' for option in exercise.options)
            return _failed(exercise, f"Got {show(answer)}. Choose one of {words}.")
        if word != right:
            mistake = next((m for m in exercise.mistakes if m.answer == word), None)
            return _failed(exercise, f'"{word}": {exercise.options[word]}.', mistake)
    else:
        problem = difference(right, answer, exercise)
        if problem is not None:
            mistake = next((m for m in exercise.mistakes if difference(m.answer, answer, exercise) is None), None)
            text = problem.text if problem.kind in ("type", "shape") else labelled("got", show(answer))
            return _failed(exercise, text, mistake)
    return Verdict(
        f"Passed · {exercise.name}", f"{exercise.title}.\n{fill(exercise.maths)}", "good", exercise.name, "passed"
    )


# --- what it says -------------------------------------------------------------------------------------------------


def _untried(exercise: Exercise) -> Verdict:
    return Verdict(
        f"Not tried yet · {exercise.name}",
        f"{exercise.title}: {exercise.effort}.\n"
        f'Write your answer in place of `...` and run the cell again. hint("{exercise.name}") gives a hint.',
        "plain",
        exercise.name,
        "untried",
    )


def _failed(exercise: Exercise, text: str, mistake: Mistake | None = None) -> Verdict:
    parts = [f"A usual mistake: {mistake.name}.\n{fill(mistake.says)}"] if mistake else []
    parts.append(text)
    # of a value, the line of maths is the answer: it comes with the pass
    maths = "" if exercise.cases is None else fill(f"The maths: {exercise.maths}", "           ") + "\n"
    parts.append(f'{maths}hint("{exercise.name}") helps.')
    name = mistake.name if mistake else None
    return Verdict(f"Not yet · {exercise.name}", "\n\n".join(parts), "warn", exercise.name, "failed", name)


def _report(exercise: Exercise, number: int, case: tuple, outcome: Outcome, right: Outcome, problem: Problem) -> str:
    lines = [f"The smallest of the test inputs that shows it (number {number}):\n{_inputs(exercise, case)}\n"]
    if problem.kind in ("exception", "nothing"):
        lines.append(f"expected  {show(right.value)}".replace("\n", "\n" + " " * 10))
        lines.append(problem.text)
    else:
        if problem.text:
            lines.append(problem.text)
        lines.append(_expected_and_got(right.value, outcome.value))
    if outcome.changed:
        names = ", ".join(exercise.parameters[i] for i in outcome.changed)
        lines.append(f"It also changes its input in place: {names}. Work on a copy.")
    return "\n".join(lines)


def _changed_inputs(exercise: Exercise, case: tuple, outcome: Outcome) -> Verdict:
    names = ", ".join(exercise.parameters[i] for i in outcome.changed)
    text = f"The values are right, but the call changes its input: {names}.\n{_inputs(exercise, case)}"
    says = "Whoever calls it still needs that input. Work on a copy, and beware of +=, x[...] = and sort()."
    return _failed(exercise, text, Mistake("changed in place", says, None))


def _too_slow(exercise: Exercise, case: tuple, outcome: Outcome, seconds: float) -> Verdict:
    text = f"Still running after {seconds:g} seconds, so it was stopped. Does a loop never end?"
    if outcome.place:
        text += f"\nIt was at {outcome.place}"
    return _failed(exercise, f"{text}\n\n{_inputs(exercise, case)}")


def _inputs(exercise: Exercise, case: tuple) -> str:
    return "\n".join(
        "  " + labelled(name, show(value)).replace("\n", "\n  ")
        for name, value in zip(exercise.parameters, case, strict=True)
    )


def _expected_and_got(expected: Any, got: Any, of: str = "") -> str:
    digits = 4
    while show(expected, digits) == show(got, digits) and digits < 12:
        digits += 2
    indent = "\n" + " " * (10 + len(of))
    return "\n".join(
        f"{word:<10}{of}" + show(value, digits).replace("\n", indent)
        for word, value in (("expected", expected), ("got", got))
    )


def _wrong_signature(exercise: Exercise, answer: Callable) -> str:
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):  # some built-ins have none
        return ""
    try:
        signature.bind(*exercise.parameters)
    except TypeError:
        taken = ", ".join(signature.parameters)
        return (
            f"It is called with {len(exercise.parameters)} arguments: ({', '.join(exercise.parameters)}).\n"
            f"Yours takes ({taken}). Other names are fine, the number and the order are not."
        )
    return ""


def _is_unwritten(error: BaseException | None) -> bool:
    """`raise NotImplementedError`, which torch raises too, with these words, for an operation on another type."""
    return isinstance(error, NotImplementedError) and "not implemented for" not in str(error)


def _is_bare_stub(answer: Callable) -> bool:
    """Whether the body does nothing but return None: `...`, `pass` or only a docstring."""
    code = getattr(answer, "__code__", None)
    if code is None or code.co_code not in _bare_bytecodes():
        return False
    return set(code.co_consts) - {answer.__doc__} <= {None}  # `return 0.5` differs from `return` in its constants only


@functools.cache
def _bare_bytecodes() -> set[bytes]:
    """The bytecode of stubs under this Python (it changes from version to version)."""
    namespace: dict[str, Any] = {}
    for i, body in enumerate(("...", "pass", "return", '"words"', '"words"\n    ...', '"words"\n    pass')):
        exec(f"def stub{i}():\n    {body}", namespace)
    return {value.__code__.co_code for name, value in namespace.items() if name.startswith("stub")}


def _raised(outcome: Outcome) -> str:
    message = (str(outcome.error).splitlines() or ["(no message)"])[0]
    return f"{type(outcome.error).__name__}: {message}" + (f"\n{'':<10}{outcome.place}" if outcome.place else "")


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _form(array: np.ndarray) -> str:
    return "one number" if array.ndim == 0 else f"shape {tuple(array.shape)}"


# --- solutions ----------------------------------------------------------------------------------------------------


def solution_text(exercise: Exercise) -> str:
    """The reference's source, with the private helpers it calls (checks of its arguments left out)."""
    parts = [fill(exercise.maths)]
    if exercise.cases is None:
        value = exercise.reference()
        parts.append(labelled(exercise.name, show(value, 6)))
        if exercise.options is not None:
            return "\n\n".join([*parts, f"{exercise.options[value]}."])
    module = exercise.reference.__module__
    where = "" if module.startswith("rlhf_lab.exercises") else f"# {module}.{exercise.reference.__name__}\n"
    sources = [inspect.getsource(function).rstrip() for function in _with_helpers(exercise.reference)]
    return "\n\n".join([*parts, where + "\n\n\n".join(sources)])


def _with_helpers(function: Callable, seen: set[str] | None = None) -> Iterator[Callable]:
    seen = set() if seen is None else seen
    yield function
    plain = inspect.unwrap(function)
    for name in plain.__code__.co_names:
        helper = plain.__globals__.get(name)
        is_private = name.startswith("_") and not name.startswith(("_require", "__"))
        if is_private and inspect.isfunction(helper) and name not in seen:
            seen.add(name)
            yield from _with_helpers(helper, seen)
