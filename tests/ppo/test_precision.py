"""Mixed precision: the forward passes in bf16, the weights and what is computed from the logits in fp32."""

import torch
from small import filled, tiny, trainer


def gradient(t, batch):
    for loss in (t._policy_loss, t._value_loss):
        loss(batch, torch.arange(8), torch.tensor(1.0))
    return {name: p.grad.clone() for name, p in t._trained().items()}


def test_an_update_under_bf16_autocast(tokenizer, tmp_path):
    plain, mixed = (
        trainer(tokenizer, tmp_path, model=tiny(tokenizer, initializer_range=0.3), bf16=bf16) for bf16 in (False, True)
    )
    dtypes = set()
    mixed.model.register_forward_hook(lambda module, inputs, output: dtypes.add(output.logits.dtype))
    batch = filled(plain)
    mixed._start(None)
    expected, got = gradient(plain, batch), gradient(mixed, batch)
    for name in expected:  # bf16 keeps 8 bits of a number: each product is wrong by up to 0.4 % of it
        error = float((got[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-9))
        assert error < 0.1, name
        assert got[name].dtype == torch.float32
    assert error > 0 and dtypes == {torch.bfloat16}  # it was on

    mixed.optimizer.zero_grad()
    before = {name: p.clone() for name, p in mixed._trained().items()}
    mixed.train()
    assert mixed.state.global_step == 2
    for name, p in mixed.roles.named_parameters():
        assert p.dtype == torch.float32 and torch.isfinite(p).all(), name
        assert name not in before or not torch.equal(p, before[name]), name


def test_a_value_is_computed_in_fp32_when_its_weights_are_not(tokenizer, tmp_path):
    """DeepSpeed holds all weights in half precision; a value rounded to its steps would be useless as a regression."""
    t = trainer(tokenizer, tmp_path)
    torch.nn.init.normal_(t.roles.value_head.weight)
    ids = torch.randint(5, 100, (2, 6))
    t.roles.bfloat16()
    values = t.roles.values(ids, torch.ones_like(ids))
    assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())
