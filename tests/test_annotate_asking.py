"""The annotator's keys, screens, widget and figures: the same answers by a terminal, by a pipe and by a notebook."""

import io
import json
import os
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from rlhf_lab import figures as base
from rlhf_lab.annotate import Pair, Session, compare, figures, helpdesk_pairs
from rlhf_lab.annotate.session import Answer
from rlhf_lab.annotate.terminal import actions_in, ask, conclude, keyed_actions, screen, typed_actions
from rlhf_lab.data import load_preferences
from rlhf_lab.profiles import REPO_ROOT

PROMPT = [{"role": "user", "content": "Say a number."}]
PAIRS = [Pair(PROMPT, f"It is {i}.", f"Perhaps {i}?") for i in range(6)]


@pytest.fixture
def session(tmp_path):
    return Session(PAIRS, tmp_path / "labels.jsonl")


def choices(session):
    return [answer.choice for answer in session.answers]


def rendered(session, pair, width, **looks):
    console = Console(width=width, file=io.StringIO(), force_terminal=True, **looks)
    console.print(screen(session, pair, width))
    return console.file.getvalue()


# ---- keys ----


@pytest.mark.parametrize(
    ("keys", "actions"),
    [
        ("1h\x1b[D\x1bOD\x00K\xe0K", ["left"] * 6),
        ("2l\x1b[C\x1bOC\x00M\xe0M", ["right"] * 6),
        ("tusqTUSQ", ["tie", "undo", "skip", "quit"] * 2),
        ("\x7f\x08\x04", ["undo", "undo", "quit"]),
        ("\x1b[A\x1b[3~\x1b[1;5D\x1bOP\x1b[200~", []),  # up, delete, control-left, F1, a paste begins
        ("\x1bt xyz?\r\n", ["tie"]),  # Escape, then t
    ],
)
def test_what_a_terminal_sends_for_each_key(keys, actions):
    assert list(actions_in(keys)) == actions


def test_control_c_counts_wherever_it_stands():
    actions = actions_in("1\x03 2")
    assert next(actions) == "left"
    with pytest.raises(KeyboardInterrupt):
        next(actions)


@pytest.mark.parametrize("parts", [["\x1b[D"], ["\x1b", "[D"], ["\x1b[", "D"], ["\x1bO", "D"], ["\x1b", "1"]])
def test_a_sequence_in_two_parts_is_one_key(parts):
    assert list(keyed_actions(iter([*parts, "2", ""]).__next__)) == ["left", "right"]


def test_home_in_two_parts_is_no_answer():
    assert list(keyed_actions(iter(["\x1b", "[1~", ""]).__next__)) == []


def test_typed_lines(monkeypatch):
    typed = iter(["1", " LEFT ", "r", "", "tie", "q"])
    console = Console()
    monkeypatch.setattr(console, "input", lambda _: next(typed))
    assert [next(actions) for actions in [typed_actions(console)] * 6] == ["left", "left", "", "", "tie", "quit"]


# ---- the terminal ----


def test_asking_keeps_each_answer_and_leaves_when_told(session):
    ask(session, Console(file=io.StringIO()), iter(["left", "right", "", "undo", "tie", "skip", "quit", "left"]))
    assert choices(session) == choices(Session(PAIRS, session.labels_path)) == ["left", "tie"]
    assert session.current == PAIRS[3]


def test_asking_ends_with_the_pairs_or_with_the_input(session, capsys):
    ask(session, Console(), iter(["left"]))
    assert choices(session) == ["left"]
    ask(session, Console(), iter(["right"] * 99))
    assert session.current is None and len(choices(session)) == 6
    assert "6 of 6" in capsys.readouterr().out


def test_replies_stand_side_by_side_where_there_is_room(session):
    def together(text):
        return any("LEFT" in line and "RIGHT" in line for line in text.splitlines())

    assert together(rendered(session, PAIRS[0], 100))
    assert not together(rendered(session, PAIRS[0], 99))
    for width in (30, 99, 160):
        text = rendered(session, PAIRS[0], width, color_system=None)
        assert "It is 0." in text and "Perhaps 0?" in text and "1 of 6" in text and "Say a number." in text


def test_no_colours_where_none_are_wanted(session):
    assert "\x1b[36m" in rendered(session, PAIRS[0], 80, color_system="standard")
    assert "\x1b[36m" not in rendered(session, PAIRS[0], 80, no_color=True)
    assert "\x1b[" not in rendered(session, PAIRS[0], 80, color_system=None)


def test_a_reply_is_shown_as_it_is_and_cannot_steer_the_terminal(session):
    pair = Pair(PROMPT, "[red]Stop[/red] [/]", "\x1b[2J\x07gone\x9b2J\ttab")
    text = rendered(session, pair, 80, color_system=None)
    assert "[red]Stop[/red] [/]" in text and "␛[2J␇gone" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_it_says_what_is_kept_and_what_comes_next(session, capsys):
    for choice in ("left", "tie", "right"):
        session.answer(choice)
    conclude(session, Console(width=200, highlight=False))
    out = capsys.readouterr().out
    assert "3 of 6 done: 2 decided, 1 tied." in out
    assert f"rlhf-lab reward --data {session.labels_path}" in out
    assert "A tie prefers nothing" in out and "goes on where you stopped" in out


def test_the_command_by_typed_lines(cli, monkeypatch, tmp_path):
    rows = [{"prompt": "Hi.", "replies": [f"a{i}", f"b{i}", f"c{i}"]} for i in range(2)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for typed, done in ((["1", "t"], 2), (["right", "2", "q"], 4)):
        lines = iter(typed)
        monkeypatch.setattr("builtins.input", lambda *_, lines=lines: next(lines, "q"))
        code, out, err = cli("annotate", "--data", "mine.jsonl", "--out", "mine.labels.jsonl", "--pairs", 5)
        assert code == 0, err
        assert f"{done} of 5 done" in out
    assert len(load_preferences("mine.labels.jsonl")) == 3
    code, _, err = cli("annotate", "--out", "mine.labels.jsonl")
    assert code == 2 and err.startswith("error: ") and "to pairs that the data does not hold" in err
    assert err.count("\n") == 1


def test_the_command_on_the_help_desk_compares_with_gold(cli, monkeypatch):
    lines = iter("12t1")
    monkeypatch.setattr("builtins.input", lambda *_: next(lines, "q"))
    code, out, err = cli("annotate")
    assert code == 0, err
    for told in ("4 of 30 done: 3 decided, 1 tied", "gold", "careful", "attribute that decides", "kappa"):
        assert told in out


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are Unix's")
def test_single_keys_in_a_real_terminal_and_control_c(tmp_path):
    import pty
    import termios

    seen = bytearray()

    def wait_for(text):
        while (at := seen.find(text.encode())) < 0:
            seen.extend(os.read(master, 4096))  # raises when the other end has closed
        del seen[: at + len(text.encode())]

    def press(number, keys):
        wait_for(f"{number} of 30")
        wait_for("Keep and leave")
        while termios.tcgetattr(master)[3] & termios.ICANON:  # what is typed before it reads keys is thrown away
            time.sleep(0.01)
        os.write(master, keys)

    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(REPO_ROOT), "COLUMNS": "110", "LINES": "40"}
    command = [sys.executable, "-m", "rlhf_lab.cli", "annotate"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL
    )
    os.close(slave)
    try:
        for number, keys in ((1, b"\x1b[D"), (2, b"2"), (3, b"t"), (4, b"u"), (3, b"h\x03")):
            press(number, keys)
        wait_for("3 of 30 done: 3 decided, 0 tied")
        while select.select([master], [], [], 0.1)[0] or process.poll() is None:
            try:
                os.read(master, 4096)  # or it would wait for us to read its tables
            except OSError:  # Linux's way to say that the other end has closed
                break
        assert process.wait() == 130
    finally:
        process.kill()
        process.wait()
    os.close(master)
    assert choices(Session([], tmp_path / "labels.jsonl")) == ["left", "right", "left"]


# ---- the notebook ----


@pytest.fixture
def widget(session):
    from rlhf_lab.annotate.widget import AnnotationWidget

    return AnnotationWidget(session)


def shown(widget):
    return " ".join(child.value for child in (widget._progress, widget._prompt, widget._left, widget._right))


def test_buttons_answer_and_show_the_next_pair(widget):
    assert "1 of 6" in shown(widget) and "It is 0." in shown(widget)
    for button in ("left", "tie", "undo", "right"):
        widget.buttons[button].click()
    assert choices(widget.session) == ["left", "right"]
    assert "3 of 6" in shown(widget) and "It is 2." in shown(widget)


def test_typed_keys_answer_and_backspace_takes_back(widget):
    for text, expected in (
        ("1", ["left"]),
        ("12", ["left", "right"]),
        ("12xT", ["left", "right", "tie"]),  # x means nothing
        ("12x", ["left", "right"]),
        ("12", ["left", "right"]),
        ("1", ["left"]),
        ("1tt2", ["left", "tie", "tie", "right"]),  # faster than the kernel answers
        ("1tt2u", ["left", "tie", "tie"]),
        ("1tt2", ["left", "tie", "tie"]),
        ("1tt", ["left", "tie", "tie"]),  # 2 is undone already
        ("", []),
    ):
        widget.key_field.value = text
        assert choices(widget.session) == expected, text


def test_all_done_says_so_and_can_be_undone(widget):
    widget.key_field.value = "121212"
    assert "All 6 done" in shown(widget) and widget.buttons["left"].disabled
    widget.key_field.value = "1212121"
    assert choices(widget.session) == ["left", "right"] * 3
    widget.key_field.value = "121212"  # the seventh key did nothing, so taking it away does nothing
    assert len(choices(widget.session)) == 6
    widget.buttons["undo"].click()
    assert "6 of 6" in shown(widget) and not widget.buttons["left"].disabled


def test_it_goes_on_after_the_kernel_restarts(widget):
    from rlhf_lab.annotate.widget import AnnotationWidget

    widget.act("left")
    again = AnnotationWidget(Session(PAIRS, widget.session.labels_path))
    assert "2 of 6" in shown(again)
    again.act("undo")
    assert "1 of 6" in shown(again)


def test_a_screen_reader_hears_which_is_which(widget):
    text = shown(widget)
    for label in ('aria-label="Left reply"', 'aria-label="Right reply"', 'role="status" aria-live="polite"'):
        assert label in text
    assert all(button.description and button.tooltip for button in widget.buttons.values())


def test_text_is_text_and_no_markup(session, tmp_path):
    from rlhf_lab.annotate.widget import AnnotationWidget

    pair = Pair(PROMPT, "<script>alert(1)</script>", "a & b\nc")
    widget = AnnotationWidget(Session([pair], tmp_path / "other.jsonl"))
    assert "&lt;script&gt;" in widget._left.value and "<script>" not in widget._left.value
    assert "a &amp; b<br>c" in widget._right.value


def test_a_fault_is_shown_and_the_pair_stays(widget, monkeypatch):
    from rlhf_lab.errors import UserError

    def full(_):
        raise UserError("the answer cannot be written", fix="Free some space")

    monkeypatch.setattr(widget.session, "_append", full)
    assert not widget.act("left")
    assert "Free some space" in widget._notice.value and "1 of 6" in shown(widget)


def test_the_cells_text_has_no_path(widget, tmp_path):
    assert repr(widget) == "6 pairs to compare, 0 of them done. Run the cell to answer."
    assert str(tmp_path) not in shown(widget) + widget._notice.value
    with pytest.raises(ValueError, match="an action is one of"):
        widget.act("centre")


# ---- figures ----


def labelled(simulated):
    """Thirty answers of someone who takes the longer reply, and ties now and then."""
    pairs = helpdesk_pairs(30)
    answers = [Answer(pair, "tie" if i % 9 == 0 else pair.longer) for i, pair in enumerate(pairs)]
    return compare(answers, "The simulated annotator (usual)" if simulated else "You", simulated=simulated)


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("draw", [figures.kappas, figures.kinds])
def test_figures_are_labelled_described_and_whole(draw, simulated):
    report = labelled(simulated)
    figure = draw(report)
    (axes,) = figure.axes
    assert axes.get_xlabel() and axes.get_ylabel()
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01
    number = report.against["gold"].kappa if draw is figures.kappas else report.kinds["gold prefers"]["the shorter"]
    assert str(number) in base.alt_text(figure)


def test_the_kappas_drawn_are_the_reports():
    report = labelled(simulated=False)
    (axes,) = figures.kappas(report).axes
    drawn = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in "os" and len(line.get_xdata()) == 1]
    expected = [found.kappa.value for found in [*report.against.values(), *report.peers.values()]]
    assert drawn == pytest.approx(expected)


def test_a_report_without_gold_or_kappa_can_be_drawn():
    report = compare([Answer(PAIRS[0], "tie")])
    assert base.to_png(figures.kappas(report)) and base.to_png(figures.kinds(report))
