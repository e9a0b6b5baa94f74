"""What the Llama lessons share: the help desk's data at a profile's size, and stages trained once for all of them.

A lesson begins with `lab = Lab(PROFILE)`. Another profile is another Llama on the same data, so whatever a lesson
measures against gold is measured there too.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path

from rlhf_lab.data import load_demonstrations, load_preferences, load_prompts, split_rows
from rlhf_lab.evaluate import Interval
from rlhf_lab.files import write_at_once
from rlhf_lab.profiles import DATA_DIR, get_profile
from rlhf_lab.stages.common import StageResult, library_versions

HELPDESK = DATA_DIR / "helpdesk"
RECORDS = DATA_DIR / "records"
RECORDING = "RLHF_LAB_RECORD"  # set by `python -m rlhf_lab.lessons --record PROFILE`: results are kept, not only shown
# Rows a stage trains on, and rows that are measured on. What is absent is taken whole.
ROWS = {
    "smol": {"sft": 96, "reward": 96, "ppo": 96, "dpo": 96, "test_pairs": 200, "prompts": 48},
}


class Lab:
    """One profile: its data, its stages, its models. `None` is the tiny Llama.

    Where gated weights cannot be had, a sentence says so and `profile` is that of the ungated stand-in: its precision,
    lengths and rows belong to the model that is trained. Raises UserError for an unknown profile, or for one that this
    machine cannot run.
    """

    def __init__(self, profile: str | None = None, seed: int = 0) -> None:
        from rlhf_lab.checks import check_profile_machine
        from rlhf_lab.fetch import profile_to_be_had

        self.profile = get_profile(profile or "tiny")
        self.seed = seed
        check_profile_machine(self.profile)
        self.profile = profile_to_be_had(self.profile)

    @cached_property
    def base(self) -> str:
        """The folder of the untouched model, fetched if need be."""
        from rlhf_lab.single import model_path

        return model_path(self.profile, None)

    @cached_property
    def tokenizer(self):
        """Of the SFT model, checked; all models of a profile share it."""
        from rlhf_lab.models import load_tokenizer

        return load_tokenizer(self.base)

    @cached_property
    def demonstrations(self) -> list[dict]:
        """What SFT trains on: {prompt, completion}."""
        return self._rows("sft", load_demonstrations, "sft.jsonl")

    @cached_property
    def pairs(self) -> list[dict]:
        """What the reward model and DPO train on: {prompt, chosen, rejected}."""
        return self._rows("reward", load_preferences, "preferences_train.jsonl")

    @cached_property
    def test_pairs(self) -> list[dict]:
        """Held-out {prompt, chosen, rejected}."""
        return self._rows("test_pairs", load_preferences, "preferences_test.jsonl")

    @cached_property
    def prompts(self) -> list:
        """Held-out prompts, as conversations."""
        return [row["prompt"] for row in self._rows("prompts", load_prompts, "prompts.jsonl")]

    def sft(self, **settings) -> StageResult:
        """Lesson 05's model. `settings` of any stage are fields of its trainer's config and win over the profile's."""
        from rlhf_lab.stages import sft

        return self._run(sft, "sft", "sft.jsonl", load_demonstrations, {"model": self.base}, settings)

    def reward(self, **settings) -> StageResult:
        """Lesson 06's model, on the SFT model."""
        from rlhf_lab.stages import reward

        inputs = {"model": self.sft().path}
        return self._run(reward, "reward", "preferences_train.jsonl", load_preferences, inputs, settings)

    def ppo(self, **settings) -> StageResult:
        """Lesson 07's model, from the SFT model against the reward model."""
        from rlhf_lab.stages import ppo

        inputs = {"model": self.sft().path, "reward": self.reward().path}
        return self._run(ppo, "ppo", "preferences_train.jsonl", load_prompts, inputs, settings)

    def dpo(self, **settings) -> StageResult:
        """Lesson 08's model, from the SFT model on the reward model's pairs."""
        from rlhf_lab.stages import dpo

        inputs = {"model": self.sft().path}
        return self._run(dpo, "dpo", "preferences_train.jsonl", load_preferences, inputs, settings)

    def policy(self, model: str | Path | StageResult):
        """A language model: "base", "sft", "ppo", "dpo" (trained if need be), or what a stage returned."""
        from rlhf_lab.models import load_policy

        return load_policy(self._path(model), self.profile)

    def judge(self, model: str | Path | StageResult = "reward"):
        """A reward model: "reward" (trained if need be), or what the reward stage returned."""
        from rlhf_lab.models import load_reward_model

        return load_reward_model(self._path(model), self.profile)

    def results(self, lesson: str, measured: Mapping[str, float | Interval]) -> None:
        """Print what this run measured beside what was recorded with other profiles, each with date and versions."""
        file = RECORDS / f"{lesson}.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if os.environ.get(RECORDING):
            kept[self.profile.name] = {
                "date": date.today().isoformat(),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, {_device()}",
                "versions": library_versions(),
                "measured": {
                    name: value.as_dict() if isinstance(value, Interval) else value for name, value in measured.items()
                },
            }
            write_at_once(file, json.dumps(kept, indent=1) + "\n")
        print(results_table(self.profile.name, measured, kept))

    def _path(self, model: str | Path | StageResult) -> str | Path:
        if isinstance(model, StageResult):
            return model.path
        if model == "base":
            return self.base
        if model in ("sft", "reward", "ppo", "dpo"):
            return getattr(self, model)().path
        return model

    def _rows(self, what: str, load: Callable[[Path], list[dict]], file: str) -> list[dict]:
        rows = load(HELPDESK / file)
        wanted = ROWS.get(self.profile.name, {}).get(what)
        return split_rows(rows, wanted, 0, seed=0)[0] if wanted else rows

    def _run(self, stage, name: str, file: str, load, inputs: dict, settings: dict) -> StageResult:
        # The file itself where it is taken whole: the key is then that of `make run`, and nothing is trained twice.
        whole = name not in ROWS.get(self.profile.name, {})
        data = HELPDESK / file if whole else self._rows(name, load, file)
        return stage.run(self.profile, data, inputs, seed=self.seed, settings=settings)


def results_table(profile: str, measured: Mapping[str, float | Interval], kept: Mapping[str, Mapping]) -> str:
    """Plain text: a line a measure, this run's column first, then one for each recorded profile."""
    columns = {f"here, {profile}": measured}
    for name, record in kept.items():
        columns[f"recorded, {name}"] = {
            label: Interval(**value) if isinstance(value, Mapping) else value
            for label, value in record["measured"].items()
        }
    labels = list(dict.fromkeys(label for values in columns.values() for label in values))
    rows = [["", *columns], *([label, *(_shown(values.get(label)) for values in columns.values())] for label in labels)]
    lines = [as_text(rows, gap=3)]
    for name, record in kept.items():
        versions = ", ".join(f"{library} {number}" for library, number in record["versions"].items())
        lines.append(f"{name}: recorded {record['date']}, {record['machine']}; {versions}")
    return "\n".join(lines)


def as_text(rows: Sequence[Sequence[str]], gap: int = 2) -> str:
    """Rows of cells in columns of even width, `gap` spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ((" " * gap).join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def _shown(value: float | Interval | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, Interval) or abs(value) < 100 else f"{value:.0f}"


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
