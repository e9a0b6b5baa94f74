"""PPO for language models, as one reads it in the papers: rollout, score, advantages, update.

Sources: Ziegler et al. 2019 (arXiv 1909.08593), Stiennon et al. 2020 (2009.01325), Ouyang et al. 2022 (2203.02155),
Schulman et al. 2017 (1707.06347), Huang et al. 2024, "The N+ implementation details" (2403.17031). Arguments and the
names in the log are those of TRL 1.12's PPOTrainer.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers.trainer_utils import TrainOutput

from rlhf_lab import losses
from rlhf_lab.errors import UserError
from rlhf_lab.forward import disable_dropout
from rlhf_lab.ppo.config import PPOConfig
from rlhf_lab.ppo.loop import PPOLoop
from rlhf_lab.ppo.roles import assign_roles
from rlhf_lab.ppo.rollout import Rollout, align_right, response_mask
from rlhf_lab.returns import gae, kl_estimate, per_token_rewards
from rlhf_lab.rewards import score_by_function
from rlhf_lab.sampling import merged, sample


class PPOTrainer(PPOLoop):
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
        data_collator: of rows with `input_ids`, as in TRL; rarely needed, as rows are padded here.
        eval_dataset: rows for `evaluate` and for the sample completions that are shown while training.
        peft_config: LoRA of the policy, and of the value where it shares the base.
    """

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
        self.has_reward_network = bool(networks)
        network = networks[0] if networks else None
        self.roles = assign_roles(args, model, ref_model, network, value_model, peft_config)
        disable_dropout(self.roles)
        super().__init__(
            args, data_collator, model=model, processing_class=processing_class, train_dataset=train_dataset,
            eval_dataset=eval_dataset, optimizers=optimizers, callbacks=callbacks,
        )  # fmt: skip
        model.add_model_tags(["rlhf-lab", "ppo"])

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
        return self._finish()

    @torch.no_grad()
    def rollout(self, rows: list[dict]) -> Rollout:
        """Phase 1: the policy answers a batch of prompts."""
        prompts, queries, query_mask = self._tokenize(rows)
        tokenizer, pad, limit = self.processing_class, self.processing_class.pad_token_id, self.args.response_length
        how = {"stop_ids": [self.stop_id], "pad_id": pad, "temperature": self.args.temperature}
        self.model.eval()
        batches = zip(*(x.split(self.args.generation_batch_size) for x in (queries, query_mask)), strict=True)
        folded = merged(self.model) if self.args.merge_for_generation else nullcontext()
        with folded, self.accelerator.autocast():
            parts = [sample(self.model, ids, mask, limit, **how) for ids, mask in batches]
        longest = max(part.shape[1] for part in parts)
        responses = torch.cat([torch.nn.functional.pad(p, (0, longest - p.shape[1]), value=pad) for p in parts])
        mask, ended = response_mask(responses, self.stop_id)
        completions = tokenizer.batch_decode(responses, skip_special_tokens=True)
        # What a reply is short of the longest goes to the left, so that a row has padding on one side only.
        short = (~mask).sum(1)
        attention_mask = align_right(torch.cat([query_mask, mask.long()], dim=1), short)
        # Padding is token 0, whatever pad is: a pad token that was added has no row in the embedding.
        input_ids = align_right(torch.cat([queries, responses], dim=1), short).masked_fill(attention_mask == 0, 0)
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "input_ids")}
        return Rollout(prompts, input_ids, attention_mask, align_right(mask, short), ended, completions, columns)

    @torch.no_grad()
    def score(self, batch: Rollout) -> None:
        """Phase 2: score each reply; log-probs of policy and reference, and the values, of each token."""
        device, temperature = batch.mask.device, self.args.temperature
        batch.logps, batch.ref_logps, batch.values = (torch.zeros(batch.mask.shape, device=device) for _ in range(3))
        batch.scores = torch.zeros(len(batch.prompts), device=device)
        everything = torch.arange(len(batch.prompts), device=device)
        for index in batch.chunks(everything, self.args.local_rollout_forward_batch_size):
            ids, attention_mask, n = batch.rows(index)
            with self.accelerator.autocast():
                logits, values = self.roles.logits_and_values(ids, attention_mask, n + 1)
                ref_logits = self.roles.reference_logits(ids, attention_mask, n + 1)
                batch.logps[index, -n:] = losses.token_logps(logits[:, :-1] / temperature, ids[:, -n:])
                batch.ref_logps[index, -n:] = losses.token_logps(ref_logits[:, :-1] / temperature, ids[:, -n:])
                batch.values[index, -n:] = values[:, :-1].float()
                if self.has_reward_network:
                    batch.scores[index] = self.roles.scores(ids, attention_mask).float()
        for known in (batch.logps, batch.ref_logps, batch.values):
            known.masked_fill_(~batch.mask, 0.0)
        self._add_function_scores(batch)
        for row in (~torch.isfinite(batch.scores)).nonzero().flatten().tolist()[:1]:
            raise self._stop(f"the score is {batch.scores[row].item()}", "Mend the reward", batch.prompts[row])
        if self.args.missing_eos_penalty is not None:
            batch.scores = batch.scores - self.args.missing_eos_penalty * (~batch.ended)

    def _add_function_scores(self, batch: Rollout) -> None:
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(batch.prompts, batch.completions, strict=True)
        ]
        ids = [row[mask].tolist() for row, mask in zip(batch.responses, batch.mask, strict=True)]
        for function in self.reward_functions:
            known = batch.columns | {"completion_ids": ids, "trainer_state": self.state}
            try:
                scores = score_by_function(function, batch.prompts, completions, **known)
            except UserError as error:
                raise self._stop(f"{error.where}: {error.what}", error.fix) from error
            batch.scores += torch.tensor(scores, device=batch.scores.device)

    @torch.no_grad()
    def compute_advantages(self, batch: Rollout) -> None:
        """Phase 3: per-token rewards (KL penalty, the score on the last token), GAE, whitening."""
        args = self.args
        kl_coef = 0.0 if args.kl_in_loss else self.kl_controller.value
        rewards = per_token_rewards(batch.scores, batch.logps, batch.ref_logps, batch.mask, kl_coef, args.kl_estimator)
        batch.rewards = self._whiten(rewards, batch.mask, shift_mean=False) if args.whiten_rewards else rewards
        batch.advantages, batch.returns = gae(batch.rewards, batch.values, batch.mask, args.gamma, args.lam)
        batch.advantages = self._whiten(batch.advantages, batch.mask)

    def update(self, batch: Rollout) -> dict[str, float]:
        """Phase 4: several passes of clipped policy and value updates over the batch."""
        args, stats = self.args, defaultdict(list)
        self.model.train()
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(len(batch.prompts)).to(batch.mask.device)
            for minibatch in order.split(args.local_mini_batch_size):
                self._minibatch_step(batch, minibatch, stats)
            if args.target_kl is not None and stats["policy/approxkl_avg"][-1] > args.target_kl:
                break
        ratios = torch.tensor(stats["val/ratio"])
        return {name: sum(values) / len(values) for name, values in stats.items()} | {
            "val/ratio_var": ratios.var(correction=0).item()
        }

    def _minibatch_step(self, batch: Rollout, minibatch: Tensor, stats: dict[str, list[float]]) -> None:
        """One optimizer step. Micro-batches are weighted by their tokens, so that their number changes nothing."""
        args = self.args
        n_tokens = self._sum_over_processes(batch.mask[minibatch].sum())
        totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=batch.mask.device))
        for micro in batch.chunks(minibatch, args.per_device_train_batch_size):
            share = batch.mask[micro].sum() / n_tokens
            for name, number in self._micro_step(batch, micro, share).items():
                totals[name] += number.detach() * share
        norm = self._gradient_norm()
        scales = self.accelerator.scaler or (self.is_deepspeed_enabled and self.accelerator.mixed_precision == "fp16")
        if not torch.isfinite(norm) and not scales:  # a scaler of fp16 skips such a step by itself
            raise self._stop(
                f"the gradient is {norm.item()}", "Lower the learning rate", *self._culprit(batch, minibatch)
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, total in totals.items():
            stats[name].append(float(self._sum_over_processes(total)))
        stats["grad_norm"].append(float(norm))

    def _micro_step(self, batch: Rollout, micro: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Backward of both losses of some rows; returns what to watch."""
        ids, attention_mask, n = batch.rows(micro)
        if self.roles.shared_value:
            with self.accelerator.autocast():
                logits, values = self.roles.logits_and_values(ids, attention_mask, n + 1)
            policy_loss, seen = self._policy_loss(batch, micro, ids, logits[:, :-1])
            value_loss, seen_of_value = self._value_loss(batch, micro, values[:, :-1])
            self._backward((policy_loss + value_loss) * share)
            return seen | seen_of_value
        with self.accelerator.autocast():
            logits = self.roles.logits(ids, attention_mask, n + 1)
        loss, seen = self._policy_loss(batch, micro, ids, logits[:, :-1])
        self._backward(loss * share)
        del logits, loss  # the policy's graph goes before the value's comes: activations are held once
        with self.roles.value_pass():
            with self.accelerator.autocast():
                values = self.roles.values(ids, attention_mask)[:, -n - 1 : -1]
            loss, seen_of_value = self._value_loss(batch, micro, values)
            self._backward(loss * share)
        return seen | seen_of_value

    def _policy_loss(self, batch: Rollout, micro: Tensor, ids: Tensor, logits: Tensor) -> tuple[Tensor, dict]:
        """The clipped policy loss of some rows, with what else is asked to be in it; and what to watch."""
        args, n = self.args, logits.shape[1]
        mask, old_logps, advantages = (x[micro, -n:] for x in (batch.mask, batch.logps, batch.advantages))
        logits = logits / args.temperature
        logps = losses.token_logps(logits, ids[:, -n:])
        loss = total = losses.ppo_policy_loss(logps, old_logps, advantages, mask, args.cliprange)
        if args.kl_in_loss:
            kl = kl_estimate(logps, batch.ref_logps[micro, -n:], args.kl_estimator)
            total = total + self.kl_controller.value * losses.masked_mean(kl, mask)
        with torch.set_grad_enabled(args.entropy_coef != 0):
            entropy = losses.masked_mean(losses.token_entropy(logits), mask)
        if args.entropy_coef:
            total = total - args.entropy_coef * entropy
        watched = losses.ppo_policy_stats(logps.detach(), old_logps, advantages, mask, args.cliprange)
        return total, {
            "loss/policy_avg": loss,
            "policy/approxkl_avg": watched["approxkl"],
            "policy/clipfrac_avg": watched["clipfrac"],
            "policy/entropy_avg": entropy,
            "val/ratio": watched["ratio"],
        }

    def _value_loss(self, batch: Rollout, micro: Tensor, values: Tensor) -> tuple[Tensor, dict]:
        """vf_coef times the clipped value loss of some rows; and what to watch."""
        mask, old_values, returns = (x[micro, -values.shape[1] :] for x in (batch.mask, batch.values, batch.returns))
        known = (values.float(), old_values, returns, mask, self.args.cliprange_value)
        loss, watched = losses.ppo_value_loss(*known), losses.ppo_value_stats(*known)
        return self.args.vf_coef * loss, {"loss/value_avg": loss, "val/clipfrac_avg": watched["clipfrac"]}

    @torch.no_grad()
    def _culprit(self, batch: Rollout, minibatch: Tensor) -> list:
        """The prompt of the minibatch whose log-probs or values are not finite, or none."""
        for row in minibatch:
            ids, attention_mask, n = batch.rows(row[None])
            logps = losses.token_logps(self.roles.logits(ids, attention_mask, n + 1)[:, :-1], ids[:, -n:])
            known = (logps, self.roles.values(ids, attention_mask), batch.advantages[row], batch.returns[row])
            if not all(torch.isfinite(x).all() for x in known):
                return [batch.prompts[row]]
        return []
