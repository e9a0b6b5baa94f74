"""Our LoRA against peft's on the tiny Llama, against numbers by hand, and against the published size of Llama-2-7B."""

import pytest
import torch
from torch import nn

from rlhf_lab import lora
from rlhf_lab.profiles import ALL_LINEAR, DATA_DIR

TINY_LLAMA = DATA_DIR / "tiny-llama"

R, ALPHA = 8, 32


def load():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(6, 1536, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def twins():
    """The tiny Llama with our LoRA and with peft's, the same random A and B in both."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=R, lora_alpha=ALPHA, target_modules=[*ALL_LINEAR], lora_dropout=0.0, task_type="CAUSAL_LM")
    ours, theirs = load(), get_peft_model(load(), config).eval()
    torch.manual_seed(0)
    lora.add_lora(ours, ALL_LINEAR, R, ALPHA)
    with torch.no_grad():
        for name, layer in ours.named_modules():
            if isinstance(layer, lora.LoRALinear):
                layer.lora_B.normal_(std=0.05)
                twin = theirs.get_submodule(f"base_model.model.{name}")
                twin.lora_A["default"].weight.copy_(layer.lora_A)
                twin.lora_B["default"].weight.copy_(layer.lora_B)
    return ours, theirs


def test_forward_and_merged_are_pefts_to_1e_6(twins, tokens):
    ours, theirs = twins
    with torch.no_grad():
        before = load()(tokens).logits
        logits, wanted = ours(tokens).logits, theirs(tokens).logits
        assert (logits - before).abs().max() > 1  # the adapters do something
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-6)
        merged = lora.merge_lora(ours)
        assert not any(isinstance(layer, lora.LoRALinear) for layer in merged.modules())
        torch.testing.assert_close(merged(tokens).logits, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(merged(tokens).logits, theirs.merge_and_unload()(tokens).logits, rtol=0, atol=1e-6)


def test_gradients_are_pefts_and_none_reaches_the_frozen_weights(twins, tokens):
    ours, theirs = twins
    for model in twins:
        model(tokens, labels=tokens).loss.backward()
    for name, layer in ours.named_modules():
        if isinstance(layer, lora.LoRALinear):
            twin = theirs.get_submodule(f"base_model.model.{name}")
            assert layer.linear.weight.grad is None
            torch.testing.assert_close(layer.lora_A.grad, twin.lora_A["default"].weight.grad, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(layer.lora_B.grad, twin.lora_B["default"].weight.grad, rtol=1e-6, atol=1e-9)
    assert {p.shape for p in ours.parameters() if p.requires_grad} == {
        p.shape for p in theirs.parameters() if p.requires_grad
    }


def test_nothing_changes_at_step_0_and_only_b_has_a_gradient(tokens):
    model = load()
    with torch.no_grad():
        before = model(tokens).logits
    parameters = lora.add_lora(model, ("q_proj",), R, ALPHA)
    logits = model(tokens).logits
    assert torch.equal(logits, before)
    logits.sum().backward()
    norms = [parameter.grad.norm() for parameter in parameters]
    assert all(norm == 0 for norm in norms[::2]) and all(norm > 0 for norm in norms[1::2])


def test_the_formula_by_hand():
    """W = I, A = [1 -1], B = [0.5 0.25]', alpha 4, r 1: x = (1, 2) gives A x = -1, update 4 * (-0.5, -0.25)."""
    x, weight = torch.tensor([[1.0, 2.0]]), torch.eye(2)
    a, b = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5], [0.25]])
    assert lora.lora_forward(x, weight, a, b, 4).tolist() == [[-1.0, 1.0]]
    assert lora.lora_merge(weight, a, b, 4).tolist() == [[3.0, -2.0], [1.0, 0.0]]


def test_alpha_over_r_keeps_the_update_when_the_rank_is_doubled_with_copies():
    """Twice the same rank-one part is that part again: the division by r is what makes it so."""
    x, weight = torch.ones(1, 2), torch.zeros(2, 2)
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0], [1.0]])
    once = lora.lora_forward(x, weight, a, b, 8)
    twice = lora.lora_forward(x, weight, a.repeat(2, 1), b.repeat(1, 2), 8)
    assert torch.equal(once, twice)


def test_a_layer_with_a_bias_keeps_it_and_merges():
    layer = lora.LoRALinear(nn.Linear(3, 2), r=1, alpha=1)
    nn.init.ones_(layer.lora_B)
    x = torch.randn(4, 3)
    with torch.no_grad():
        wanted = layer(x)
        torch.testing.assert_close(layer.merged()(x), wanted)


def test_the_articles_adapters_on_the_true_llama_2_7b():
    """6,738,415,616 parameters (its model card); r 16 on q and v: 32 layers x 2 x 16 x (4096 + 4096)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                         vocab_size=32000)  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == 6_738_415_616
    article = ("q_proj", "v_proj")
    found = lora.lora_parameter_count(lora.linear_shapes(model, article), 16)
    everywhere = lora.lora_parameter_count(lora.linear_shapes(model, ALL_LINEAR), 16)
    assert found == 32 * 2 * 16 * (4096 + 4096) == 8_388_608
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=[*ALL_LINEAR], task_type="CAUSAL_LM"))
    assert everywhere == adapted.get_nb_trainable_parameters()[0] == 39_976_960


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="rank of LoRA is at least 1"):
        lora.LoRALinear(nn.Linear(2, 2), r=0, alpha=1)
    with pytest.raises(ValueError, match="no linear layer is called query"):
        lora.add_lora(nn.Sequential(nn.Linear(2, 2)), ("query",), 1, 1)
