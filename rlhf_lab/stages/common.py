"""What the four stages share: their result, where it is kept, training that can be interrupted, what it cost."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_lab.checkpoints import last_good
from rlhf_lab.checks import check_disk, check_lengths, check_model_dir
from rlhf_lab.data import by_length, check_tokens
from rlhf_lab.errors import UserError
from rlhf_lab.fetch import cache_dir
from rlhf_lab.models import load_tokenizer
from rlhf_lab.profiles import REPO_ROOT, Profile

RESULT_FILE = "stage.json"
# Beside the package when one works inside its checkout, so that lessons and `make run` share what they trained; written
# relative to the working directory, for outputs of lessons are kept and hold no path of a machine.
RUNS_DIR = Path(os.path.relpath(REPO_ROOT)) / "runs" if Path.cwd().is_relative_to(REPO_ROOT) else Path("runs")
STAGES_DIR = RUNS_DIR / "stages"
PACKAGE = Path(__file__).resolve().parent.parent
NOT_DECIDING = ("report_to", "run_name", "disable_tqdm")  # settings that leave the result as it is
DISK_MB = 200  # a stage of the smallest model, checkpoint included
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True)
class StageResult:
    """A trained stage: the folder of its weights (safetensors) and what it measured and cost."""

    path: Path
    metrics: dict[str, float]
    history: list[dict]  # the trainer's log, one dict a logging step
    seconds: float
    peak_memory_mb: float
    key: str
    cached: bool = False


class InterruptedTraining(Exception):  # noqa: N818  it is no error
    """Ctrl-C: a checkpoint was written; the message says where, and how to go on."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    return {name: version(name) for name in LIBRARIES}


def _source_hash(modules: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in modules:
        path = PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _content_hash(path: Path) -> str:
    """Hash of a file, or of every file of a model folder."""
    digest = hashlib.sha256()
    files = (
        sorted(f for f in path.rglob("*") if f.is_file() and "checkpoint" not in str(f)) if path.is_dir() else [path]
    )
    for file in files:
        if file.name != RESULT_FILE:
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def cache_key(
    stage: str, profile: Profile, settings: dict, inputs: dict[str, str | Path], code: tuple[str, ...]
) -> str:
    """What decides a stage's result, in 16 hex digits: profile, settings, data, upstream models, code, libraries.

    `inputs` are files, folders or hub ids; `code` the package's modules that the stage runs.
    """
    parts = {
        "stage": stage,
        "profile": {k: v for k, v in asdict(profile).items() if k not in ("sft", "reward", "ppo", "dpo")},
        "settings": {k: str(v) for k, v in sorted(settings.items()) if k not in NOT_DECIDING},
        "inputs": {k: _content_hash(Path(v)) if Path(v).exists() else str(v) for k, v in sorted(inputs.items())},
        "code": _source_hash(("models.py", "data.py", "layouts.py", *code)),
        "libraries": library_versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_result(folder: Path, key: str) -> StageResult | None:
    """The finished result of `key` in `folder`, or None."""
    file = folder / RESULT_FILE
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["key"] != key:
        return None
    fields = {name: record[name] for name in ("metrics", "history", "seconds", "peak_memory_mb", "key")}
    return StageResult(path=folder, cached=True, **fields)


def run_cached(
    folder: Path, key: str, train: Callable[[Path], tuple[dict[str, float], list[dict]]], force: bool = False
) -> StageResult:
    """Train into `folder` unless it already holds the result of `key`.

    Work goes on in a hidden folder beside it and takes its place only when done, so an earlier result survives a run
    that fails, and no folder is ever half-written. A run that was interrupted after a checkpoint is gone on from;
    one that failed before its first leaves nothing. While another process trains the same stage, this one waits.
    """
    with _alone_in(folder):
        if not force and (done := load_result(folder, key)):
            return done
        _refuse_foreign(folder)
        return _train_into(folder, key, train, force)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the one right to work on `folder`: two lessons that are open at once may both want the same stage."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"Another process is training {folder.name}: waiting for it ...", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train_into(
    folder: Path, key: str, train: Callable[[Path], tuple[dict[str, float], list[dict]]], force: bool
) -> StageResult:
    partial = folder.parent / f".{folder.name}.partial"
    marker = partial / "checkpoints" / "key"
    if partial.exists() and (force or not marker.is_file() or marker.read_text(encoding="utf-8") != key):
        shutil.rmtree(partial)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(key, encoding="utf-8")
    started = time.time()
    try:
        with PeakMemory() as memory:
            metrics, history = train(partial)
    except BaseException:
        if not any(marker.parent.glob("checkpoint-*")):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    result = StageResult(folder, metrics, history, time.time() - started, memory.peak_mb, key)
    record = {k: v for k, v in dataclasses.asdict(result).items() if k not in ("path", "cached")}
    record["libraries"] = library_versions()
    (partial / RESULT_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    shutil.rmtree(partial / "checkpoints")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return result


def _refuse_foreign(folder: Path) -> None:
    """Raise UserError when `folder` holds something that no stage wrote: it would be replaced."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RESULT_FILE).is_file():
        raise UserError("holds files that no stage wrote", where=str(folder), fix="Name a new folder with --output")
    if folder.is_file():
        raise UserError("is a file, not a folder", where=str(folder), fix="Name a new folder with --output")


@dataclass(frozen=True)
class Job:
    """What a stage is to do: train from `rows` (read from `source`) into `folder`."""

    profile: Profile
    rows: list[dict]
    source: str
    inputs: dict[str, str | Path]
    folder: Path
    seed: int
    settings: dict

    def prepare(self, max_length: int, batch_size: int | None = None):
        """(tokenizer, data set), once model, lengths, rows and disk have been checked: nothing heavy has loaded yet.

        With a batch size the rows come in batches of like length, for a trainer that reads them in sequence; without
        one, in their own order.
        """
        from datasets import Dataset

        model = self.inputs["model"]
        found = check_model_dir(model)
        if found is not None:
            check_lengths(found, max_length, "max_length")
        check_disk(self.folder, DISK_MB)
        tokenizer = load_tokenizer(model)
        sizes = check_tokens(self.rows, tokenizer, max_length, self.source)
        order = list(range(len(self.rows)))
        if batch_size:
            order = by_length(order, batch_size, sizes.__getitem__, self.seed)
        return tokenizer, Dataset.from_list([self.rows[i] for i in order])

    def config(self, config_class, **defaults):
        """The trainer's config: the stage's defaults, then the profile's settings and the user's."""
        arguments = training_arguments(self.profile, self.folder, self.seed, defaults | self.settings)
        # Checkpoints go once a stage is done; its log stays.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(RUNS_DIR / "tensorboard" / self.folder.name.strip("."))
        return build_config(config_class, arguments, config_class.__name__)


def stage(
    name: str,
    load: Callable[[str | Path], list[dict]],
    train: Callable[[Job], tuple[dict[str, float], list[dict]]],
    code: tuple[str, ...],
    profile: Profile,
    data: str | Path | list[dict],
    inputs: dict[str, str | Path],
    output: Path | None,
    seed: int,
    settings: dict,
    force: bool,
) -> StageResult:
    """Run one stage through the cache. `data` is a file for `load`, or rows already loaded.

    Without `output` the folder is named after what decides the result, so that runs with other settings lie side by
    side.
    """
    rows = data if isinstance(data, list) else None
    seen = hashlib.sha256(json.dumps(rows).encode()).hexdigest() if rows is not None else data
    key = cache_key(name, profile, settings | {"seed": seed}, {"data": seen, **inputs}, code)
    folder = Path(output) if output else STAGES_DIR / f"{profile.name}-{name}-{key}"
    source = "data" if rows is not None else str(data)

    def work(to: Path) -> tuple[dict[str, float], list[dict]]:
        return train(Job(profile, load(data) if rows is None else rows, source, inputs, to, seed, settings))

    return run_cached(folder, key, work, force)


class PeakMemory:
    """Peak memory while the block runs, in MB: of the GPU where there is one, else this process's resident set."""

    def __enter__(self) -> PeakMemory:
        import psutil
        import torch

        self.peak_mb = 0.0
        self._cuda = torch.cuda if torch.cuda.is_available() else None
        self._process = psutil.Process()
        self._done = threading.Event()
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / 1e6)

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        if self._cuda:
            self.peak_mb = self._cuda.max_memory_allocated() / 1e6


def training_arguments(profile: Profile, output: Path, seed: int, settings: dict) -> dict:
    """Arguments that every trainer of ours gets, `settings` last. The profile says the precision; none is guessed."""
    import torch

    on_cpu = not torch.cuda.is_available()
    arguments = {
        "output_dir": str(output / "checkpoints"),
        "seed": seed,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and profile.dtype == "bfloat16",
        "fp16": not on_cpu and profile.dtype == "float16",
        "gradient_checkpointing": profile.needs_gpu,
        "report_to": "none",
        "save_strategy": "no",  # Ctrl-C writes one; --save-strategy steps writes more
        "lr_scheduler_type": "cosine",
        "train_sampling_strategy": "sequential",  # Job.prepare has shuffled, by length
        "logging_steps": 10,
        "logging_first_step": True,  # a run shorter than that still has a log
        "dataloader_pin_memory": not on_cpu,
    }
    return arguments | settings


def build_config(config_class, arguments: dict, where: str):
    """The trainer's own config class, an unknown field or value turned into one line."""
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    for name in arguments:
        if name not in known:
            raise UserError(
                f"{config_class.__name__} has no field {name!r}", where=where, fix="See --help for the fields"
            )
    try:
        return config_class(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(str(error).split("\n")[0], where=where, fix="Mend that value") from error


@contextlib.contextmanager
def _ctrl_c(on_first: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `on_first`; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(signum, frame):
        signal.signal(signal.SIGINT, previous)
        on_first()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _hold_trained_in_fp32(model) -> None:
    """Adapters and heads in float32, as PEFT makes them: mixed precision rounds what it computes, not what it keeps.

    TRL 1.16 turns them to bfloat16 on a quantised model. Then float16's loss scaler fails on the first step (T4), a
    score head meets states of another type, and AdamW's steps of 1e-5 are lost below bfloat16's 3 digits.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def run_trainer(trainer, description: str) -> list[dict]:
    """Train with one progress bar that shows the time left; returns the trainer's log.

    Goes on from the last whole checkpoint in the trainer's output folder if there is one. Ctrl-C ends the step under
    way, writes a checkpoint and raises InterruptedTraining.
    """
    from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
    from transformers.trainer_callback import PrinterCallback

    from rlhf_lab.stages.callbacks import SealCheckpoints, StageProgress, StopOnRequest

    stop = StopOnRequest()
    for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # in a notebook the first is another one
        trainer.remove_callback(callback)
    trainer.add_callback(StageProgress(description))
    trainer.add_callback(stop)
    trainer.add_callback(SealCheckpoints())

    def ask_to_stop() -> None:
        stop.requested = True
        print("\nStopping after this step ... (Ctrl-C again to stop at once)", file=sys.stderr)

    _hold_trained_in_fp32(trainer.model)
    last = last_good(trainer.args.output_dir)
    with _ctrl_c(ask_to_stop):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise InterruptedTraining(
            f"{description} stopped at step {trainer.state.global_step} of {trainer.state.max_steps}. "
            f"The checkpoint is in {trainer.args.output_dir}. Run the same command again to go on from it."
        )
    return [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
