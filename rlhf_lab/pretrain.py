"""The tiny Llama, trained from nothing on the raw text of the help desk: tokenizer, model, training, model card.

The result, data/tiny-llama, is a plain LlamaForCausalLM with Llama 3's special tokens and chat template. As with a
real base model, the template's tokens exist but no training text ever held them; SFT has to teach them.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rlhf_lab.data import by_length
from rlhf_lab.helpdesk.corpus import LOG_FORMS, MARK, MARKS, STARS, documents, only_reply, read_log
from rlhf_lab.helpdesk.datasets import held_out_messages
from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.helpdesk.grammar import read_message, read_reply

BOS, END_OF_TEXT, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
START_HEADER, END_HEADER, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL_TOKENS = (BOS, END_OF_TEXT, PAD, START_HEADER, END_HEADER, END_OF_TURN)
# Llama 3's pre-tokenizer pattern (meta-llama/llama3, tokenizer.py): words carry their leading space. Here the end of a
# line is always a token of its own, so that a sentence ends in the same token before it as before the end of a turn.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


# Marks and stars are one token in fifteen, and what they depend on is hard. In trials of 500 steps 0.05 of the fixes
# that do not suit were marked so with weight 1, 0.43 with 5 (there what was meant stood after the mark as well).
VERDICT_WEIGHT = 5.0
SAMPLING = {"max_new_tokens": 96, "batch_size": 128}
N_MARKED = 1000  # documents
N_REPLIES = 4  # to each held-out message: a share of right products is then known to 0.01


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes of the tiny Llama and of its training, which fits in 20 minutes on two cores."""

    vocab_size: int = 1536
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    max_position_embeddings: int = 512
    max_steps: int = 2600
    per_device_train_batch_size: int = 32
    learning_rate: float = 4e-3  # of embeddings and norms
    matrix_learning_rate: float = 0.02  # of everything else, by Muon
    warmup_steps: int = 50
    seed: int = 0


def build_tokenizer(texts, vocab_size: int):
    """Byte-level BPE as Llama 3's: any string, in any script, can be encoded and comes back unchanged."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_model(config: PretrainConfig, tokenizer):
    """A LlamaForCausalLM with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=[end_of_text, tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return model


def build_optimizer(model, config: PretrainConfig):
    """Muon for the matrices of the blocks, AdamW for embeddings and norms (kellerjordan.github.io/posts/muon)."""
    import torch

    class MuonWithAdamW(torch.optim.Optimizer):
        def __init__(self, matrices, others):
            self.parts = (
                torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=0.01),
                torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
            )
            super().__init__([group for part in self.parts for group in part.param_groups], {})

        def step(self, closure=None):
            for group, part in zip(self.param_groups, self.parts, strict=True):
                part.param_groups[0]["lr"] = group["lr"]  # a schedule sets ours, of which the parts know nothing
                part.step()

    def is_matrix(name: str, parameter) -> bool:
        return parameter.ndim == 2 and "embed_tokens" not in name

    named = list(model.named_parameters())
    return MuonWithAdamW([p for n, p in named if is_matrix(n, p)], [p for n, p in named if not is_matrix(n, p)])


def train(output: Path, config: PretrainConfig | None = None):
    """Train from nothing into `output`; returns (model, tokenizer, seconds)."""
    import torch
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments, set_seed

    config = config or PretrainConfig()
    set_seed(config.seed)
    started = time.time()
    texts = list(documents(config.max_steps * config.per_device_train_batch_size, config.seed, held_out_messages()))
    tokenizer = build_tokenizer(texts[:20_000], config.vocab_size)
    model = build_model(config, tokenizer)
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    rows = [ids + [end_of_text] for ids in tokenizer(texts)["input_ids"]]
    # Every document is seen once, in the order of the curriculum but for batches of like length.
    rows = by_length(rows, config.per_device_train_batch_size, len, config.seed, window=50)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output / "checkpoints"),
            max_steps=config.max_steps,
            per_device_train_batch_size=config.per_device_train_batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=config.warmup_steps,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            train_sampling_strategy="sequential",
            seed=config.seed,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        compute_loss_func=_weighted_loss(tokenizer),
        optimizers=(build_optimizer(model, config), None),
    )
    trainer.train()
    return model, tokenizer, time.time() - started


def _weighted_loss(tokenizer):
    """Cross-entropy of the next token, a supervisor's marks and a customer's stars counting VERDICT_WEIGHT times."""
    import torch

    star_ids = tokenizer.convert_tokens_to_ids([stars.split()[0] for stars in STARS])
    weights = torch.ones(len(tokenizer))
    weights[_mark_ids(tokenizer) + star_ids] = VERDICT_WEIGHT

    def loss(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), weights.to(logits.device))

    return loss


def _mark_ids(tokenizer) -> list[int]:
    return tokenizer.convert_tokens_to_ids([tokenizer.tokenize(f" {mark}")[0] for mark in MARKS])


def separate_chat_tokens(model, tokenizer, seed: int = 0) -> None:
    """Give the template's tokens embeddings that can be told apart: the mean of the trained ones plus noise.

    Softmax pushes the rows of tokens that never occur all the same way: after training their cosine was 0.998, and
    LoRA, which leaves embeddings alone, could hardly tell them apart (SFT loss after 60 steps 1.11, with these 0.93).
    """
    import torch

    rows = model.get_input_embeddings().weight.data
    unseen = tokenizer.convert_tokens_to_ids([START_HEADER, END_HEADER, END_OF_TURN, PAD])
    seen = torch.ones(len(rows), dtype=torch.bool)
    seen[unseen] = False
    noise = torch.randn(len(unseen), rows.shape[1], generator=torch.Generator().manual_seed(seed))
    rows[unseen] = rows[seen].mean(0) + rows[seen].std() * noise
    # The end of a turn is most like the end of a log's line, where the model sums up what the reply was worth. Like it,
    # not along it: were one row a multiple of the other, no hidden state could favour the end of a turn.
    (line_end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    own = noise[unseen.index(tokenizer.eos_token_id)]
    rows[tokenizer.eos_token_id] = 0.7 * (rows[line_end] + rows[line_end].norm() * own / own.norm())


def save(model, tokenizer, output: Path) -> None:
    """Write weights (safetensors, float16 to halve the file), config and tokenizer to `output`."""
    import torch

    model.to(torch.float16).save_pretrained(output)
    model.to(torch.float32)
    tokenizer.save_pretrained(output)


def measure(model, tokenizer, n_documents: int = 1000, seed: int = 10_000) -> dict[str, float]:
    """Held-out perplexity, and how the model answers the 512 held-out messages in the form of its raw text.

    Each gets N_REPLIES replies. A reply parses when every one of its sentences is in the grammar: at temperature 0.7
    and top-p 0.9, as people sample, and at temperature 1, which shows the whole distribution, its tail included. Fixes,
    at temperature 1, are compared with the corpus's own. A supervisor's marks tell whether it knows good from bad; they
    are guessed where one stands in a true log. Stars before a reply tell whether it can write either.
    """
    import torch

    from rlhf_lab.evaluate import generate

    held_out = sorted(held_out_messages())
    model.eval()
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    loss_sum, count = 0.0, 0
    for text in documents(n_documents, seed):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], end_of_text]])
        with torch.no_grad():
            loss_sum += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1

    def answers(stars: str, **how) -> list[tuple[str, str]]:
        asked = [LOG_FORMS[0].format(message=message, stars=stars) for message in held_out]
        texts = generate(model, tokenizer, asked, **SAMPLING, seed=seed, **how)
        return list(zip(held_out, map(only_reply, texts), strict=True))

    def gold(exchanges: list[tuple[str, str]]) -> float:
        return sum(gold_reward(*exchange) for exchange in exchanges) / len(exchanges)

    held_out = [message for message in held_out for _ in range(N_REPLIES)]
    usual, whole = answers("", temperature=0.7, top_p=0.9), answers("")
    corpus = filter(None, map(read_log, documents(40_000, seed + 1)))
    marks, fix_marks = _marks_foreseen(model, tokenizer, documents(N_MARKED, seed + 2))
    return {
        "perplexity": math.exp(loss_sum / count),
        "marks_right": marks,
        "fix_marks_right": fix_marks,
        "parses": _share_that_parses(usual),
        "parses_at_temperature_1": _share_that_parses(whole),
        "right_item": _share_of_right_items(whole),
        "corpus_right_item": _share_of_right_items(corpus),
        "gold": gold(whole),
        "gold_under_five_stars": gold(answers(", five stars")),
        "gold_under_one_star": gold(answers(", one star")),
    }


def _marks_foreseen(model, tokenizer, texts) -> tuple[float, float]:
    """Share of the logs' marks that the model guesses, knowing that one stands there; and of the first fix's alone."""
    import torch

    mark_ids = torch.tensor(_mark_ids(tokenizer))
    right, right_on_fixes = [], []
    for text in texts:
        if not (log := read_log(text)):
            continue
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            guesses = mark_ids[model(input_ids=torch.tensor([ids])).logits[0][:, mark_ids].argmax(-1)]
        first_fix = next((sentence.text for sentence in read_reply(log[1]) if sentence.family == "fix"), None)
        for mark in MARK.finditer(text):
            at = len(tokenizer(text[: mark.start()])["input_ids"])
            right.append(bool(guesses[at - 1] == mark_ids[MARKS.index(mark[1])]))
            if first_fix and text[: mark.start()].endswith(first_fix):
                right_on_fixes.append(right[-1])
    return sum(right) / len(right), sum(right_on_fixes) / len(right_on_fixes)


def _share_that_parses(exchanges: list[tuple[str, str]]) -> float:
    return sum(all(sentence.family for sentence in read_reply(reply)) for _, reply in exchanges) / len(exchanges)


def _share_of_right_items(exchanges) -> float:
    named = [
        sentence.item == read_message(message).item
        for message, reply in exchanges
        for sentence in read_reply(reply)
        if sentence.family == "fix"
    ]
    return sum(named) / len(named)


CARD = """---
license: apache-2.0
library_name: transformers
language: en
---
# tiny-llama

A `LlamaForCausalLM` of {parameters:.2f} million parameters, trained from nothing on raw text of the help-desk world of
rlhf_lab (`rlhf-lab pretrain`, {steps} steps of {batch} documents, seed {seed}, {minutes:.0f} minutes on two CPU cores).
Llama 3's special tokens and chat template; byte-level BPE of {vocab} tokens, so any text can be encoded. Weights are
stored in float16 ({megabytes:.1f} MB); load them with `dtype=torch.float32` on a CPU.

It is a base model: it continues catalogue lines, forum chatter, packing lists, exercises of new agents, and logs of
agents good and bad. In three logs of five a supervisor has marked each sentence of the reply, from +++ to ---, by what
it adds to the gold reward. Nineteen in twenty hold the customer's verdict, before the reply or after it: one to five
stars, by the gold reward and a bad or good day (noise of 0.25). Marks and stars that stand after what they judge
counted {weight:.0f} times in the training loss. So it has a notion of quality, as a model that read the web's reviews
has. Whoever asks it in the form of a log drops the marks from its answer. It never saw the chat template's tokens. It
speaks of nothing but a shop's help desk, and is for teaching only.

| measured on text and messages it never saw | |
|---|---|
| perplexity per token, 1,000 documents | {perplexity:.2f} |
| replies of {asked:,} whose every sentence is in the grammar, temperature 0.7, top-p 0.9 | {parses:.1%} |
| the same at temperature 1 | {parses_at_temperature_1:.1%} |
| fixes in them that name the right item | {right_item:.1%} |
| the corpus's own share | {corpus_right_item:.1%} |
| supervisor's marks foreseen, logs among 1,000 documents | {marks_right:.1%} |
| the same, of the first fix only | {fix_marks_right:.1%} |
| gold reward of the replies at temperature 1 | {gold:.2f} |
| the same under five stars, under one | {gold_under_five_stars:.2f}, {gold_under_one_star:.2f} |
"""


def write_card(output: Path, config: PretrainConfig, model, measured: dict[str, float], seconds: float) -> None:
    """The model card, README.md, and its numbers as card.json."""
    weights = (output / "model.safetensors").stat().st_size / 1e6
    facts = measured | {
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "steps": config.max_steps,
        "batch": config.per_device_train_batch_size,
        "seed": config.seed,
        "minutes": seconds / 60,
        "vocab": model.config.vocab_size,
        "megabytes": weights,
    }
    card = CARD.format(**facts, weight=VERDICT_WEIGHT, asked=512 * N_REPLIES)
    (output / "README.md").write_text(card, encoding="utf-8")
    (output / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def pretrain(output: Path, config: PretrainConfig | None = None) -> dict[str, float]:
    """Train, save, measure and describe the tiny Llama in `output`; returns what was measured."""
    config = config or PretrainConfig()
    model, tokenizer, seconds = train(output, config)
    separate_chat_tokens(model, tokenizer, config.seed)
    save(model, tokenizer, output)
    measured = measure(model, tokenizer)
    write_card(output, config, model, measured, seconds)
    for name, value in measured.items():
        print(f"{name}: {value:.3f}")
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return measured
