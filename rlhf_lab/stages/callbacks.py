"""Three trainer callbacks: a quiet progress bar, a stop that leaves a checkpoint, and the seal on a whole one."""

from __future__ import annotations

from pathlib import Path

from tqdm.auto import tqdm
from transformers import TrainerCallback

from rlhf_lab.checkpoints import SEAL, seal

# What a person watches, in order of preference, by the name it has in a trainer's log.
SHOWN = ("loss", "objective/scores", "objective/kl", "rewards/accuracies", "accuracy")


class StageProgress(TrainerCallback):
    """One bar with time left and the few numbers that tell whether the training is well."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.description, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        """Move it on."""
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the latest numbers behind it."""
        if self.bar and logs:
            shown = {name.split("/")[-1]: f"{float(logs[name]):.3f}" for name in SHOWN if name in logs}
            if shown:
                self.bar.set_postfix(shown)

    def on_train_end(self, args, state, control, **kwargs):
        """Close it."""
        if self.bar:
            self.bar.close()


class StopOnRequest(TrainerCallback):
    """Once `requested`, save after the step under way and stop."""

    requested = False

    def on_step_end(self, args, state, control, **kwargs):
        """Ask the trainer to save and stop."""
        if self.requested and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint once it is written, so that a half-written one is known as such."""

    def on_save(self, args, state, control, **kwargs):
        """Seal the one just written, unless its trainer has (PPOTrainer does)."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and not (folder / SEAL).is_file():
            seal(folder)
