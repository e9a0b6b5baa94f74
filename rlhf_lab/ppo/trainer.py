"""PPO for language models, as one reads it in the papers: rollout, score, advantages, update.

Sources: Ziegler et al. 2019 (arXiv 1909.08593), Stiennon et al. 2020 (2009.01325), Ouyang et al. 2022 (2203.02155),
Schulman et al. 2017 (1707.06347), Huang et al. 2024, "The N+ implementation details" (2403.17031). Arguments and the
names in the log are those of TRL 1.12's PPOTrainer.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from rlhf_lab.errors import UserError
from rlhf_lab.losses import ppo_policy_loss, ppo_policy_stats, ppo_value_loss, ppo_value_stats, token_logps
from rlhf_lab.ppo.config import PPOConfig
from rlhf_lab.ppo.roles import OneBaseRoles, SeparateRoles, disable_dropout
from rlhf_lab.ppo.rollout import Rollout, align_right, response_mask, score_by_function
from rlhf_lab.returns import AdaptiveKLController, FixedKLController, gae, kl_estimate, per_token_rewards, whiten
from rlhf_lab.sampling import sample

TRAINED_WEIGHTS = "ppo_trained.safetensors"
PPO_STATE = "ppo_state.json"


class PPOTrainer(Trainer):
    """Train a policy by PPO against a reward, with a KL penalty to a reference.

    Args:
        args: PPOConfig.
        processing_class: the policy's tokenizer. Its pad token must not be its eos.
        model: the policy, a causal language model, or a PeftModel of one.
        ref_model: the reference; None with PEFT (the base with adapters off is it), else a copy of the policy.
        reward_model: a sequence classifier with one label, the folder of a reward adapter trained on the same base
            (with `peft_config`), a function of (prompts, completions, **columns) -> list of floats, or a list of these,
            whose scores are added.
        train_dataset: rows with `prompt` (text, or a conversation) or, as in TRL, `input_ids`.
        value_model: a sequence classifier with one label. None with `peft_config`: an adapter on the same base, which
            starts as the reward adapter where there is one.
        peft_config: LoRA of the policy, and of the value where it shares the base.
    """

    _tag_names = ("rlhf-lab", "ppo")

    def __init__(
        self,
        args: PPOConfig,
        processing_class,
        model,
        ref_model=None,
        reward_model=None,
        train_dataset=None,
        value_model=None,
        data_collator=None,
        eval_dataset=None,
        optimizers=(None, None),
        callbacks=None,
        peft_config=None,
    ) -> None:
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        if reward_model is None:
            raise ValueError("`reward_model` is required: a model, the folder of a reward adapter, or a function")
        if ref_model is model:
            raise ValueError("`ref_model` cannot be `model` itself: pass a copy, or None with PEFT")
        if processing_class.pad_token_id is None or processing_class.pad_token_id == processing_class.eos_token_id:
            raise UserError("pad token is missing or equals eos", where="processing_class", fix="Set another pad_token")
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        rewards = reward_model if isinstance(reward_model, (list, tuple)) else [reward_model]
        networks = [r for r in rewards if isinstance(r, (str, Path, torch.nn.Module))]
        if len(networks) > 1:
            raise ValueError("at most one reward model; add functions to it as you like")
        self.reward_functions = [r for r in rewards if not isinstance(r, (str, Path, torch.nn.Module))]
        network = networks[0] if networks else None
        self.roles = self._assign_roles(args, model, ref_model, network, value_model, peft_config)
        self.has_reward_network = network is not None
        for module in (model, ref_model, value_model, network):
            if isinstance(module, torch.nn.Module):
                disable_dropout(module)
        args.remove_unused_columns = False
        args.average_tokens_across_devices = False
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or (lambda rows: rows),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            optimizers=optimizers,
            callbacks=callbacks,
        )
        self._set_sizes()
        self.roles.to(self.accelerator.device)
        self.stop_id = processing_class.eos_token_id if args.stop_token_id is None else args.stop_token_id
        self.kl_controller = (
            AdaptiveKLController(args.kl_coef, args.target, args.horizon)
            if args.adap_kl_ctrl
            else FixedKLController(args.kl_coef)
        )
        self.episode = 0

    @staticmethod
    def _assign_roles(args, model, ref_model, reward, value_model, peft_config):
        from peft import PeftModel

        if peft_config is not None and value_model is None and ref_model is None:
            return OneBaseRoles(model, reward, peft_config)
        if value_model is None:
            raise ValueError("`value_model` is required unless peft_config lets it share the policy's base")
        if isinstance(reward, (str, Path)):
            raise ValueError("a reward adapter's folder needs peft_config and no value_model or ref_model")
        if ref_model is None and not isinstance(model, PeftModel):
            from copy import deepcopy

            ref_model = deepcopy(model).eval()
        adapter = args.model_adapter_name or "default"
        return SeparateRoles(model, ref_model, value_model, reward, args.ref_adapter_name, adapter)

    def _set_sizes(self) -> None:
        args = self.args
        if args.total_episodes is None:
            args.total_episodes = int(args.num_train_epochs * len(self.train_dataset))
        world = args.world_size = self.accelerator.num_processes
        args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        args.micro_batch_size = args.per_device_train_batch_size * world
        args.batch_size = args.local_batch_size * world
        if args.local_batch_size % args.num_mini_batches:
            raise ValueError(
                f"a batch of {args.local_batch_size} episodes does not divide into {args.num_mini_batches} minibatches"
            )
        args.local_mini_batch_size = args.local_batch_size // args.num_mini_batches
        args.mini_batch_size = args.local_mini_batch_size * world
        args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)
        args.generation_batch_size = args.generation_batch_size or args.local_rollout_forward_batch_size

    # ---------------------------------------------------------------- the algorithm

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Run `total_episodes` episodes. Resumes from a checkpoint folder with the same results as without a break."""
        self._start(resume_from_checkpoint)
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
            batch = self.rollout(self._next_rows())
            self.score(batch)
            self.compute_advantages(batch)
            stats = self.update(batch)
            self._finish_step(batch, stats)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(self.state.global_step, float("nan"), {})

    @torch.no_grad()
    def rollout(self, rows: list[dict]) -> Rollout:
        """Phase 1: the policy answers a batch of prompts."""
        prompts = [row.get("prompt", row.get("input_ids")) for row in rows]
        queries, query_mask = self._tokenize(prompts)
        tokenizer, pad, limit = self.processing_class, self.processing_class.pad_token_id, self.args.response_length
        how = {"stop_ids": [self.stop_id], "pad_id": pad, "temperature": self.args.temperature}
        self.model.eval()
        batches = (x.split(self.args.generation_batch_size) for x in (queries, query_mask))
        parts = [sample(self.model, ids, mask, limit, **how) for ids, mask in zip(*batches, strict=True)]
        longest = max(part.shape[1] for part in parts)
        responses = torch.cat([torch.nn.functional.pad(p, (0, longest - p.shape[1]), value=pad) for p in parts])
        mask, ended = response_mask(responses, self.stop_id)
        completions = tokenizer.batch_decode(responses, skip_special_tokens=True)
        # What a reply is short of the longest goes to the left, so that a row has padding on one side only.
        short = (~mask).sum(1)
        input_ids = align_right(torch.cat([queries, responses], dim=1), short)
        attention_mask = align_right(torch.cat([query_mask, mask.long()], dim=1), short)
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "input_ids")}
        return Rollout(prompts, input_ids, attention_mask, align_right(mask, short), ended, completions, columns)

    @torch.no_grad()
    def score(self, batch: Rollout) -> None:
        """Phase 2: score each reply; log-probs of policy and reference, and the values, of each token."""
        device = batch.mask.device
        batch.logps, batch.ref_logps, batch.values = (torch.zeros(batch.mask.shape, device=device) for _ in range(3))
        batch.scores = torch.zeros(len(batch.prompts), device=device)
        everything = torch.arange(len(batch.prompts), device=device)
        for index in batch.chunks(everything, self.args.local_rollout_forward_batch_size):
            input_ids, attention_mask, length = batch.rows(index)
            labels = input_ids[:, -length:]
            for target, logits in (
                (batch.logps, self.roles.logits(input_ids, attention_mask, length + 1)),
                (batch.ref_logps, self.roles.reference_logits(input_ids, attention_mask, length + 1)),
            ):
                target[index, -length:] = token_logps(logits[:, :-1] / self.args.temperature, labels)
            batch.values[index, -length:] = self.roles.values(input_ids, attention_mask)[:, -length - 1 : -1].float()
            if self.has_reward_network:
                batch.scores[index] = self.roles.scores(input_ids, attention_mask)
        for known in (batch.logps, batch.ref_logps, batch.values):
            known.masked_fill_(~batch.mask, 0.0)
        completions = batch.completions
        if not isinstance(batch.prompts[0], str):
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        for function in self.reward_functions:
            batch.scores += score_by_function(function, batch.prompts, completions, batch.columns).to(device)
        for row in (~torch.isfinite(batch.scores)).nonzero().flatten().tolist()[:1]:
            raise UserError(
                "the score is not a finite number", where=f"prompt {batch.prompts[row]!r}", fix="Mend the reward"
            )
        if self.args.missing_eos_penalty is not None:
            batch.scores = batch.scores - self.args.missing_eos_penalty * (~batch.ended)

    @torch.no_grad()
    def compute_advantages(self, batch: Rollout) -> None:
        """Phase 3: per-token rewards (KL penalty, the score on the last token), GAE, whitening."""
        args = self.args
        rewards = per_token_rewards(
            batch.scores, batch.logps, batch.ref_logps, batch.mask, self.kl_controller.value, args.kl_estimator
        )
        batch.rewards = whiten(rewards, batch.mask, shift_mean=False) if args.whiten_rewards else rewards
        batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask, args.gamma, args.lam)
        batch.advantages = whiten(batch.advantages, batch.mask)

    def update(self, batch: Rollout) -> dict[str, float]:
        """Phase 4: several passes of clipped policy and value updates over the batch."""
        args, stats = self.args, defaultdict(list)
        self.model.train()
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(len(batch.prompts), device=batch.mask.device)
            for minibatch in order.split(args.local_mini_batch_size):
                self._minibatch_step(batch, minibatch, stats)
            if args.target_kl is not None and stats["policy/approxkl_avg"][-1] > args.target_kl:
                break
        return {name: sum(values) / len(values) for name, values in stats.items()}

    def _minibatch_step(self, batch: Rollout, minibatch: Tensor, stats: dict[str, list[float]]) -> None:
        """One optimizer step. Micro-batches are weighted by their tokens, so that their number changes nothing."""
        args = self.args
        n_tokens = self._sum_over_processes(batch.mask[minibatch].sum())
        totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=batch.mask.device))
        for micro in batch.chunks(minibatch, args.per_device_train_batch_size):
            input_ids, attention_mask, length = batch.rows(micro)
            mask, old_logps, old_values, advantages, returns, labels = (
                getattr(batch, name)[micro, -length:]
                for name in ("mask", "logps", "values", "advantages", "returns", "responses")
            )
            share = mask.sum() / n_tokens
            logits = self.roles.logits(input_ids, attention_mask, length + 1)[:, :-1] / args.temperature
            logps = token_logps(logits, labels)
            policy_loss = ppo_policy_loss(logps, old_logps, advantages, mask, args.cliprange)
            self.accelerator.backward(policy_loss * share)
            # The value goes through its own adapter, after the policy's graph is freed: half the activations at a time.
            values = self.roles.values(input_ids, attention_mask)[:, -length - 1 : -1].float()
            value_loss = ppo_value_loss(values, old_values, returns, mask, args.cliprange_value)
            self.accelerator.backward(args.vf_coef * value_loss * share)
            with torch.no_grad():
                policy = ppo_policy_stats(logps, old_logps, advantages, mask, args.cliprange)
                value = ppo_value_stats(values, old_values, returns, mask, args.cliprange_value)
                probabilities = logits.float().softmax(-1)
                entropy = logits.float().logsumexp(-1) - (probabilities * logits).sum(-1)
                for name, number in (
                    ("policy/approxkl_avg", policy["approxkl"]),
                    ("policy/clipfrac_avg", policy["clipfrac"]),
                    ("policy/entropy_avg", entropy[mask].mean()),
                    ("loss/policy_avg", policy_loss.detach()),
                    ("loss/value_avg", value_loss.detach()),
                    ("val/clipfrac_avg", value["clipfrac"]),
                    ("val/ratio", policy["ratio"]),
                ):
                    totals[name] += number * share
        self._sum_gradients_over_processes()
        norm = torch.nn.utils.clip_grad_norm_(self._trained_parameters(), args.max_grad_norm or float("inf"))
        if not torch.isfinite(norm):
            raise UserError(f"the gradient is {norm.item()}", where=f"update {self.state.global_step + 1}",
                            fix="Lower --learning-rate, or go on from the last checkpoint")  # fmt: skip
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, total in totals.items():
            stats[name].append(float(self._sum_over_processes(total)))
        stats["grad_norm"].append(float(norm))

    # ---------------------------------------------------------------- around it

    def _start(self, resume_from_checkpoint: str | bool | None) -> None:
        args = self.args
        self.state.max_steps, self.state.num_train_epochs = args.num_total_batches, math.ceil(args.num_train_epochs)
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.compute_steps(args, args.num_total_batches)
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        self.create_optimizer_and_scheduler(num_training_steps=args.num_total_batches)
        self.callback_handler.optimizer, self.callback_handler.lr_scheduler = self.optimizer, self.lr_scheduler
        torch.manual_seed(args.seed + 100_003 * self.accelerator.process_index)
        if resume_from_checkpoint is True:
            from transformers.trainer_utils import get_last_checkpoint

            resume_from_checkpoint = get_last_checkpoint(args.output_dir)
        if resume_from_checkpoint:
            self._load(Path(resume_from_checkpoint))
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

    def _tokenize(self, prompts: list) -> tuple[Tensor, Tensor]:
        """Left padded (B, P) ids and mask of prompts that are text, conversations, or ids already."""
        tokenizer = self.processing_class
        if isinstance(prompts[0], str):
            ids = tokenizer(prompts)["input_ids"]
        elif isinstance(prompts[0][0], dict):
            ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)[
                "input_ids"
            ]
        else:
            ids = [[token for token in row if token != tokenizer.pad_token_id] for row in map(list, prompts)]
        limit = self.args.max_prompt_length
        for prompt, row in zip(prompts, ids, strict=True):
            if limit is not None and len(row) > limit:
                raise UserError(
                    f"prompt of {len(row)} tokens is over max_prompt_length {limit}", where=repr(prompt)[:80]
                )
        width = max(map(len, ids))
        queries = torch.full((len(ids), width), tokenizer.pad_token_id)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for row, tokens in enumerate(ids):
            queries[row, width - len(tokens) :] = torch.as_tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        return queries.to(self.accelerator.device), mask.to(self.accelerator.device)

    def _finish_step(self, batch: Rollout, stats: dict[str, float]) -> None:
        args = self.args
        kl = kl_estimate(batch.logps, batch.ref_logps, "k1").masked_fill(~batch.mask, 0).sum(1)
        kl_coef = self.kl_controller.value
        means = {
            "objective/kl": kl.mean(),
            "objective/entropy": -(batch.logps * batch.mask).sum(1).mean(),
            "objective/scores": batch.scores.mean(),
            "objective/non_score_reward": -kl_coef * kl.mean(),
            "objective/rlhf_reward": batch.scores.mean() - kl_coef * kl.mean(),
            "val/num_eos_tokens": batch.ended.float().sum(),
            "completions/mean_length": batch.mask.sum(1).float().mean(),
        }
        world = self.accelerator.num_processes
        logs = {name: float(self._sum_over_processes(value)) / world for name, value in means.items()}
        self.kl_controller.update(logs["objective/kl"], args.batch_size)
        self.episode += args.batch_size
        self.state.global_step += 1
        self.state.epoch = self.episode / len(self.train_dataset)
        logs |= stats | {
            "objective/kl_coef": kl_coef,
            "lr": self.lr_scheduler.get_last_lr()[0],
            "episode": self.episode,
        }
        self.lr_scheduler.step()
        self.control = self.callback_handler.on_step_end(args, self.state, self.control)
        if self.control.should_log or self.state.global_step in (1, self.state.max_steps):
            self.log(logs)
        if self.control.should_save:
            self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_save(args, self.state, self.control)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """Everything with a gradient, by name: the policy's and the value's."""
        return {name: p for name, p in self.roles.named_parameters() if p.requires_grad}

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return list(self._trained().values())

    def create_optimizer(self, model=None):
        """AdamW over policy and value; weight decay spares vectors, as Trainer's own."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args)
            parameters = self._trained_parameters()
            groups = [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.args.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ]
            self.optimizer = cls([group for group in groups if group["params"]], **kwargs)
        return self.optimizer

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum") if self.accelerator.num_processes > 1 else value

    def _sum_gradients_over_processes(self) -> None:
        """Shares are of the tokens of all processes, so gradients add up to that of one big minibatch."""
        if self.accelerator.num_processes > 1:
            for parameter in self._trained_parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's checkpoint, plus what the value trained and the KL coefficient."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            save_file({n: p.detach().contiguous() for n, p in self._trained().items()}, folder / TRAINED_WEIGHTS)
            record = {"kl_coef": self.kl_controller.value, "episode": self.episode}
            (folder / PPO_STATE).write_text(json.dumps(record), encoding="utf-8")
        super()._save_checkpoint(model, trial)

    def _load(self, folder: Path) -> None:
        from transformers import TrainerState

        try:
            weights = load_file(folder / TRAINED_WEIGHTS)
            record = json.loads((folder / PPO_STATE).read_text(encoding="utf-8"))
            state = TrainerState.load_from_json(os.fspath(folder / "trainer_state.json"))
        except Exception as error:
            raise UserError(f"checkpoint cannot be read ({type(error).__name__})", where=str(folder),
                            fix="Name an earlier checkpoint, or remove this one") from error  # fmt: skip
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(weights[name])
        self.kl_controller.value, self.episode = record["kl_coef"], record["episode"]
        self.state.global_step, self.state.epoch, self.state.log_history = (
            state.global_step,
            state.epoch,
            state.log_history,
        )
        self._load_optimizer_and_scheduler(os.fspath(folder))
        self._load_rng_state(os.fspath(folder))
