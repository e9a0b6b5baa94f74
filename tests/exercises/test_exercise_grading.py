"""What check says of answers that are no answers: stubs, exceptions, wrong types and shapes, loops, changed inputs."""

import functools
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from rlhf_lab import exercises
from rlhf_lab.exercises import check, grading, hint, running, solution, store
from rlhf_lab.exercises.exercise import catalogue


def failed(verdict, *words):
    assert verdict.status == "failed" and str(verdict).startswith("Not yet")
    for word in words:
        assert word in str(verdict), verdict
    return verdict


# --- not tried ----------------------------------------------------------------------------------------------------


def stub_with_ellipsis(a, b): ...


def stub_with_docstring(a, b):
    """Only words."""


def stub_with_pass(a, b):
    # nothing here yet
    pass


def stub_that_returns_it(a, b):
    return ...


def stub_that_raises(a, b):
    raise NotImplementedError("your turn")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        ...,
        NotImplemented,
        stub_with_ellipsis,
        stub_with_docstring,
        stub_with_pass,
        stub_that_returns_it,
        stub_that_raises,
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_untouched_stub_is_not_tried_yet_and_no_attempt(answer, data_folder):
    verdict = check("elo_probability", answer)
    assert verdict.status == "untried" and not verdict.passed
    assert str(verdict).startswith("Not tried yet · elo_probability") and "5 min" in str(verdict)
    assert not data_folder.exists()


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_stub_as_it_stands_in_a_notebook_runs_and_is_not_tried_yet(name):
    cell = exercises.stub(name)
    shown = []
    exec(cell, {"check": lambda *args: shown.append(check(*args))})
    assert [verdict.status for verdict in shown] == ["untried"]


# --- wrong in form ------------------------------------------------------------------------------------------------


def test_a_forgotten_return_is_another_thing_than_a_stub():
    def elo(a, b):
        p = 1 / (1 + 10 ** ((b - a) / 400))  # noqa: F841

    failed(check("elo_probability", elo), "None: is there a `return`?", "expected  0.9091")


def test_short_answers_are_no_stubs():
    def half(a, b):
        return 0.5

    def word(a, b):
        """The answer."""
        return "0.909"

    failed(check("elo_probability", half), "got       0.5")
    failed(check("elo_probability", word), "got a str")
    failed(check("elo_probability", lambda a, b: None is a), "got       False")


def test_an_exception_names_its_line():
    def elo(a, b):
        difference = b - a
        return 1 / (1 + 10 ** (difference / "400"))

    verdict = failed(check("elo_probability", elo), "TypeError: unsupported operand", "rating_a = 2000")
    line = elo.__code__.co_firstlineno + 2
    assert f'line {line}, in elo: return 1 / (1 + 10 ** (difference / "400"))' in str(verdict)
    assert __file__ not in str(verdict)


def test_the_line_named_is_the_learners_even_when_a_library_raises():
    def optimum(ref_probs, rewards, beta):
        return np.linalg.inv(ref_probs)

    failed(check("optimal_policy", optimum), "LinAlgError", "in optimum: return np.linalg.inv(ref_probs)")


@pytest.mark.parametrize(
    "error", [SystemExit(3), RecursionError("deep"), MemoryError(), AssertionError(), StopIteration()]
)
def test_whatever_it_raises_is_said(error):
    def elo(a, b):
        raise error

    failed(check("elo_probability", elo), type(error).__name__)


def test_what_always_raises_is_not_taken_for_a_known_mistake():
    assert failed(check("kl_rewards", lambda *given: 1 / 0), "ZeroDivisionError").mistake is None
    assert failed(check("bradley_terry", lambda a, b: 1 / 0)).mistake is None


def test_an_endless_recursion_is_an_exception_like_any_other():
    def elo(a, b):
        return elo(a, b)

    failed(check("elo_probability", elo), "RecursionError")


def test_the_wrong_number_of_arguments():
    failed(check("elo_probability", lambda a: a), "2 arguments: (rating_a, rating_b)", "Yours takes (a)")
    failed(check("elo_probability", lambda a, b, c: a), "Yours takes (a, b, c)")
    assert check("elo_probability", lambda x, y, scale=400: 1 / (1 + 10 ** ((y - x) / scale))).passed


@pytest.mark.parametrize(
    "value, words",
    [
        ("high", "expected one number, got a str"),
        ({"p": 0.9}, "expected one number, got a dict"),
        ([0.9, 0.1], "expected one number, got shape (2,)"),
        (np.array([0.9]), "expected one number, got shape (1,)"),
        ([[1], [1, 2]], "expected one number, got a list"),
        (1j, "expected one number, got a complex"),
        (object(), "expected one number, got an object"),
        (torch, "expected one number, got a module"),
        (lambda: 1, "expected one number, got a function"),
        ((x for x in [1]), "expected one number, got a generator"),
        (float("nan"), "Where does the nan come from?"),
        (float("inf"), "Where does the inf come from?"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrong_types_and_shapes(value, words):
    verdict = failed(check("elo_probability", lambda a, b: value), words)
    assert " at 0x" not in str(verdict) and ".py" not in str(verdict)


def test_a_tuple_of_two_is_asked_for_by_gae():
    failed(check("gae", lambda r, v, m, g, lam: r * m), "expected 2 results, as in `return a, b`, got a Tensor")
    failed(check("gae", lambda r, v, m, g, lam: (r, None)), "got       ([[0, 1]],")
    failed(check("gae", lambda *given: (catalogue()["gae"].reference(*given)[0], None)), "result 2 of 2: it is None")


def test_pairs_that_are_no_pairs():
    for answer in ("ab", {"a": "b"}, 3, ["ab", "cd"], [("a", "b", "c")]):
        failed(check("pairs_from_ranking", lambda ranking, answer=answer: answer), "expected a list of (winner, loser)")


def test_a_value_where_a_function_is_asked_for_and_the_other_way_round():
    failed(check("elo_probability", 0.909), "takes the function itself", 'check("elo_probability", elo_probability)')
    failed(check("cycle", lambda: 0.5), "takes a value, and got a function")
    failed(check("what_beta_does", 3), 'Choose one of "closer"')
    failed(check("clip_gradients", [1, 2]), "expected shape (2, 3), got shape (2,)")
    failed(check("cycle", 0.123), "got = 0.123")


def test_an_unknown_name_is_no_exception():
    assert 'Did you mean "dpo_loss"?' in str(check("dpo_los", lambda: 1))
    assert "No such exercise" in str(check(lambda: 1, "dpo_loss"))
    assert "No such exercise" in str(hint("nope")) and "No such exercise" in str(solution(3))


def test_objects_that_can_be_called():
    class Elo:
        def __call__(self, a, b):
            return 1 / (1 + 10 ** ((b - a) / 400))

    class Wrong(torch.nn.Module):
        def forward(self, a, b):
            return a / (a + b)

    assert check("elo_probability", Elo()).passed
    assert check("elo_probability", functools.partial(lambda s, a, b: 1 / (1 + 10 ** ((b - a) / s)), 400)).passed
    assert failed(check("elo_probability", Wrong())).mistake == "ratings in place of strengths"
    failed(check("elo_probability", max), "expected  0.9091")


def test_a_fault_of_the_grader_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(grading, "grade", lambda *args: 1 / 0)
    assert "The grader itself failed" in str(check("elo_probability", lambda a, b: 1))


def test_prints_and_warnings_of_the_answer_do_not_stop_it(capsys):
    def elo(a, b):
        print("a", a)
        np.log(np.array([0.0, -1.0]))
        return 1 / (1 + 10 ** ((b - a) / 400))

    assert check("elo_probability", elo).passed
    assert "a 2000.0" in capsys.readouterr().out


# --- loops --------------------------------------------------------------------------------------------------------


def loop(a, b):
    while True:
        a = a + 1


def loop_that_catches(a, b):
    while True:
        try:
            a = a + 1
        except Exception:
            a = 0


def loop_that_catches_all(a, b):
    while True:
        try:
            a = a + 1
        except:  # noqa: E722
            a = 0


def sleeper(a, b):
    time.sleep(3600)


LOOPS = [loop, loop_that_catches, loop_that_catches_all, sleeper]


@pytest.mark.parametrize("answer", LOOPS)
def test_an_endless_loop_is_stopped(answer, monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 0.3)
    verdict = failed(check("elo_probability", answer), "Still running after 0.3 seconds", "rating_a = 2000")
    assert f"in {answer.__name__}" in str(verdict)


@pytest.mark.parametrize("answer", LOOPS[:2])
def test_an_endless_loop_is_stopped_in_another_thread_too(answer, monkeypatch):
    """The way of Windows, and of every thread that is not the main one. The loop's thread must end as well."""
    monkeypatch.setattr(grading, "SECONDS", 0.3)
    before, came = set(threading.enumerate()), []
    thread = threading.Thread(target=lambda: came.append(check("elo_probability", answer)))
    thread.start()
    thread.join(60)
    failed(came[0], "Still running after 0.3 seconds", f"in {answer.__name__}")
    for left in set(threading.enumerate()) - before:
        left.join(60)
        assert not left.is_alive()


def test_without_an_interval_timer_the_main_thread_has_its_limit_too(monkeypatch):
    monkeypatch.delattr(signal, "setitimer")
    monkeypatch.setattr(grading, "SECONDS", 0.3)
    failed(check("elo_probability", loop), "Still running")
    assert check("elo_probability", catalogue()["elo_probability"].reference).passed
    failed(check("elo_probability", lambda a, b: a / "x"), "TypeError")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_a_timer_and_a_handler_that_were_there_before_are_there_afterwards(monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 0.3)
    handler_before, rang = signal.signal(signal.SIGALRM, lambda *args: rang.append(1)), []
    ours = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        check("elo_probability", loop)
        remaining, _ = signal.getitimer(signal.ITIMER_REAL)
        assert signal.getsignal(signal.SIGALRM) is ours and 0 < remaining < 500 and not rang
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_an_alarm_at_the_very_moment_of_return_leaves_nothing_behind():
    """Limits of about the time the call takes: now the result comes first, now the alarm, and never an exception."""
    handler, late = signal.getsignal(signal.SIGALRM), []
    for i in range(400):
        outcome = running.observe(lambda n: sum(range(n)), (2000,), 1e-5 * (1 + i % 40))
        late.append(outcome.late)
        assert outcome.late or outcome.value == 1999000
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) is handler
    assert any(late) and not all(late)


def test_the_learner_can_still_interrupt():
    def elo(a, b):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("elo_probability", elo)


# --- inputs and gradients -----------------------------------------------------------------------------------------


def test_inputs_changed_in_place_are_noticed_in_lists_arrays_and_tensors():
    def pairs(ranking):
        result = []
        while ranking:
            first = ranking.pop(0)
            result += [(first, other) for other in ranking]
        return result

    def optimum(ref_probs, rewards, beta):
        rewards -= rewards.max()
        weights = ref_probs * np.exp(rewards / beta)
        return weights / weights.sum()

    def rewards(scores, logps, ref_logps, mask, kl_coef):
        logps.sub_(ref_logps).mul_(-kl_coef).mul_(mask)
        logps[torch.arange(len(scores)), mask.sum(1) - 1] += scores
        return logps

    for name, answer, argument in (
        ("pairs_from_ranking", pairs, "ranking"),
        ("optimal_policy", optimum, "rewards"),
        ("kl_rewards", rewards, "logps"),
    ):
        verdict = failed(check(name, answer), f"changes its input: {argument}")
        assert verdict.mistake == "changed in place"


def test_a_change_in_place_is_mentioned_beside_a_wrong_value():
    def centre(rewards, prompts):
        rewards[0] = 0.0
        return rewards

    failed(check("centre_by_prompt", centre), "It also changes its input in place: rewards")


def test_wrong_gradients_behind_right_values():
    def half_detached(chosen, rejected):
        return torch.nn.functional.softplus(rejected.detach() - chosen).mean()

    def partly(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
        margin = beta * (policy_chosen - policy_rejected - ref_chosen + ref_rejected)
        value = torch.nn.functional.softplus(-margin).mean()
        return value.detach() + 0.5 * (value - value.detach())

    def raises(logps, old_logps):
        return torch.exp(logps - old_logps) if not logps.requires_grad else logps + "x"

    def overwrites(logps, old_logps):
        ratio = (logps - old_logps.detach()).exp()
        ratio *= 1.0  # exp's backward needs its result as it was
        return ratio

    failed(check("probability_ratio", overwrites), "the backward pass raised", "modified by an inplace operation")
    assert failed(check("reward_loss", half_detached), "no gradient reaches rejected").mistake == "no gradient"
    failed(check("dpo_loss", partly), "not the gradient through policy_chosen_logps", "expected  gradient [-")
    failed(check("probability_ratio", raises), "with inputs that require a gradient it raised", "TypeError")


def test_a_missing_detach_shows_the_gradient_that_leaks():
    def ratio(logps, old_logps):
        return (logps - old_logps).exp()

    verdict = failed(check("probability_ratio", ratio), "a gradient flows back through old_logps, where none may")
    assert verdict.mistake == "missing detach" and "got       gradient = [-2.718]" in str(verdict)  # -exp(1)


def test_gradients_are_checked_even_where_the_caller_switched_them_off():
    with torch.no_grad():
        assert check("dpo_loss", catalogue()["dpo_loss"].reference).passed
        assert not check("probability_ratio", lambda logps, old: (logps - old).exp()).passed


# --- hints, solutions, display ------------------------------------------------------------------------------------


def test_each_hint_brings_one_more_and_the_last_points_at_the_solution():
    first, second, third, again = (str(hint("gae")) for _ in range(4))
    hints = catalogue()["gae"].hints
    flat = [" ".join(text.split()) for text in (first, second, third)]
    assert hints[0] in flat[0] and hints[1] not in flat[0] and "2 more" in first
    assert hints[1] in flat[1] and hints[2] not in flat[1]
    assert hints[2] in flat[2] and 'solution("gae")' in third and again == third


def test_the_solution_is_the_source_that_is_graded():
    text = str(solution("dpo_loss"))
    assert "# rlhf_lab.losses.dpo_loss" in text and "def _reward_margin(" in text and "F.logsigmoid(margin)" in text
    assert "def _require" not in text
    assert "def _reply_log_ratio(" in str(solution("reply_log_ratio"))
    assert "elo_points_per_reward = 173.718" in str(solution("elo_points_per_reward"))
    assert "'closer'" in str(solution("what_beta_does"))
    for name in catalogue():
        assert len(str(solution(name))) > 60 and "=lambda" not in str(solution(name))


def test_a_block_is_plain_text_and_safe_html_with_the_same_words():
    block = check("elo_probability", lambda a, b: "<b>&")
    page = block._repr_html_()
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page and "Not yet · elo_probability" in page
    assert repr(block) == str(block) and max(map(len, str(block).splitlines())) <= 120


def test_the_line_of_maths_of_a_value_comes_with_the_pass_only():
    maths = catalogue()["elo_points_per_reward"].maths.split(",")[0]
    assert maths not in str(check("elo_points_per_reward", 1.0)) and maths in str(check("elo_points_per_reward", 173.7))
    assert "10^(R / 400)" in str(check("elo_probability", lambda a, b: 0.3))


def test_importing_the_package_is_quick():
    heavy = {"torch", "scipy", "matplotlib", "transformers"}
    code = f"import sys, rlhf_lab.exercises; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_observe_reports_the_place_in_a_file_without_source():
    namespace = {}
    exec(compile("def f(x):\n    y = x\n    return y / 0\n", "<cell>", "exec"), namespace)
    assert running.observe(namespace["f"], (1.0,), 5).place == "line 3, in f"


def test_check_goes_on_when_progress_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_LAB_DATA", str(tmp_path / "file" / "below"))
    verdict = check("cycle", 0.5)
    assert verdict.passed and "Not kept for progress()" in str(verdict) and str(tmp_path) not in str(verdict)
    assert not store.data_dir().exists()
