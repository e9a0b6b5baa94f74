"""On a world whose every reply can be listed, PPO ends at the policy that the maths says is best."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhf_lab import exact
from rlhf_lab.ppo import PPOConfig, PPOTrainer

WORDS = ["<pad>", "<eos>", "a", "b", "c", "d", "e"]
BETA = 0.5
# Every reply of at most two tokens: the end at once, a word and the end, or two words that the limit cuts off.
REPLIES = [(1,), *((word, last) for word in range(2, 7) for last in range(1, 7))]


def world():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")),
        pad_token="<pad>", eos_token="<eos>",
    )  # fmt: skip
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def llama(cls, seed, **extra):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, initializer_range=0.25, pad_token_id=0, eos_token_id=1, bos_token_id=None, **extra,
    )  # fmt: skip
    return cls(config)


@torch.no_grad()
def probabilities(model):
    """Of every reply to the prompt "a b"; the pad token is a word like another to the model, and never a reply here."""
    model.eval()
    first = model(torch.tensor([[2, 3]])).logits[0, -1].log_softmax(-1)
    second = {w: model(torch.tensor([[2, 3, w]])).logits[0, -1].log_softmax(-1) for w in range(2, 7)}
    logps = [first[r[0]] + (second[r[0]][r[1]] if len(r) == 2 else 0.0) for r in REPLIES]
    return torch.stack(logps).exp().double().numpy()


def text(reply):
    return " ".join(WORDS[token] for token in reply if token > 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_reaches_the_optimal_policy(seed, tmp_path):
    tokenizer, reference = world(), llama(LlamaForCausalLM, seed)
    with torch.no_grad():  # the pad token is never drawn, so that the replies above are all there are
        reference.lm_head = torch.nn.Linear(32, len(WORDS))
        reference.lm_head.bias[0] = -1e4
    reference.config.tie_word_embeddings = False
    rng = np.random.default_rng(seed)
    reward = dict(zip(map(text, REPLIES), rng.normal(size=len(REPLIES)), strict=True))
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", disable_tqdm=True, seed=seed, response_length=2, temperature=1.0, kl_coef=BETA,
            per_device_train_batch_size=512, local_rollout_forward_batch_size=512, num_mini_batches=2,
            num_ppo_epochs=2, total_episodes=512 * 240, learning_rate=1e-3, lam=1.0, cliprange_value=10.0, vf_coef=1.0,
            lr_scheduler_type="cosine",
        ),
        processing_class=tokenizer,
        model=reference,
        reward_model=lambda prompts, completions: [reward[completion] for completion in completions],
        value_model=llama(LlamaForSequenceClassification, seed + 10, num_labels=1),
        train_dataset=Dataset.from_list([{"prompt": "a b"}]),
    )  # fmt: skip
    before = probabilities(trainer.roles.reference)
    assert before.sum() == pytest.approx(1, abs=1e-5)
    best = exact.optimal_policy(before, [reward[text(reply)] for reply in REPLIES], BETA)
    assert exact.total_variation(before, best) > 0.2  # there was something to learn
    trainer.train()
    distance = exact.total_variation(probabilities(trainer.model), best)
    print(f"seed {seed}: total variation {exact.total_variation(before, best):.3f} -> {distance:.4f}")
    assert distance <= 0.02
