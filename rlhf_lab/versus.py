"""RLHF against DPO, measured: the lines one writes, the weights one holds, the spreads, and the record of long runs.

What takes hours is in data/records/versus.json, which bench/record_versus.py writes; what is computed from it is here
and, for the frontier and the shares of it, in rlhf_lab.shares.

Sources: intervals of a mean and of a standard deviation over seeds: Student's t and chi-squared, for normal values.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlhf_lab.errors import UserError
from rlhf_lab.evaluate import Interval, mean_interval
from rlhf_lab.profiles import DATA_DIR, get_profile
from rlhf_lab.shares import Frontier, resampled, share

if TYPE_CHECKING:
    from rlhf_lab.lab import Lab

RECORD = DATA_DIR / "records" / "versus.json"
COMMAND = "python bench/record_versus.py"
LABELS = {"ppo": "RLHF, PPO", "dpo": "DPO", "dpo+sft": "DPO + SFT term"}
BEFORE = {"ppo": ("reward",), "dpo": (), "dpo+sft": ()}  # the stages after SFT on which a method stands


# ---- the lines one writes ----


def lines_of_code(source: str | Callable | type | ModuleType) -> int:
    """Lines that hold code: blank lines, comments and docstrings are left out.

    A statement over three lines counts three. `source` is text, or something whose source Python finds.
    """
    text = textwrap.dedent(source if isinstance(source, str) else inspect.getsource(source))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            code.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code)


def loops() -> dict[str, dict[str, list]]:
    """Method -> part -> the sources of ours that one would have to write, or understand, to train a Llama by it.

    Both stand on the same ground, which is left out: transformers, LoRA, tokenised batches, logs and checkpoints. With
    RLHF goes the reward model's loss.
    """
    from rlhf_lab import losses, plain_dpo, returns, sampling
    from rlhf_lab.ppo import roles, rollout, trainer

    ppo = trainer.PPOTrainer
    return {
        "RLHF": {
            "reward model: the loss": [losses.reward_loss],
            "sampling": [sampling.sample, sampling._draw, rollout.response_mask, ppo.rollout],
            "score and KL penalty": [losses.token_logps, ppo.score, returns.kl_estimate, returns.per_token_rewards],
            "value and advantages": [returns.gae, returns.whiten, ppo.compute_advantages, ppo._value_loss],
            "clipped losses": [losses.ppo_policy_loss, losses.ppo_value_loss, losses._ppo_policy_objectives,
                               losses._ppo_value_objectives, losses.masked_mean, ppo._policy_loss],
            "loop": [ppo.train, ppo.update, ppo._minibatch_step, ppo._micro_step],
            "four models on one base": [roles.OneBaseRoles],
        },
        "DPO": {
            "the loss": [losses.sequence_logps, losses._shifted_token_logps, losses.token_logps, losses.dpo_loss,
                         losses._reward_margin, plain_dpo.dpo_batch_loss],
            "loop": [plain_dpo.train],
            "reference, adapters off": [plain_dpo.adapters_off, plain_dpo.frozen],
        },
    }  # fmt: skip


def lines_by_part() -> dict[str, dict[str, int]]:
    """`loops`, counted."""
    return {
        method: {part: sum(map(lines_of_code, sources)) for part, sources in parts.items()}
        for method, parts in loops().items()
    }


# ---- the weights one holds ----


def weights_on_one_base(lab: Lab) -> dict[str, float]:
    """MB of weights that PPO holds by role: the base, and adapter and head of policy, value and reward."""
    from peft import get_peft_model

    from rlhf_lab.models import lora_config
    from rlhf_lab.ppo.roles import OneBaseRoles

    config = lora_config(lab.profile, "CAUSAL_LM")
    roles = OneBaseRoles(get_peft_model(lab.policy("sft"), config), lab.reward().path, config)
    found: dict[str, float] = defaultdict(float)
    owners = {
        ".default.": "policy",
        ".value.": "value",
        ".reward.": "reward",
        "value_head": "value",
        "reward_head": "reward",
    }
    for name, weight in roles.named_parameters():
        owner = next((owner for part, owner in owners.items() if part in name), "base")
        found[owner] += weight.numel() * weight.element_size() / 1e6
    return dict(found)


def weights_held(base: float, policy: float, value: float = 0.0, reward: float = 0.0) -> dict[str, float]:
    """What each way to train holds, in the unit of its arguments: one base, and the adapters of policy, value, reward.

    Without adapters every role is a copy of the base. A reference that was precomputed, or is the base with the
    adapters off, takes nothing more.
    """
    return {
        "RLHF, four models": 4 * base,
        "RLHF, one base and adapters": base + policy + value + reward,
        "DPO, two models": 2 * base,
        "DPO, reference precomputed": base,
        "DPO, one base and an adapter": base + policy,
    }


# ---- spreads ----


def mean_over_seeds(values: Sequence[float]) -> Interval:
    """Mean of one number a seed, (n,), with its 95 % interval: mean -+ t_{n-1} s / sqrt(n), s with n - 1.

    With 3 seeds t is 4.30, not 1.96. Raises ValueError on fewer than 2: one seed says nothing of the next.
    """
    from scipy.stats import t

    x = _at_least_two(values)
    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def spread_over_seeds(values: Sequence[float]) -> Interval:
    """Standard deviation (n - 1) of one number a seed, (n,), with its 95 % interval by chi-squared.

    With 3 seeds it reaches from 0.52 to 6.3 times the value. Raises ValueError on fewer than 2.
    """
    from scipy.stats import chi2

    x = _at_least_two(values)
    spread, freedom = float(x.std(ddof=1)), len(x) - 1
    low, high = (spread * np.sqrt(freedom / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
    return Interval(spread, float(low), float(high))


class Sweep(NamedTuple):
    """How far a reward goes over the settings of one knob, with intervals over prompts."""

    spread: Interval  # standard deviation (n - 1) over settings
    reach: Interval  # best minus worst setting


def spread_over_settings(by_setting: ArrayLike) -> Sweep:
    """Spread and reach over settings of a reward given as (settings, prompts); prompts are resampled for all at once.

    What prompts and replies leave uncertain adds to the spread of settings, so both are, if anything, too large.
    """
    x = np.asarray(by_setting, dtype=float)
    _at_least_two(x[:, 0])
    means = np.concatenate([x.mean(1)[:, None], x[:, resampled(x.shape[1])].mean(2)], axis=1)  # (settings, 1 + draws)

    def interval(found: np.ndarray) -> Interval:
        return Interval(float(found[0]), *map(float, np.percentile(found[1:], [2.5, 97.5])))

    return Sweep(interval(means.std(0, ddof=1)), interval(np.ptp(means, axis=0)))


def _at_least_two(values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        raise ValueError(f"a spread needs at least 2 values, got {len(x)}")
    return x


# ---- the record ----


class Run(NamedTuple):
    """One recorded run; means a prompt are (prompts,)."""

    what: str
    knob: float
    seed: int
    gold: np.ndarray
    proxy: np.ndarray
    kl: np.ndarray
    found: dict  # all of it, as in the file


class Record:
    """data/records/versus.json, read. Raises UserError where it is missing, with the command that makes it."""

    def __init__(self, path: Path = RECORD) -> None:
        if not path.is_file():
            raise UserError("nothing is recorded yet", where=path.name, fix=f"Run {COMMAND}")
        self.found = json.loads(path.read_text(encoding="utf-8"))
        self.reference = {name: np.array(self.found["reference"][name]) / 1000 for name in ("gold", "proxy")}
        self.runs = [
            Run(run["what"], run["knob"], run["seed"], *(np.array(run[name]) for name in ("gold", "proxy", "kl")), run)
            for run in self.found["runs"]
        ]

    def of(self, what: str, knob: float | None = None) -> list[Run]:
        """Runs of a method, of one setting or of all."""
        return [run for run in self.runs if run.what == what and knob in (None, run.knob)]

    def settings(self, what: str) -> Iterator[tuple[float, list[Run]]]:
        """(knob, its runs, one a seed), the knob ascending."""
        for knob in sorted({run.knob for run in self.of(what)}):
            yield knob, self.of(what, knob)

    @property
    def methods(self) -> list[str]:
        """Those recorded, PPO first."""
        return sorted({run.what for run in self.runs}, key=lambda what: (what != "ppo", what))

    @property
    def seeds(self) -> list[int]:
        """Those with every method and setting."""
        wanted = {(run.what, run.knob) for run in self.runs}
        return [seed for seed in sorted({run.seed for run in self.runs})
                if {(run.what, run.knob) for run in self.runs if run.seed == seed} == wanted]  # fmt: skip

    def default(self, what: str) -> float:
        """The knob of the profile."""
        return self.found["defaults"][what]

    def cost(self, what: str, measure: str) -> float:
        """Median over runs of "core_seconds", "peak_mb" or "libraries_mb"; `what` is a method, "sft" or "reward"."""
        known = self.found["costs"]
        return float(np.median([run.found[measure] for run in self.of(what)] or [known[what][measure]]))

    def mean(self, what: str, knob: float, reward: str) -> np.ndarray:
        """Mean over the seeds of one setting, (prompts,): of "gold", "proxy" or "kl"."""
        return np.mean([getattr(run, reward) for run in self.of(what, knob)], axis=0)

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.found["versions"].items())
        sizes = self.found["sizes"]
        return (
            f"recorded {self.found['date']} by {COMMAND}; {self.found['machine']}; {versions}; "
            f"{sizes['prompts']} held-out prompts, {sizes['samples']} SFT replies and {sizes['replies']} of each "
            f"policy to each; seeds {', '.join(map(str, self.seeds))}"
        )


# ---- the table ----

# Of a stage's settings, those that decide speed and memory only; the batch counts as one knob.
_NOT_KNOBS = {"per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size",
              "local_rollout_forward_batch_size", "logging_steps"}  # fmt: skip


def knobs(settings: Mapping) -> int:
    """How many numbers of a stage's settings somebody had to choose: all but those of speed, and the batch."""
    return len(settings.keys() - _NOT_KNOBS) + 1


def comparison(record: Record, front: Frontier, weights: Mapping[str, float]) -> list[tuple[str, ...]]:
    """The article's table, measured: rows of (what, one text a recorded method), the head first.

    front: of gold. weights: of `weights_on_one_base`, in MB.
    """
    profile, lines = get_profile(record.found["profile"]), lines_by_part()
    total = {"RLHF": sum(lines["RLHF"].values()), "DPO": sum(lines["DPO"].values())}
    held = weights_held(**weights)
    columns: dict[str, list[tuple[str, str]]] = {}
    for what in record.methods:
        ppo, knob = what == "ppo", record.default(what)
        stages, runs = ("sft", *BEFORE[what], what), record.of(what, knob)
        settings = [profile.reward, profile.ppo] if ppo else [profile.dpo]
        if what == "dpo":
            settings = [{k: v for k, v in profile.dpo.items() if not k.startswith("loss_")}]
        drawn = runs[0].found["drawn"]
        gold = [run.gold.mean() for run in runs]
        sweep = [record.mean(what, setting, "gold") for setting, _ in record.settings(what)]
        columns[LABELS[what]] = [
            ("stages", f"{len(stages)}: SFT, {'reward model, PPO' if ppo else 'DPO'}"),
            ("lines of code", f"{total['RLHF' if ppo else 'DPO']}"),
            ("numbers to choose", f"{sum(map(knobs, settings))}"),
            ("core-seconds after SFT", f"{sum(record.cost(stage, 'core_seconds') for stage in stages[1:]):.0f}"),
            ("peak MB over the libraries'", f"{max(_above(record, stage) for stage in stages[1:]):.0f}"),
            ("roles", "4: policy, reference, reward, value" if ppo else "2: policy, reference"),
            (
                "weights held, MB",
                f"{held['RLHF, one base and adapters' if ppo else 'DPO, one base and an adapter']:.1f}",
            ),
            ("replies sampled", f"{drawn['replies']:,}"),
            ("tokens generated", f"{drawn['tokens']:,}"),
            ("gold", f"{mean_interval(record.mean(what, knob, 'gold')):.2f}"),
            ("KL, nats", f"{mean_interval(record.mean(what, knob, 'kl')):.2f}"),
            (
                "share of the frontier",
                f"{share(record.mean(what, knob, 'gold'), record.mean(what, knob, 'kl'), front)}",
            ),
            ("gold's spread over seeds", f"{spread_over_seeds(gold)}" if len(gold) > 1 else "one seed only"),
            ("gold's spread over settings", f"{spread_over_settings(sweep).spread}" if len(sweep) > 1 else "one only"),
        ]
    names = [name for name, _ in next(iter(columns.values()))]
    return [("", *columns), *((name, *(rows[i][1] for rows in columns.values())) for i, name in enumerate(names))]


def _above(record: Record, what: str) -> float:
    return record.cost(what, "peak_mb") - record.cost(what, "libraries_mb")


# ---- what it says ----


def findings(record: Record, fronts: Mapping[str, Frontier]) -> dict[str, str]:
    """What the record says, in sentences that hold whoever won; `fronts` of "gold" and "proxy".

    Keys: cost, nearest, proxy, ahead, seeds, settings.
    """
    methods, knob = record.methods, record.default

    def ranked(reward: str) -> dict[str, Interval]:
        known = {
            what: share(record.mean(what, knob(what), reward), record.mean(what, knob(what), "kl"), fronts[reward])
            for what in methods
        }
        return dict(sorted(known.items(), key=lambda item: -item[1].value))

    gold, proxy = ranked("gold"), ranked("proxy")
    found = {"cost": _cost(record)}
    found["nearest"] = (
        "Of what the frontier allows in gold at its own KL, at the profile's settings, "
        f"{', '.join(f'{LABELS[what]} reaches {got}' for what, got in gold.items())}."
    )
    order = "in the same order" if list(proxy) == list(gold) else "in another order"
    values = ", ".join(f"{LABELS[what]} {got}" for what, got in proxy.items())
    found["proxy"] = f"By the reward model's score they come {order}: {values}."
    found["ahead"] = " ".join(_ahead(record, "ppo", what) for what in methods if what != "ppo")
    by_seed = {w: [run.gold.mean() for run in record.of(w, knob(w))] for w in methods}
    found["seeds"] = _compared({w: spread_over_seeds(v) for w, v in by_seed.items() if len(v) > 1}, "seeds")
    sweeps = {w: [record.mean(w, k, "gold") for k, _ in record.settings(w)] for w in methods}
    swept = {w: spread_over_settings(v).spread for w, v in sweeps.items() if len(v) > 1}
    found["settings"] = _compared(swept, "settings")
    return found


def _cost(record: Record) -> str:
    after = {w: sum(record.cost(s, "core_seconds") for s in (*BEFORE[w], w)) for w in record.methods}
    memory = {w: max(_above(record, s) for s in (*BEFORE[w], w)) for w in record.methods}
    seconds = ", ".join(f"{LABELS[w]} {s:.0f}" for w, s in after.items())
    megabytes = ", ".join(f"{LABELS[w]} {mb:.0f}" for w, mb in memory.items())
    return f"Core-seconds after SFT: {seconds}. Peak MB above the libraries': {megabytes}."


def _ahead(record: Record, one: str, other: str) -> str:
    """Gold of two methods at the profile's knobs, compared prompt by prompt."""
    gold, kl = (record.mean(one, record.default(one), name) - record.mean(other, record.default(other), name)
                for name in ("gold", "kl"))  # fmt: skip
    gap = mean_interval(gold)
    sign = "more" if gap.low > 0 else "less" if gap.high < 0 else "neither more nor less, as far as these prompts tell,"
    far = f"{abs(kl.mean()):.2f} nats {'farther from' if kl.mean() > 0 else 'nearer to'} SFT"
    return f"At the profile's settings {LABELS[one]} has {sign} gold than {LABELS[other]}: {gap:+.2f}, {far}."


def _compared(spreads: Mapping[str, Interval], over: str) -> str:
    if len(spreads) < 2:
        return f"Too few {over} are recorded to compare spreads over {over}."
    ranked = sorted(spreads, key=lambda what: -spreads[what].value)
    values = ", ".join(f"{LABELS[w]} {spreads[w]}" for w in ranked)
    apart = spreads[ranked[0]].low > max(spreads[w].high for w in ranked[1:])
    verdict = (
        f"{LABELS[ranked[0]]}'s is the largest" if apart else "their intervals overlap, so none is shown to be larger"
    )
    return f"Gold's spread over {over}: {values}; {verdict}."
