"""Our twenty lines of DPO against TRL's trainer on the tiny Llama: the same batches, curves, weights."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab import losses, plain_dpo
from rlhf_lab.data import load_preferences
from rlhf_lab.models import load_policy, load_tokenizer, lora_config
from rlhf_lab.profiles import DATA_DIR, TINY

BASE = DATA_DIR / "tiny-llama"
STEPS, PAIRS = 20, 4
SETTINGS = {"beta": 0.1, "learning_rate": 2e-3, "warmup_steps": 3}
GAUGES = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data():
    rows = load_preferences(DATA_DIR / "helpdesk" / "preferences_train.jsonl")[: STEPS * PAIRS]
    tokenizer = load_tokenizer(BASE)
    return SimpleNamespace(
        rows=rows, tokenizer=tokenizer, batches=plain_dpo.batches_of(rows, tokenizer, PAIRS, TINY.max_length)
    )


def trl_trainer(data, folder, **settings):
    """TRL's, told nothing but what ours is told."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=load_policy(BASE, TINY),
        args=DPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
            per_device_train_batch_size=PAIRS, max_steps=STEPS, lr_scheduler_type="cosine", max_length=TINY.max_length,
            train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", gradient_checkpointing=False,
            dataloader_pin_memory=False, **SETTINGS, **settings,
        ),
        train_dataset=Dataset.from_list(data.rows),
        processing_class=data.tokenizer,
        peft_config=lora_config(TINY, "CAUSAL_LM"),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def assert_same_curves(ours, theirs):
    assert len(ours) == len(theirs) == STEPS
    for name in GAUGES:
        a, b = (torch.tensor([step[name] for step in curve]) for curve in (ours, theirs))
        torch.testing.assert_close(a, b, atol=1e-4 if name == "loss" else 2e-3, rtol=1e-4, msg=lambda m, n=name: n + m)
    assert ours[0]["loss"] != pytest.approx(ours[-1]["loss"], abs=0.01)  # it trained


@pytest.mark.parametrize("with_sft", [False, True], ids=["sigmoid", "sigmoid and sft"])
def test_the_same_curve_as_trl(data, tmp_path, with_sft):
    """Loss to 1e-4 over twenty steps, and the weights that come of it."""
    extra = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 2.0]} if with_sft else {}
    trainer = trl_trainer(data, tmp_path, **extra)
    policy = plain_dpo.fresh_policy(BASE, TINY, adapter=plain_dpo.adapter_of(trainer.model))
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "loss" in entry]

    batch_loss = partial(plain_dpo.dpo_sft_batch_loss, sft_weight=2.0) if with_sft else plain_dpo.dpo_batch_loss
    ours = list(plain_dpo.train(policy, data.batches, batch_loss=batch_loss, **SETTINGS))
    assert_same_curves(ours, theirs)
    trained = dict(trainer.model.named_parameters())
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight, trained[name], atol=1e-4, rtol=0)


def test_trl_with_precomputed_log_probs_is_the_same_curve_too(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    trainer = trl_trainer(data, tmp_path, precompute_ref_log_probs=True)
    stored = [torch.tensor(trainer.train_dataset[side]) for side in ("ref_chosen_logps", "ref_rejected_logps")]
    policy = plain_dpo.fresh_policy(BASE, TINY, adapter=plain_dpo.adapter_of(trainer.model))
    batches = plain_dpo.precompute(plain_dpo.adapters_off(policy), data.batches)
    for side in (0, 1):
        ours = torch.cat([batch.ref_logps[side] for batch in batches])
        torch.testing.assert_close(ours, stored[side], atol=1e-3, rtol=0)
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert_same_curves(list(plain_dpo.train(policy, batches, **SETTINGS)), theirs)


def test_a_batch_is_the_one_that_trl_collates(data, tmp_path):
    theirs = next(iter(trl_trainer(data, tmp_path).get_train_dataloader()))
    ours = data.batches[0]
    assert torch.equal(ours.input_ids, theirs["input_ids"])
    assert torch.equal(ours.attention_mask, theirs["attention_mask"])
    assert torch.equal(ours.reply_mask, theirs["completion_mask"])
    reply = ours.input_ids[0][ours.reply_mask[0].bool()]
    assert data.tokenizer.decode(reply) == data.rows[0]["chosen"][0]["content"] + "<|eot_id|>"
    reply = ours.input_ids[PAIRS][ours.reply_mask[PAIRS].bool()]
    assert data.tokenizer.decode(reply) == data.rows[0]["rejected"][0]["content"] + "<|eot_id|>"


def test_the_three_references_agree_until_the_policy_moves(data):
    policy = plain_dpo.fresh_policy(BASE, TINY)
    batch = data.batches[0]
    with torch.no_grad():
        own = plain_dpo.frozen(policy)(batch)
    off = plain_dpo.adapters_off(policy)
    apart = plain_dpo.frozen(load_policy(BASE, TINY))(batch)
    assert plain_dpo.reference_distance(*own, *off(batch)) < 1e-4
    assert plain_dpo.reference_distance(*apart, *off(batch)) < 1e-4

    stored = plain_dpo.precompute(off, data.batches[:2])
    curve = list(plain_dpo.train(policy, stored, steps=6, **SETTINGS))
    assert curve[0]["loss"] == pytest.approx(0.6931, abs=1e-4) and curve[0]["rewards/margins"] == 0
    assert plain_dpo.reference_distance(*stored[0].ref_logps, *off(batch)) < 1e-4  # the reference stood still
    assert plain_dpo.reference_distance(*plain_dpo.frozen(policy)(batch), *off(batch)) > 0.05


def test_reference_distance_sees_what_the_loss_cannot():
    """Both sides of every pair off by the same 3 nats, as with a reference that counts the prompt: margin 0."""
    policy = torch.tensor([-10.0, -12.0]), torch.tensor([-11.0, -9.0])
    ref = policy[0] - 3, policy[1] - 3
    assert losses.dpo_loss(*policy, *ref, beta=0.1).item() == pytest.approx(0.693147, abs=1e-6)
    assert plain_dpo.reference_distance(*policy, *ref) == 3


def test_pairs_that_are_one_text_after_truncation_push_nothing(data):
    """The prompts alone fill 12 tokens, so nothing of the replies is left to tell apart."""
    batches = plain_dpo.batches_of(data.rows[:PAIRS], data.tokenizer, PAIRS, max_length=12)
    [step] = plain_dpo.train(plain_dpo.fresh_policy(BASE, TINY), batches, beta=0.1, learning_rate=1e-3)
    assert step["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert step["grad_norm"] == 0


def test_whoever_stops_reading_stops_training(data):
    policy = plain_dpo.fresh_policy(BASE, TINY)
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    curve = plain_dpo.train(policy, data.batches, beta=0.1, learning_rate=1e-3)
    assert all(torch.equal(before[name], weight) for name, weight in policy.named_parameters())
    next(curve), next(curve)
    changed = {name for name, weight in policy.named_parameters() if not torch.equal(before[name], weight)}
    assert changed and all("lora_" in name for name in changed)
