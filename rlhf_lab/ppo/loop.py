"""What surrounds the algorithm: sizes, prompts, the optimizer, many processes, logs, samples, checkpoints.

Built on transformers.Trainer, which brings devices, precision, callbacks, report_to, saving and push_to_hub.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from transformers.utils.versions import require_version

from rlhf_lab.checkpoints import last_good, require_whole, seal
from rlhf_lab.errors import UserError
from rlhf_lab.evaluate import encode_prompt
from rlhf_lab.ppo.rollout import Rollout
from rlhf_lab.returns import AdaptiveKLController, FixedKLController, kl_estimate, whiten
from rlhf_lab.sampling import pad_left

TRAINED_WEIGHTS = "ppo_trained.safetensors"
PPO_STATE = "ppo_state.json"


class PPOLoop(Trainer):
    """The part of PPOTrainer that is not PPO. `self.roles` is set before this __init__."""

    def __init__(self, args, data_collator=None, **kwargs) -> None:
        args.remove_unused_columns = args.average_tokens_across_devices = False
        super().__init__(args=args, data_collator=data_collator or (lambda rows: rows), **kwargs)
        self._collates = data_collator is not None
        self._set_sizes()
        zero = self.accelerator.state.deepspeed_plugin
        if zero and (zero.zero_stage not in (1, 2) or {"optimizer", "scheduler"} & zero.deepspeed_config.keys()):
            raise UserError("PPO runs under ZeRO-1 and ZeRO-2, with an optimizer and a schedule of its own",
                            where="deepspeed", fix="Set stage to 2 and leave out optimizer and scheduler")  # fmt: skip
        self.roles.to(self.accelerator.device)
        tokenizer = self.processing_class
        self.stop_id = tokenizer.eos_token_id if args.stop_token_id is None else args.stop_token_id
        self.kl_controller = FixedKLController(args.kl_coef)
        if args.adap_kl_ctrl:
            self.kl_controller = AdaptiveKLController(args.kl_coef, args.target, args.horizon)
        self.episode = 0

    def _set_sizes(self) -> None:
        args = self.args
        if args.total_episodes is None:
            args.total_episodes = int(args.num_train_epochs * len(self.train_dataset))
        world = args.world_size = self.accelerator.num_processes
        args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        args.micro_batch_size = args.per_device_train_batch_size * world
        args.batch_size = args.local_batch_size * world
        if args.local_batch_size % args.num_mini_batches:
            raise ValueError(f"{args.local_batch_size} episodes do not divide into {args.num_mini_batches} minibatches")
        args.local_mini_batch_size = args.local_batch_size // args.num_mini_batches
        args.mini_batch_size = args.local_mini_batch_size * world
        args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)
        args.generation_batch_size = args.generation_batch_size or args.local_rollout_forward_batch_size

    # ---------------------------------------------------------------- before, between and after updates

    def _start(self, resume_from_checkpoint: str | bool | None) -> None:
        args = self.args
        self.state.max_steps, self.state.num_train_epochs = args.num_total_batches, math.ceil(args.num_train_epochs)
        self.state.compute_steps(args, args.num_total_batches)
        if args.gradient_checkpointing:
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # in older transformers
            getattr(self.model, new if hasattr(self.model, new) else old)(args.gradient_checkpointing_kwargs)
        self.create_optimizer()
        if self.is_deepspeed_enabled:
            self._start_deepspeed()
        self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        self.create_scheduler(args.num_total_batches)
        self.callback_handler.optimizer, self.callback_handler.lr_scheduler = self.optimizer, self.lr_scheduler
        torch.manual_seed(args.seed + 100_003 * self.accelerator.process_index)
        folder = last_good(args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        if folder:
            self._load(require_whole(folder))
        self._started, self._first_episode = time.time(), self.episode
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)

    def _next_rows(self) -> list[dict]:
        """This update's rows on this process: the data set shuffled anew each time through, from the seed alone."""
        args, n = self.args, len(self.train_dataset)
        first = self.state.global_step * args.batch_size + self.accelerator.process_index * args.local_batch_size
        rows = []
        for position in range(first, first + args.local_batch_size):
            epoch, offset = divmod(position, n)
            if getattr(self, "_order_epoch", None) != epoch:
                generator = torch.Generator().manual_seed(args.seed + epoch)
                self._order_epoch, self._order = epoch, torch.randperm(n, generator=generator).tolist()
            rows.append(self.train_dataset[self._order[offset]])
        return rows

    def _tokenize(self, rows: list[dict]) -> tuple[list, Tensor, Tensor]:
        """(prompts, ids, mask), left padded (B, P). Prompts are text or conversations; ids are decoded for rewards."""
        tokenizer, limit = self.processing_class, self.args.max_prompt_length
        if "prompt" in rows[0]:
            prompts = [row["prompt"] for row in rows]
            ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        else:
            read = self.data_collator(rows)["input_ids"] if self._collates else [row["input_ids"] for row in rows]
            ids = [[int(token) for token in row if token != tokenizer.pad_token_id] for row in read]
            prompts = tokenizer.batch_decode(ids)
        for prompt, row in zip(prompts, ids, strict=True):
            if limit is not None and len(row) > limit:
                raise UserError(f"prompt of {len(row)} tokens is over max_prompt_length", where=repr(prompt)[:80],
                                fix=f"Raise it above {limit}, or leave the row out")  # fmt: skip
        queries, mask = pad_left(ids, 0)
        return prompts, queries.to(self.accelerator.device), mask.to(self.accelerator.device)

    def _finish_step(self, batch: Rollout, stats: dict[str, float]) -> None:
        args, kl_coef = self.args, self.kl_controller.value
        logs = self._objective(batch)
        self.kl_controller.update(logs["objective/kl"], args.batch_size)
        self.episode += args.batch_size
        self.state.global_step += 1
        self.state.epoch = self.episode / len(self.train_dataset)
        logs |= stats | {
            "objective/kl_coef": kl_coef,
            "lr": self.lr_scheduler.get_last_lr()[0],
            "episode": self.episode,
            "eps": (self.episode - self._first_episode) / (time.time() - self._started),
        }
        self.lr_scheduler.step()
        self.control = self.callback_handler.on_step_end(args, self.state, self.control)
        if self.control.should_log or self.state.global_step in (1, self.state.max_steps):
            self.log(logs)
        if self.control.should_evaluate:
            self.evaluate()
        shown_every = max(1, args.num_total_batches // max(args.num_sample_generations, 1))
        if args.num_sample_generations and self.eval_dataset and (self.state.global_step - 1) % shown_every == 0:
            self.generate_completions(sampling=True)
        if self.control.should_save:
            self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_save(args, self.state, self.control)

    def _finish(self) -> TrainOutput:
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(self.state.global_step, float("nan"), {"train_runtime": time.time() - self._started})

    def _objective(self, batch: Rollout) -> dict[str, float]:
        """What PPO maximises and its parts, means a reply over all processes, by TRL's names."""
        kl = kl_estimate(batch.logps, batch.ref_logps, "k1").masked_fill(~batch.mask, 0).sum(1)
        penalty = self.kl_controller.value * kl.mean()
        means = {
            "objective/kl": kl.mean(),
            "objective/entropy": -(batch.logps * batch.mask).sum(1).mean(),
            "objective/scores": batch.scores.mean(),
            "objective/non_score_reward": -penalty,
            "objective/rlhf_reward": batch.scores.mean() - penalty,
            "val/num_eos_tokens": batch.ended.float().sum(),
            "completions/mean_length": batch.mask.sum(1).float().mean(),
        }
        world = self.accelerator.num_processes
        return {name: float(self._sum_over_processes(value)) / world for name, value in means.items()}

    def _sampled(self, rows: list[dict]) -> Rollout:
        """A scored rollout that leaves the random state of training as it was."""
        with torch.random.fork_rng():
            batch = self.rollout(rows)
            self.score(batch)
        return batch

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Answer and score every row of the evaluation set: `objective/scores`, `objective/kl` and the like."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("evaluate needs an eval_dataset")
        objective = self._objective(self._sampled([dataset[i] for i in range(len(dataset))]))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in objective.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def generate_completions(self, sampling: bool = False) -> None:
        """Print a table of evaluation prompts, replies and scores; with `sampling` of the first batch only."""
        if self.eval_dataset is None:
            return
        from rich.console import Console
        from rich.table import Table

        n = min(len(self.eval_dataset), self.args.per_device_eval_batch_size if sampling else len(self.eval_dataset))
        batch = self._sampled([self.eval_dataset[i] for i in range(n)])
        table = Table("query", "model response", "score", show_lines=True)
        for prompt, text, score in zip(batch.prompts, batch.completions, batch.scores.tolist(), strict=True):
            table.add_row(prompt if isinstance(prompt, str) else prompt[-1]["content"], text, f"{score:.3f}")
        if self.is_world_process_zero():
            Console().print(table)

    def create_model_card(self, model_name=None, dataset_name=None, **kwargs) -> None:
        """Trainer's card by TRL's argument names, so that `push_to_hub(dataset_name=...)` works."""
        super().create_model_card(model_name=model_name, **({"dataset": dataset_name} | kwargs))

    # ---------------------------------------------------------------- the optimizer, on one process or many

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """Everything with a gradient, by name: the policy's and the value's."""
        return {name: p for name, p in self.roles.named_parameters() if p.requires_grad}

    def create_optimizer(self, model=None):
        """Trainer's, over policy and value."""
        return super().create_optimizer(self.roles)

    def _start_deepspeed(self) -> None:
        require_version("deepspeed>=0.19.8", "pip install 'rlhf_lab[deepspeed]'")
        args, plugin = self.args, self.accelerator.deepspeed_plugin
        plugin.hf_ds_config.trainer_config_finalize(args, self.model, args.num_total_batches)
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = args.per_device_train_batch_size
        # Ours: the norm to clip at, and when to step, which is not after a fixed number of backward passes.
        plugin.deepspeed_config.update(gradient_clipping=args.max_grad_norm, managed_gradient_accumulation=False)
        engine = torch.nn.Identity()  # DeepSpeed makes ready in its forward, through which we only send the loss
        engine.roles = self.roles
        self.model_wrapped, self.optimizer = self.accelerator.prepare(engine, self.optimizer)

    def _backward(self, loss: Tensor) -> None:
        """Shares are of all processes' tokens: gradients add up to that of one big minibatch."""
        if not self.is_deepspeed_enabled:
            return self.accelerator.backward(loss)
        loss = self.model_wrapped(loss * self.accelerator.num_processes)  # DeepSpeed takes the mean over processes
        self.model_wrapped.backward(loss, scale_wrt_gas=False)

    def _gradient_norm(self) -> Tensor:
        """Add gradients up over processes, clip them, return the norm before. DeepSpeed takes its step here too."""
        parameters = list(self._trained().values())
        if self.is_deepspeed_enabled:
            self.model_wrapped.step()
        elif self.accelerator.num_processes > 1:
            for gradient in (p.grad for p in parameters if p.grad is not None):
                torch.distributed.all_reduce(gradient)
        return torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm or float("inf")))

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum") if self.accelerator.num_processes > 1 else value

    def _whiten(self, x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        """`whiten` over the batch of all processes."""
        padded = self.accelerator.pad_across_processes((x, mask.long()), dim=1, pad_first=True)
        mine = slice(self.accelerator.process_index * len(x), (self.accelerator.process_index + 1) * len(x))
        return whiten(*self.accelerator.gather(padded), shift_mean)[mine, -x.shape[1] :]

    # ---------------------------------------------------------------- checkpoints

    def _stop(self, what: str, fix: str, prompt=None) -> UserError:
        good = last_good(self.args.output_dir)
        back = f"go on from {good}" if good else "start again: there is no checkpoint yet"
        where = f"update {self.state.global_step + 1}" + (f", prompt {prompt!r}" if prompt is not None else "")
        return UserError(what, where=where, fix=f"{fix} and {back}")

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's checkpoint, plus what the value trained and the KL coefficient; sealed when whole."""
        run_dir, limit, push = self._get_output_dir(trial=trial), self.args.save_total_limit, self.args.push_to_hub
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            save_file({n: p.detach().contiguous() for n, p in self._trained().items()}, folder / TRAINED_WEIGHTS)
            record = {"kl_coef": self.kl_controller.value, "episode": self.episode}
            (folder / PPO_STATE).write_text(json.dumps(record), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        # Only once it is whole older ones go, and it is pushed.
        self.args.save_total_limit, self.args.push_to_hub = None, False
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit, self.args.push_to_hub = limit, push
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(folder)
            rotate_checkpoints(output_dir=run_dir, save_total_limit=limit, use_mtime=True)
            if push:
                self._push_from_checkpoint(os.fspath(folder))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's, as without DeepSpeed: up to ZeRO-2 every process holds the whole policy."""
        enabled, self.is_deepspeed_enabled = self.is_deepspeed_enabled, False
        super().save_model(output_dir, _internal_call)
        self.is_deepspeed_enabled = enabled

    def _load(self, folder: Path) -> None:
        weights = load_file(folder / TRAINED_WEIGHTS)
        record = json.loads((folder / PPO_STATE).read_text(encoding="utf-8"))
        state = TrainerState.load_from_json(os.fspath(folder / "trainer_state.json"))
        trained = self._trained()
        if weights.keys() != trained.keys() or (folder / "latest").is_file() != self.is_deepspeed_enabled:
            raise UserError("checkpoint is of another model, or only one of it and this run uses DeepSpeed",
                            where=str(folder), fix="Name the model and set deepspeed as it was made with")  # fmt: skip
        if self.is_deepspeed_enabled:
            self.model_wrapped.load_checkpoint(os.fspath(folder), load_module_strict=False)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(weights[name])
        self.kl_controller.value, self.episode = record["kl_coef"], record["episode"]
        for name in ("global_step", "epoch", "log_history"):
            setattr(self.state, name, getattr(state, name))
        self._load_optimizer_and_scheduler(os.fspath(folder))
        self._load_rng_state(os.fspath(folder))
