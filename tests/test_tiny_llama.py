"""The shipped Llama is what its card says: small, with Llama 3's tokens, one BOS, and able to copy and to parse."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_lab.helpdesk.datasets import held_out_messages
from rlhf_lab.pretrain import SPECIAL_TOKENS
from rlhf_lab.profiles import DATA_DIR

FOLDER = DATA_DIR / "tiny-llama"
CHAT = [
    {"role": "user", "content": "Hey, where is my kettle?"},
    {"role": "assistant", "content": "I found your kettle and it arrives on Friday."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def test_size_and_architecture(model):
    assert AutoConfig.from_pretrained(FOLDER).architectures == ["LlamaForCausalLM"]
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 4e6
    assert (FOLDER / "model.safetensors").stat().st_size <= 10e6
    assert not list(FOLDER.glob("*.bin"))


def test_the_card_states_what_is_promised():
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    assert card["minutes"] <= 20
    assert card["parses"] >= 0.98
    assert card["right_item"] >= card["corpus_right_item"] - 0.03
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ("perplexity", "parses", "right_item", "corpus_right_item"):
        shown = f"{card[name]:.2f}" if name == "perplexity" else f"{card[name]:.1%}"
        assert shown in text


def test_what_the_card_says_of_copying_holds_on_the_spot(tokenizer, model):
    """A fresh sample from the shipped weights; the bounds leave room for the chance in 192 replies."""
    from rlhf_lab.evaluate import generate
    from rlhf_lab.helpdesk.corpus import LOG_TEMPLATE, only_reply
    from rlhf_lab.helpdesk.grammar import read_message, read_reply

    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    messages = sorted(held_out_messages())[:192]
    asked = [LOG_TEMPLATE.format(message=message) for message in messages]
    texts = generate(model, tokenizer, asked, max_new_tokens=96, batch_size=96, seed=5, progress=False)
    replies = [only_reply(text) for text in texts]
    parses = sum(all(s.family for s in read_reply(r)) for r in replies) / len(replies)
    fixes = [
        sentence.item == read_message(message).item
        for message, reply in zip(messages, replies, strict=True)
        for sentence in read_reply(reply)
        if sentence.family == "fix"
    ]
    assert parses > card["parses_at_temperature_1"] - 0.04
    assert sum(fixes) / len(fixes) > card["corpus_right_item"] - 0.09


def test_stars_before_a_reply_steer_it(tokenizer, model):
    """What PPO and DPO will need: the model can write well and badly, and stars say which (arXiv 2302.08582)."""
    from rlhf_lab.evaluate import generate, win_rate
    from rlhf_lab.helpdesk.corpus import LOG_FORMS, only_reply
    from rlhf_lab.helpdesk.gold import gold_reward

    messages = sorted(held_out_messages())[:128]
    gold = {}
    for stars in ("five stars", "one star"):
        asked = [LOG_FORMS[0].format(message=message, stars=f", {stars}") for message in messages]
        texts = generate(model, tokenizer, asked, max_new_tokens=96, batch_size=128, seed=3, progress=False)
        gold[stars] = [gold_reward(message, only_reply(text)) for message, text in zip(messages, texts, strict=True)]
    assert win_rate(gold["five stars"], gold["one star"]).low > 0.7


def test_special_tokens_are_llama_3s(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert all(token in vocabulary for token in SPECIAL_TOKENS)
    assert tokenizer.bos_token == "<|begin_of_text|>"
    assert tokenizer.eos_token == "<|eot_id|>"
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, vocabulary["<|end_of_text|>"])


def test_exactly_one_bos_after_the_template(tokenizer):
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    # the trap: rendered to text first, and tokenised as if it were plain
    twice = tokenizer(tokenizer.apply_chat_template(CHAT, tokenize=False))["input_ids"]
    assert twice.count(tokenizer.bos_token_id) == 2


def test_the_template_is_llama_3s(tokenizer):
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHey, where is my kettle?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nI found your kettle and it arrives on Friday.<|eot_id|>"
    )
    asked = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


@pytest.mark.parametrize(
    "text", ["Ünïcode, 日本語, العربية", "emoji 🦙🦙", "tabs\tand\nlines\r\n", "  spaces  ", "\x00\x7f"]
)
def test_any_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_template_tokens_can_be_told_apart(tokenizer, model):
    """Tokens that no text held end up parallel (cosine 0.998 as trained), and LoRA could not tell them apart."""
    rows = model.get_input_embeddings().weight
    ids = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    vectors = torch.nn.functional.normalize(rows[ids], dim=1)
    cosines = (vectors @ vectors.T)[~torch.eye(3, dtype=torch.bool)]
    assert cosines.max() < 0.9


def test_the_optimizer_takes_every_weight_once_and_a_schedule_reaches_all(model):
    from copy import deepcopy

    from rlhf_lab.pretrain import PretrainConfig, build_optimizer

    model = deepcopy(model)
    optimizer = build_optimizer(model, PretrainConfig())
    taken = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in taken} == {id(p) for p in model.parameters()} and len(taken) == len(set(map(id, taken)))
    assert all(p.ndim == 2 for p in optimizer.parts[0].param_groups[0]["params"])
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does: it replaces the groups
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
    optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_pretraining_runs_from_nothing(tmp_path):
    """A few steps of the same code: loss falls, and what is saved loads."""
    from rlhf_lab.pretrain import PretrainConfig, save, separate_chat_tokens, train

    config = PretrainConfig(max_steps=12, per_device_train_batch_size=16, warmup_steps=2)
    model, tokenizer, _ = train(tmp_path, config)
    separate_chat_tokens(model, tokenizer)
    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = tokenizer("Customer:\nHey, my kettle broke.", return_tensors="pt").input_ids
    assert loaded(input_ids=ids, labels=ids).loss < torch.log(torch.tensor(float(len(tokenizer))))


def test_verdicts_count_more_in_the_loss_of_pretraining(tokenizer):
    """By hand: the mean of -log p over the targets, a mark and stars with weight VERDICT_WEIGHT."""
    from types import SimpleNamespace

    from rlhf_lab.pretrain import VERDICT_WEIGHT, _weighted_loss

    ids = tokenizer("I have refunded the kettle. +++\nFive stars.", return_tensors="pt").input_ids
    words = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    logits = torch.randn(*ids.shape, len(tokenizer), generator=torch.Generator().manual_seed(0))
    losses = -logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    weights = torch.tensor([VERDICT_WEIGHT if word in ("Ġ+++", "Five") else 1.0 for word in words[1:]])
    assert weights.sum() == len(words) - 1 + 2 * (VERDICT_WEIGHT - 1)
    labels = torch.cat([ids, torch.full((1, 3), -100)], dim=1)  # padding counts nothing
    padded = torch.cat([logits, torch.zeros(1, 3, len(tokenizer))], dim=1)
    loss = _weighted_loss(tokenizer)(SimpleNamespace(logits=padded), labels)
    torch.testing.assert_close(loss, (losses * weights).sum() / weights.sum())


def test_a_sentence_ends_alike_before_a_line_s_end_and_before_the_turn_s(tokenizer):
    log = tokenizer.tokenize("Agent:\nTake care.\nFive stars.")
    assert log[log.index("Ġcare") : log.index("Five")] == ["Ġcare", ".", "Ċ"]
    chat = tokenizer.tokenize("Take care.<|eot_id|>")
    assert chat[-2:] == [".", "<|eot_id|>"]
