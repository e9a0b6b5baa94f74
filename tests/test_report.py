"""The report stands alone, escapes what models say, leaves out what was not measured; the scoreboard has its shape."""

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rlhf_lab import figures, files, report
from rlhf_lab.errors import UserError
from rlhf_lab.evaluate import Interval, calibration_curve
from rlhf_lab.report import summary, validate_scoreboard, write_report, write_scoreboard

POLICY = {"gold": 1.5, "win_rate": 0.86, "win_rate_low": 0.83, "win_rate_high": 0.89, "kl": 4.2, "mean_length": 44.0}
SCOREBOARD = {
    "profile": "tiny",
    "seed": 0,
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "base": {"gold": -0.4},
    "sft": {"gold": 0.2},
    "reward": {"accuracy": 0.77, "oracle_accuracy": 0.80, "ece": 0.03},
    "ppo": POLICY,
    "dpo": {**POLICY, "win_rate": 0.51, "win_rate_low": 0.47, "win_rate_high": 0.55},
    "seconds": {"sft": 30.0, "reward": 60.0, "ppo": 120.0, "dpo": 90.0, "total": 322.0},
    "peak_memory_mb": {"sft": 900.0, "reward": 1000.0, "ppo": 1500.0, "dpo": 1200.0},
}
HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> \"' & http://evil.example/ {{ 7 * 7 }}"


def span(value, half=0.1):
    return Interval(value, value - half, value + half).as_dict()


EVALUATION = {
    "attributes": {
        "sft": {"helpfulness": span(0.2), "brevity": span(0.3)},
        "ppo": {"helpfulness": span(1.0), "brevity": span(0.1)},
        "dpo": {"helpfulness": span(0.9), "brevity": span(0.2)},
    },
    "gold": {"base": span(-0.4), "sft": span(0.2), "ppo": span(1.5), "dpo": span(1.4)},
    "win_rate": {"ppo": Interval(0.86, 0.83, 0.89).as_dict(), "dpo": Interval(0.51, 0.47, 0.55).as_dict()},
    "kl": {"ppo": span(4.2), "dpo": span(6.0)},
    "lengths": {"sft": [40] * 512, "ppo": [50] * 512, "dpo": [36] * 512},
    "calibration": calibration_curve(np.linspace(-2, 2, 50), np.arange(50) % 2).as_dict(),
    "samples": [
        {
            "prompt": f"{HOSTILE} {i}",
            "replies": {"dpo": {"text": HOSTILE, "gold": 1.25}, "base": {"text": "", "gold": -3}},
        }
        for i in range(8)
    ],
}
HISTORIES = {
    "sft": [{"step": i, "loss": 3.0 - i / 50} for i in range(1, 50)] + [{"step": 49, "eval_loss": 2.5}, {"epoch": 1.0}],
    "ppo": [{"episode": 32 * i, "objective/kl": i / 10, "objective/scores": i / 20, "lr": 1e-4} for i in range(9)],
    "dpo": [{"step": i, "rewards/accuracies": 0.5 + i / 100, "loss": "n/a"} for i in range(9)],
}


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] == ["style"] else data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "seed 0 & more"
    html = write_report(folder, SCOREBOARD, EVALUATION, HISTORIES).read_text(encoding="utf-8")
    return folder, html, Page(html)


def test_the_report_fetches_nothing_and_runs_nothing(run):
    _, html, page = run
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("src", "data:").startswith("data:image/png;base64,") or "src" not in attrs
        assert "href" not in attrs
    assert "url(" not in html and "@import" not in html
    assert page.open == []


def test_what_a_model_says_is_escaped(run):
    _, html, page = run
    assert HOSTILE in page.text  # shown as it was said, every character
    assert "<script" not in html and "onerror=alert(2)>" not in html
    assert "(empty)" in page.text


def test_every_image_has_its_alt_text_and_its_file(run):
    folder, _, page = run
    images = page.all("img")
    assert len(images) == 9
    assert all(len(image["alt"]) > 20 for image in images)
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {
        "gold_by_attribute.png", "win_rates.png", "kl_and_reward.png", "lengths.png", "calibration.png",
        "curves_sft.png", "curves_ppo.png", "curves_dpo.png", "stage_costs.png",
    }  # fmt: skip


def test_tables_have_captions_and_headers(run):
    _, _, page = run
    tables = len(page.all("table"))
    assert tables == 5
    assert len(page.all("caption")) == tables
    assert all(header.get("scope") in {"row", "col"} for header in page.all("th"))


def test_six_prompts_are_shown_with_the_gold_of_each_reply(run):
    _, _, page = run
    assert len(page.all("article")) == 6
    assert page.text.count("gold 1.25") == page.text.count("gold -3.00") == 6
    assert page.text.index("Base", page.text.index("Prompt 1")) < page.text.index("DPO", page.text.index("Prompt 1"))


def test_both_themes_are_there_and_figures_stay_on_white(run):
    _, html, _ = run
    assert "prefers-color-scheme: dark" in html
    assert re.search(r"figure \{[^}]*background: #ffffff", html)


def test_the_numbers_of_the_run_are_on_the_page(run):
    _, _, page = run
    for told in ("0.86 [0.83, 0.89]", "4.20 [4.10, 4.30]", "512 held-out prompts", "1,500", "2.13.0", "5 min 22 s"):
        assert told in page.text


def test_the_summary_says_whether_the_interval_excludes_a_half():
    told = summary(SCOREBOARD, EVALUATION)
    assert "Base -0.40, SFT 0.20, PPO 1.50, DPO 1.40" in told[0]
    assert "PPO beats SFT on 0.86 [0.83, 0.89]" in told[1] and "lies above 0.5" in told[1]
    assert told[2] == (
        "It gained most in helpfulness (+0.80), lost most in brevity (-0.20), "
        "moved 4.20 nats a reply from the reference (KL) and writes replies 25 % longer than SFT's."
    )
    assert "contains 0.5, so no difference is shown" in told[3]
    assert "10 % shorter" in told[4]
    worse = summary({"ppo": {**POLICY, "win_rate": 0.2, "win_rate_low": 0.15, "win_rate_high": 0.25}}, {})
    assert any("worse than SFT" in sentence for sentence in worse)


def test_a_real_model_without_gold_gets_its_accuracy(tmp_path):
    evaluation = {"accuracy": {"before": span(0.61, 0.07), "after": span(0.75, 0.06), "change": span(0.14, 0.05)}}
    page = Page(
        write_report(tmp_path, {"profile": "smol", "seed": 1}, evaluation, {"dpo": HISTORIES["dpo"]}).read_text()
    )
    assert "0.61 [0.54, 0.68] before training, 0.75 [0.69, 0.81] after, a change of 0.14 [0.09, 0.19]" in page.text
    assert "Gold" not in page.text
    assert len(page.all("img")) == 1


def test_nothing_measured_is_a_page_all_the_same(tmp_path):
    page = Page(write_report(tmp_path, {}, {}, {}).read_text())
    assert "measured nothing" in page.text
    assert not page.all("table") and not page.all("img")


@pytest.mark.parametrize("part", list(EVALUATION))
def test_whatever_is_missing_is_left_out(tmp_path, monkeypatch, part):
    """Each part alone, and all but each part: no combination may fail."""
    (blank := tmp_path / "blank.png").touch()
    monkeypatch.setattr(figures, "save", lambda figure, path: blank)  # drawn, but rendering is slow and tested above
    without = {name: value for name, value in EVALUATION.items() if name != part}
    assert Page(write_report(tmp_path / "alone", {}, {part: EVALUATION[part]}, {}).read_text()).open == []
    assert Page(write_report(tmp_path / "without", SCOREBOARD, without, {}).read_text()).open == []


def test_the_calibration_may_stand_with_the_rest_of_the_reward_model(tmp_path):
    evaluation = {"reward": {"calibration": EVALUATION["calibration"]}}
    assert len(Page(write_report(tmp_path, {}, evaluation, {}).read_text()).all("img")) == 1


def test_curves_take_what_was_logged_with_what_stands_beside_it():
    curves = report._curves("sft", HISTORIES["sft"])
    assert list(curves) == ["SFT: loss"]
    assert curves["SFT: loss"]["x"][-1] == 49 and curves["SFT: loss"]["xlabel"] == "optimiser step"
    assert curves["SFT: loss"]["held_out"] == [[49], [2.5]]
    assert [curve["xlabel"] for curve in report._curves("ppo", HISTORIES["ppo"]).values()] == ["episode", "episode"]
    assert list(report._curves("dpo", HISTORIES["dpo"])) == ["DPO: pairs ranked right"]
    assert report._curves("x", [{"loss": 1.0}, {"loss": 0.5}])["x: loss"]["x"] == [1, 2]


def test_a_good_scoreboard_is_written_whole(tmp_path):
    board = copy.deepcopy(SCOREBOARD)
    board["seconds"]["evaluate"] = np.float32(20.5)
    board["seed"] = np.int64(2)
    board["sft"] = {"gold": 0.2, "mean_length": 41.0}  # may stand there, to compare PPO's and DPO's with
    path = write_scoreboard(tmp_path / "run" / "scoreboard.json", board)
    assert json.loads(path.read_text()) == {**board, "seed": 2, "seconds": {**board["seconds"], "evaluate": 20.5}}
    assert [entry.name for entry in path.parent.iterdir()] == ["scoreboard.json"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("profile", None),
        ("profile", ""),
        ("seed", 1.5),
        ("seed", True),
        ("seed", -1),
        ("versions", ["torch"]),
        ("versions.torch", 2.13),
        ("base.gold", "high"),
        ("sft.gold", float("nan")),
        ("reward.accuracy", 77),
        ("reward.ece", -0.1),
        ("ppo.win_rate", 0.95),
        ("dpo.win_rate", 0.1),
        ("dpo.win_rate_high", 1.2),
        ("ppo.kl", float("inf")),
        ("ppo.kl", -5.0),
        ("dpo.mean_length", -1),
        ("seconds.total", None),
        ("seconds.evaluate", -1.0),
        ("peak_memory_mb.ppo", True),
        ("surprise", 1),
        ("base.win_rate", 0.5),
    ],
)
def test_a_bad_field_is_named(field, value):
    board = copy.deepcopy(SCOREBOARD)
    *parents, name = field.split(".")
    entry = board
    for parent in parents:
        entry = entry[parent]
    entry[name] = value
    with pytest.raises(ValueError, match=rf"^scoreboard\.{re.escape(field)}: "):
        validate_scoreboard(board)


@pytest.mark.parametrize("field", ["profile", "reward", "reward.ece", "dpo.kl", "seconds.total", "peak_memory_mb.sft"])
def test_a_missing_field_is_named(field):
    board = copy.deepcopy(SCOREBOARD)
    *parents, name = field.split(".")
    entry = board
    for parent in parents:
        entry = entry[parent]
    del entry[name]
    with pytest.raises(ValueError, match=rf"^scoreboard\.{re.escape(field)}: missing"):
        validate_scoreboard(board)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = write_scoreboard(tmp_path / "scoreboard.json", SCOREBOARD)
    before = path.read_text()
    with pytest.raises(ValueError, match="seed"):
        write_scoreboard(path, {**SCOREBOARD, "seed": "one"})

    def no_space(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", no_space)
    with pytest.raises(UserError, match="no space"):
        write_scoreboard(path, {**SCOREBOARD, "seed": 1})
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["scoreboard.json"]
