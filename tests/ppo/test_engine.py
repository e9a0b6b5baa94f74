"""The PPO engine on a Llama of a few thousand parameters: what must hold whatever the hyperparameters."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from small import PROMPTS, filled, tiny, trainer
from transformers import LlamaForSequenceClassification

from rlhf_lab.errors import UserError
from rlhf_lab.ppo import PPOConfig, PPOTrainer
from rlhf_lab.ppo.rollout import response_mask
from rlhf_lab.rewards import score_by_function

# Recorded from TRL 1.12.0 by record_trl_1_12.py.
TRL = json.loads(Path(__file__).with_name("trl_1_12.json").read_text(encoding="utf-8"))


def test_config_has_trl_1_12s_fields_and_defaults():
    ours = {field.name: field.default for field in fields(PPOConfig)}
    assert {name: ours.get(name, "missing") for name in TRL["fields"]} == TRL["fields"]
    assert PPOConfig(output_dir="unused", use_cpu=True).bf16 is True  # None means on, unless fp16 is


def test_trainer_takes_trl_1_12s_arguments_in_their_order():
    assert list(inspect.signature(PPOTrainer).parameters) == TRL["arguments"]


def test_response_mask_ends_with_the_first_stop_token():
    mask, ended = response_mask(torch.tensor([[5, 9, 7, 9], [5, 6, 7, 8], [9, 9, 9, 9]]), stop_id=9)
    assert mask.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert ended.tolist() == [True, False, True]


def test_at_the_start_the_policy_is_the_reference_and_the_ratio_is_one(tokenizer, tmp_path):
    t = trainer(tokenizer, tmp_path)
    batch = filled(t)
    assert torch.equal(batch.logps, batch.ref_logps)
    stats = {}
    from collections import defaultdict

    stats = defaultdict(list)
    t._minibatch_step(batch, torch.arange(4), stats)
    assert stats["val/ratio"][0] == pytest.approx(1, abs=1e-5)
    assert stats["policy/approxkl_avg"][0] == pytest.approx(0, abs=1e-9)
    assert stats["policy/clipfrac_avg"][0] == 0


def test_rollout_scores_what_the_policy_says_of_its_own_tokens(tokenizer, tmp_path):
    """Each log-prob equals that of a plain forward pass over the row alone, unpadded."""
    t = trainer(tokenizer, tmp_path, temperature=0.8)
    batch = filled(t)
    for row in range(3):
        whole = batch.input_ids[row][batch.attention_mask[row].bool()]
        reply = batch.responses[row][batch.mask[row]]
        prompt = whole[: len(whole) - len(reply)]
        with torch.no_grad():
            logits = t.model(input_ids=torch.cat([prompt, reply])[None]).logits[0, len(prompt) - 1 : -1] / 0.8
        expected = logits.log_softmax(-1).gather(-1, reply[:, None]).squeeze(-1)
        torch.testing.assert_close(batch.logps[row][batch.mask[row]], expected, atol=1e-5, rtol=1e-5)
        assert batch.logps[row][~batch.mask[row]].abs().sum() == 0 or not (~batch.mask[row]).any()


def test_a_rollout_is_padded_on_the_left_only_and_ends_with_its_reply(tokenizer, tmp_path):
    t = trainer(tokenizer, tmp_path, model=tiny(tokenizer, initializer_range=0.3))
    batch = filled(t)
    assert batch.attention_mask.sum(1).max() == batch.attention_mask.shape[1]
    assert batch.attention_mask[:, -1].all() and batch.mask[:, -1].all()
    for row in range(len(batch.prompts)):
        tokens = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        asked = tokenizer.apply_chat_template(batch.prompts[row], add_generation_prompt=True)["input_ids"]
        reply = batch.responses[row][batch.mask[row]].tolist()
        assert tokens == asked + reply
        assert tokenizer.decode(reply, skip_special_tokens=True) == batch.completions[row]
        assert (tokenizer.eos_token_id in reply) == bool(batch.ended[row])


def gradients(t, batch, micro):
    from collections import defaultdict

    t.args.per_device_train_batch_size = micro
    kept = {}
    step = t.optimizer.step
    t.optimizer.step = lambda: kept.update({n: p.grad.clone() for n, p in t._trained().items() if p.grad is not None})
    t._minibatch_step(batch, torch.arange(8), defaultdict(list))
    t.optimizer.step = step
    return kept


def test_micro_batches_give_the_gradient_of_the_whole(tokenizer, tmp_path):
    t = trainer(tokenizer, tmp_path)
    batch = filled(t)
    whole, pieces = gradients(t, batch, 8), gradients(t, batch, 1)
    assert whole.keys() == pieces.keys() and len(whole) > 10
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], atol=1e-5, rtol=1e-4)


def test_more_padding_changes_nothing(tokenizer, tmp_path):
    t = trainer(tokenizer, tmp_path)
    batch = filled(t)
    before = gradients(t, batch, 4)
    n, pad = len(batch.prompts), tokenizer.pad_token_id
    for name, width, filler in (
        ("input_ids", 8, pad), ("attention_mask", 8, 0), ("mask", 3, False),
        *((name, 3, 0.0) for name in ("logps", "ref_logps", "values", "rewards", "advantages", "returns")),
    ):  # fmt: skip
        old = getattr(batch, name)
        setattr(batch, name, torch.cat([torch.full((n, width), filler, dtype=old.dtype), old], dim=1))
    after = gradients(t, batch, 4)
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-4)


def test_policy_and_value_both_train_and_the_base_does_not(tokenizer, tmp_path):
    t = trainer(tokenizer, tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in t.roles.named_parameters()}
    t.train()
    moved = {name for name, parameter in t.roles.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in moved if ".default." in name} and {name for name in moved if ".value." in name}
    assert "value_head.weight" in moved
    assert all(".default." in name or ".value." in name or name == "value_head.weight" for name in moved)


def test_it_raises_a_reward(tokenizer, tmp_path):
    """The letter e in eight random tokens: about 3.5 a reply at the start, several more once PPO has sought it out."""
    settings = {
        "per_device_train_batch_size": 256,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 4,
        "num_ppo_epochs": 4,
        "total_episodes": 256 * 24,
        "local_rollout_forward_batch_size": 256,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "kl_coef": 0.0,
        "cliprange_value": 10.0,
    }

    def letters_e(prompts, completions, **_):
        return [float(reply[0]["content"].count("e")) for reply in completions]

    # with weights of the usual 0.02 all tokens stay about equally likely, whatever the adapters do
    t = trainer(tokenizer, tmp_path, letters_e, tiny(tokenizer, initializer_range=0.3), **settings)
    t.train()
    scores = [entry["objective/scores"] for entry in t.state.log_history if "objective/scores" in entry]
    # 256 replies with a standard deviation of about 2: the mean of four updates is known to 0.07
    assert sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 1.0


def test_missing_eos_penalty_is_taken_off_unended_replies_only(tokenizer, tmp_path):
    t = trainer(
        tokenizer, tmp_path, lambda prompts, completions, **_: [1.0] * len(completions), missing_eos_penalty=3.0
    )
    batch = filled(t)
    assert torch.equal(batch.scores, torch.where(batch.ended, 1.0, -2.0))


def test_resume_gives_the_same_weights_as_no_break(tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 24}
    straight = trainer(tokenizer, tmp_path / "a", **settings)
    straight.train()
    resumed = trainer(tokenizer, tmp_path / "a", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.state.global_step == straight.state.global_step == 3
    for name, parameter in straight._trained().items():
        assert torch.equal(parameter, resumed._trained()[name]), name


def test_a_broken_checkpoint_is_refused(tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 8}
    trainer(tokenizer, tmp_path, **settings).train()
    weights = tmp_path / "checkpoint-1" / "ppo_trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"checkpoint-1: checkpoint ppo_trained.safetensors is damaged"):
        trainer(tokenizer, tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_separate_models_as_in_trl_1_12(tokenizer, tmp_path):
    t = PPOTrainer(
        args=PPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", disable_tqdm=True, per_device_train_batch_size=4, total_episodes=8, response_length=6,
        ),
        processing_class=tokenizer,
        model=tiny(tokenizer),
        ref_model=tiny(tokenizer),
        reward_model=tiny(tokenizer, LlamaForSequenceClassification, seed=1, num_labels=1),
        value_model=tiny(tokenizer, LlamaForSequenceClassification, seed=2, num_labels=1),
        train_dataset=Dataset.from_list([{"input_ids": tokenizer(p)["input_ids"]} for p in PROMPTS]),
    )  # fmt: skip
    t.train()
    assert t.state.global_step == 2
    assert set(TRL["logged"]) <= set(t.state.log_history[0])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda prompts, completions: 1 / 0, "ZeroDivisionError"),
        (lambda prompts, completions: [1.0], "expected 2 scores, got 1"),
        (lambda prompts, completions: None, "expected 2 scores, got NoneType"),
        (lambda prompts, completions: [1.0, None], "score 1 is None"),
        (lambda prompts, completions: ["a", "b"], "score 0 is 'a'"),
        (lambda prompts, completions: [float("nan"), 0.0], "score 0 is nan"),
    ],
)
def test_a_bad_reward_function_is_reported_by_name(function, said):
    function.__name__ = "politeness"
    with pytest.raises(UserError, match="politeness") as error:
        score_by_function(function, ["a", "b"], ["c", "d"])
    assert said in str(error.value)


def test_adaptive_kl_is_saved_and_restored(tokenizer, tmp_path):
    settings = {"adap_kl_ctrl": True, "target": 0.01, "horizon": 10, "save_strategy": "steps", "save_steps": 1}
    t = trainer(tokenizer, tmp_path, **settings)
    t.train()
    record = json.loads((tmp_path / "checkpoint-2" / "ppo_state.json").read_text())
    assert record["kl_coef"] == t.kl_controller.value != 0.05
