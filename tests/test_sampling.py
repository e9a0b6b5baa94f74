"""Our sampling against transformers' generate and against the softmax it draws from."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhf_lab.ppo.rollout import response_mask
from rlhf_lab.profiles import DATA_DIR
from rlhf_lab.sampling import merged, position_ids, sample

PROMPTS = [
    "Hey, my kettle broke.",
    "Where is my tent?",
    "I was charged twice for the oven and I am angry.",
    "The sofa.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama")


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_positions_count_tokens_and_not_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_sampling_near_temperature_0_is_the_greedy_reply_of_generate(tokenizer, model):
    """Of each prompt alone, unpadded, so neither padding nor rows that leave the batch change a reply."""
    ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    width = max(map(len, ids))
    queries = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in ids])
    alone = [
        model.generate(torch.tensor([row]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0, len(row) :]
        for row in ids
    ]
    stop = int(alone[0][2])  # a token that ends one of the replies early, so that it leaves
    replies = sample(
        model, queries, (queries != tokenizer.pad_token_id).long(), 12, temperature=1e-6, stop_ids=[stop], pad_id=2
    )
    mask, ended = response_mask(replies, stop)
    assert ended[0] and mask[0].sum() <= 3
    for row, reply in enumerate(alone):
        assert replies[row][mask[row]].tolist() == reply[: int(mask[row].sum())].tolist()


def test_sampling_draws_tokens_as_often_as_the_softmax_says(tokenizer, model):
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        expected = (model(ids).logits[0, -1] / 0.7).softmax(-1)
    torch.manual_seed(0)
    n = 20_000
    drawn = sample(
        model,
        ids.expand(n, -1),
        torch.ones(n, ids.shape[1], dtype=torch.long),
        1,
        temperature=0.7,
        stop_ids=[],
        pad_id=2,
    )[:, 0]
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    likely = expected * n > 5
    deviation = (counts - expected * n)[likely] / (expected * (1 - expected) * n)[likely].sqrt()
    assert likely.sum() > 20
    assert deviation.square().mean() == pytest.approx(1, abs=0.5)  # chi squared over its degrees of freedom


def test_merged_says_what_the_adapters_say_and_leaves_the_weights_as_they_were(tokenizer, model):
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(deepcopy(model), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    before = {name: weight.clone() for name, weight in lora.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected, base = lora(ids).logits, model(ids).logits
        with merged(lora):
            torch.testing.assert_close(lora(ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(lora(ids).logits, expected)
    assert (expected - base).abs().max() > 0.1
    assert all(torch.equal(weight, before[name]) for name, weight in lora.state_dict().items())


def test_merged_refuses_quantised_weights(model):
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(deepcopy(model), LoraConfig(r=4, target_modules=["q_proj"]))
    layer = next(m for m in lora.modules() if hasattr(m, "lora_A")).get_base_layer()
    layer.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)  # as 4 bits are kept
    with pytest.raises(ValueError, match="quantised"), merged(lora):
        pass
