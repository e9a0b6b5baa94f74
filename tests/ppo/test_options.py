"""What the engine can be told beyond TRL 1.12: each option against the maths or the library that defines it."""

import pytest
import torch
from datasets import Dataset
from small import PROMPTS, filled, tiny, trainer
from transformers import DataCollatorWithPadding, LlamaForSequenceClassification

from rlhf_lab.losses import token_entropy
from rlhf_lab.ppo import PPOConfig, PPOTrainer


def test_token_entropy_is_that_of_torch_distributions():
    logits = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(token_entropy(logits), torch.distributions.Categorical(logits=logits).entropy())


def moved(t):
    """The adapters away from where they start, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in t._trained().items():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
    return t


def gradient_of(t, batch, by_hand):
    """(the engine's gradient of the policy when no advantage speaks, the same by autograd of `by_hand`)."""
    batch.advantages.zero_()
    t._micro_step(batch, torch.arange(8), torch.tensor(1.0))
    policy = {n: p for n, p in t._trained().items() if ".default." in n}
    engine = {n: p.grad.clone() for n, p in policy.items()}
    ids, mask, n = batch.rows(torch.arange(8))
    logits = t.model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -n - 1 : -1]
    loss = by_hand(logits.log_softmax(-1), ids[:, -n:], batch)
    return engine, dict(zip(policy, torch.autograd.grad(loss, list(policy.values())), strict=True))


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_kl_in_the_loss_has_the_gradient_of_its_estimator(tokenizer, tmp_path, kind):
    t = moved(trainer(tokenizer, tmp_path, kl_in_loss=True, kl_estimator=kind, kl_coef=0.7))
    batch = filled(t)
    assert torch.equal(batch.rewards.sum(1), batch.scores)  # none of it in the reward

    def by_hand(logps, labels, batch):
        ratio = logps.gather(-1, labels[..., None])[..., 0] - batch.ref_logps
        kl = 0.5 * ratio**2 if kind == "k2" else torch.exp(-ratio) - 1 + ratio
        return 0.7 * kl[batch.mask].mean()

    engine, expected = gradient_of(t, batch, by_hand)
    for name in expected:
        torch.testing.assert_close(engine[name], expected[name], atol=1e-6, rtol=1e-4)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4


def test_entropy_bonus_has_the_gradient_of_the_entropy(tokenizer, tmp_path):
    t = moved(trainer(tokenizer, tmp_path, entropy_coef=0.3))
    batch = filled(t)

    def by_hand(logps, labels, batch):
        return 0.3 * (logps.exp() * logps).sum(-1)[batch.mask].mean()

    engine, expected = gradient_of(t, batch, by_hand)
    for name in expected:
        torch.testing.assert_close(engine[name], expected[name], atol=1e-6, rtol=1e-4)


def test_k1_in_the_loss_is_refused():
    with pytest.raises(ValueError, match="zero on average"):
        PPOConfig(output_dir="unused", kl_in_loss=True, bf16=False, use_cpu=True)


def test_gradient_checkpointing_changes_no_gradient(tokenizer, tmp_path):
    """Its second forward pass must see the adapter that the first one saw: the value's, for the value."""
    kept = []
    for checkpointing in (False, True):
        t = moved(trainer(tokenizer, tmp_path, gradient_checkpointing=checkpointing))
        batch = filled(t)
        t.model.train()
        t._micro_step(batch, torch.arange(8), torch.tensor(1.0))
        kept.append({n: p.grad.clone() for n, p in t._trained().items() if p.grad is not None})
    plain, checkpointed = kept
    assert plain.keys() == checkpointed.keys() and any(".value." in name for name in plain)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], atol=1e-7, rtol=1e-5)


def test_target_kl_stops_the_passes_over_a_batch(tokenizer, tmp_path):
    t = trainer(tokenizer, tmp_path, num_ppo_epochs=6, target_kl=1e-9)
    batch, steps = filled(t), []
    step = t._minibatch_step
    t._minibatch_step = lambda *args: (steps.append(1), step(*args))
    t.update(batch)
    assert 2 <= len(steps) <= 4  # one pass or two, of two minibatches each


def test_a_model_and_functions_are_added_and_functions_get_the_columns_they_name(tokenizer, tmp_path):
    judge = tiny(tokenizer, LlamaForSequenceClassification, seed=1, num_labels=1)
    seen = {}

    def weight(prompts, completions, weight, completion_ids):
        seen["ids"] = completion_ids
        return weight

    async_like = [judge, weight, lambda prompts, completions, **known: [10.0] * len(prompts)]
    t = trainer(tokenizer, tmp_path, async_like)
    t.train_dataset = t.train_dataset.add_column("weight", [float(i) for i in range(8)])
    rows = [t.train_dataset[i] for i in range(8)]
    batch = t.rollout(rows)
    t.score(batch)
    with torch.no_grad():
        for row in range(8):
            whole = batch.input_ids[row][batch.attention_mask[row].bool()]
            expected = judge(whole[None]).logits[0, 0] + row + 10
            assert float(batch.scores[row]) == pytest.approx(float(expected), abs=1e-4)
            assert seen["ids"][row] == batch.responses[row][batch.mask[row]].tolist()


def test_looking_on_changes_nothing(tokenizer, tmp_path, capsys):
    """Evaluation and sample completions draw from the random numbers of their own."""
    weights = []
    for looked_at in (False, True):
        t = trainer(tokenizer, tmp_path, **({"eval_strategy": "no"} if not looked_at else {}))
        if looked_at:
            t.eval_dataset = t.train_dataset.select(range(4))
            t.args.num_sample_generations = 2
            finish = t._finish_step
            t._finish_step = lambda *args, t=t, finish=finish: (finish(*args), t.evaluate())
        t.train()
        weights.append({n: p.clone() for n, p in t._trained().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "eval_objective/scores" in {name for entry in t.state.log_history for name in entry}
    assert capsys.readouterr().out.count("model response") == 2


def test_text_prompts_token_ids_and_a_collator_ask_the_same(tokenizer, tmp_path):
    ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    ids = [row if row[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *row] for row in ids]
    asked = []
    for rows, collator in (
        ([{"prompt": text} for text in PROMPTS], None),
        ([{"input_ids": row} for row in ids], None),
        ([{"input_ids": row} for row in ids], DataCollatorWithPadding(tokenizer)),
    ):
        t = PPOTrainer(
            args=PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False,
                           report_to="none", per_device_train_batch_size=4, total_episodes=4, response_length=4),
            processing_class=tokenizer,
            model=tiny(tokenizer),
            ref_model=tiny(tokenizer),
            reward_model=lambda prompts, completions: [float(len(c)) for c in completions],
            value_model=tiny(tokenizer, LlamaForSequenceClassification, seed=2, num_labels=1),
            data_collator=collator,
            train_dataset=Dataset.from_list(rows),
        )  # fmt: skip
        _, queries, mask = t._tokenize([t.train_dataset[i] for i in range(4)])
        asked.append([row[keep.bool()].tolist() for row, keep in zip(queries, mask, strict=True)])
        t.train()
    assert asked[0] == asked[1] == asked[2] == ids


def test_a_pad_token_that_the_model_has_no_row_for_is_never_looked_up(tmp_path):
    """As TRL's own example adds one: the tokenizer is one longer than the model."""
    from transformers import AutoTokenizer

    from rlhf_lab.profiles import DATA_DIR

    tokenizer = AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama")
    model = tiny(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == model.config.vocab_size
    t = trainer(tokenizer, tmp_path, model=model)
    t.train()
    assert t.state.global_step == 2


def test_a_shared_value_is_one_pass_and_the_gradient_of_both_losses(tokenizer, tmp_path):
    """Against the two losses on a plain forward pass, differentiated by autograd."""
    t = moved(trainer(tokenizer, tmp_path, shared_value=True, vf_coef=0.7))
    assert not any(".value." in name for name in t._trained()) and "value_head.weight" in t._trained()
    with torch.no_grad():
        t.roles.value_head.weight.normal_(generator=torch.Generator().manual_seed(2))
    batch, rows = filled(t), torch.arange(8)
    batch.returns += 0.5  # or the value starts where it should end
    t._micro_step(batch, rows, torch.tensor(1.0))
    engine = {n: p.grad.clone() for n, p in t._trained().items()}
    ids, mask, n = batch.rows(rows)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = t.model(ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    logps = output.logits[:, -n - 1 : -1].log_softmax(-1).gather(2, ids[:, -n:, None]).squeeze(2)
    values = (output.hidden_states[-1] @ t.roles.value_head.weight.T).squeeze(2)[:, -n - 1 : -1]
    counted, kept = batch.mask[:, -n:], lambda x: x[:, -n:][batch.mask[:, -n:]]
    ratio = (logps[counted] - kept(batch.logps)).exp()
    policy = -(ratio * kept(batch.advantages)).mean()  # at the policy that sampled nothing is clipped
    value = 0.5 * (values[counted] - kept(batch.returns)).square().mean()
    torch.testing.assert_close(values[counted].detach(), kept(batch.values))
    expected = torch.autograd.grad(policy + 0.7 * value, list(t._trained().values()))
    for name, gradient in zip(engine, expected, strict=True):
        torch.testing.assert_close(engine[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_shared_value_needs_one_base(tokenizer, tmp_path):
    value = tiny(tokenizer, LlamaForSequenceClassification, num_labels=1)
    with pytest.raises(ValueError, match="shared_value needs peft_config"):
        PPOTrainer(
            args=PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, shared_value=True, report_to="none"),
            processing_class=tokenizer,
            model=tiny(tokenizer),
            reward_model=lambda prompts, completions: [0.0] * len(prompts),
            value_model=value,
            train_dataset=Dataset.from_list([{"prompt": "Hi."}]),
        )


def test_generation_from_merged_weights_draws_what_the_adapters_draw(tokenizer, tmp_path):
    drawn = []
    for merge in (False, True):
        t = moved(trainer(tokenizer, tmp_path, merge_for_generation=merge))
        t._start(None)
        drawn.append(t.rollout(t._next_rows()).input_ids)
    assert torch.equal(*drawn)
