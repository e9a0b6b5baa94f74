"""Templates token by token: TRL's labels, the text by hand, the explorer; and perplexity by hand."""

import math
import re

import pytest
import torch

from rlhf_lab import chat, explore
from rlhf_lab.data import load_demonstrations
from rlhf_lab.models import load_tokenizer
from rlhf_lab.perplexity import perplexity, perplexity_interval
from rlhf_lab.profiles import DATA_DIR

TINY_LLAMA = DATA_DIR / "tiny-llama"

USER = {"role": "user", "content": "My kettle broke. Cheers!"}
REPLY = {"role": "assistant", "content": "Hi there! Use the manual."}
AGAIN = {"role": "user", "content": "e"}  # a letter that the template's own tokens hold too


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY_LLAMA)


@pytest.fixture(scope="module")
def demonstrations():
    return load_demonstrations(DATA_DIR / "helpdesk" / "sft.jsonl")[:8]


@pytest.fixture(scope="module")
def trl(demonstrations, tmp_path_factory):
    """TRL's batch of the same rows, as a tokenizer lays them out."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(output_dir=str(tmp_path_factory.mktemp("sft")), use_cpu=True, bf16=False, report_to="none",
                     completion_only_loss=True, max_length=512)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32)

    def batch(tokenizer):
        data = Dataset.from_list(demonstrations)
        trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
        return trainer.data_collator([trainer.train_dataset[i] for i in range(len(demonstrations))])

    return batch


def words(tokens, which):
    return "".join(token.text for token in tokens if which(token))


def test_labels_are_trls(tokenizer, demonstrations, trl):
    theirs = trl(tokenizer)
    ids, attention_mask, starts = chat.sft_batch(tokenizer, demonstrations)
    assert torch.equal(ids, theirs["input_ids"]) and torch.equal(attention_mask, theirs["attention_mask"])
    labels = chat.completion_labels(ids, attention_mask, starts, tokenizer.pad_token_id)
    assert torch.equal(labels, theirs["labels"])
    assert (labels == tokenizer.eos_token_id).sum() == len(demonstrations)


@pytest.mark.parametrize("form", ["own", "llama-2", "plain"])
def test_the_explorers_loss_is_trls_in_every_template(tokenizer, demonstrations, trl, form):
    other = chat.template_tokenizer(tokenizer, form)
    theirs = trl(other)
    for row, ids, labels in zip(demonstrations, theirs["input_ids"], theirs["labels"], strict=True):
        tokens = chat.chat_tokens(other, [*row["prompt"], *row["completion"]])
        n = len(tokens)
        assert [token.id for token in tokens] == ids[:n].tolist()
        assert [token.id if token.in_loss else -100 for token in tokens] == labels[:n].tolist()


def test_assistant_labels_find_every_reply_that_the_template_wrote(tokenizer):
    tokens = chat.chat_tokens(tokenizer, [USER, REPLY, AGAIN, REPLY], "replies")
    header = tokenizer("<|start_header_id|>assistant<|end_header_id|>\n\n", add_special_tokens=False)["input_ids"]
    labels = chat.assistant_labels([token.id for token in tokens], header, tokenizer.eos_token_id)
    assert labels == [token.id if token.in_loss else -100 for token in tokens]
    assert words(tokens, lambda token: token.in_loss) == 2 * (REPLY["content"] + "<|eot_id|>")


def test_a_reply_that_was_cut_off_is_covered_to_the_end():
    assert chat.assistant_labels([1, 2, 3, 7, 8], [2, 3], 9) == [-100, -100, -100, 7, 8]


@pytest.mark.parametrize(
    ("form", "text", "covered"),
    [
        ("llama-2", "<s>[INST] My kettle broke. Cheers! [/INST] Hi there! Use the manual. </s>",
         " Hi there! Use the manual. </s>"),
        ("plain", "<|begin_of_text|>User: My kettle broke. Cheers!\nAssistant: Hi there! Use the manual.<|eot_id|>\n",
         " Hi there! Use the manual.<|eot_id|>\n"),
        ("own", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nMy kettle broke. Cheers!<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nHi there! Use the manual.<|eot_id|>",
         "Hi there! Use the manual.<|eot_id|>"),
    ],
)  # fmt: skip
def test_what_each_template_writes_and_what_the_loss_covers(tokenizer, form, text, covered):
    """Llama 2's form is Meta's (llama repository, generation.py): [INST] and [/INST] are plain characters."""
    other = chat.template_tokenizer(tokenizer, form)
    tokens = chat.chat_tokens(other, [USER, REPLY])
    assert words(tokens, lambda token: True) == text
    assert words(tokens, lambda token: token.in_loss) == covered
    assert words(tokens, lambda token: token.role == "user").strip() == USER["content"]
    assert words(tokens, lambda token: token.role == "assistant").strip() == REPLY["content"]
    assert all(token.in_loss for token in chat.chat_tokens(other, [USER, REPLY], "all"))
    assert tokenizer.eos_token == "<|eot_id|>"  # the copy was changed, not this


def test_the_last_reply_or_every_reply(tokenizer):
    chats = [USER, {"role": "assistant", "content": "Hi."}, AGAIN, REPLY]
    last, every = (chat.chat_tokens(tokenizer, chats, loss) for loss in ("last", "replies"))
    assert words(last, lambda t: t.in_loss) == "Hi there! Use the manual.<|eot_id|>"
    assert words(every, lambda t: t.in_loss) == "Hi.<|eot_id|>Hi there! Use the manual.<|eot_id|>"
    assert words(every, lambda t: t.role == "user") == "My kettle broke. Cheers!e"


def test_what_cannot_be_is_refused(tokenizer):
    with pytest.raises(ValueError, match="loss is one of"):
        chat.chat_tokens(tokenizer, [USER, REPLY], "prompt")
    with pytest.raises(ValueError, match="template is own"):
        chat.template_tokenizer(tokenizer, "chatml")
    other = chat.template_tokenizer(tokenizer, "plain")
    other.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="does not write a longer chat"):
        chat.chat_tokens(other, [USER, REPLY])


def luminance(colour):
    """WCAG 2.1, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_html_reads_in_any_theme_and_not_by_colour_alone(tokenizer):
    tokens = chat.chat_tokens(tokenizer, [{"role": "user", "content": "a <b> & c"}, REPLY])
    page = chat.chat_html(tokens)
    assert "&lt;" in page and "<b>T</b>" in page and "<b>U</b>" in page and "<b>A</b>" in page
    for fill, ink in re.findall(r"background:(#\w{6});color:(#\w{6})", page):
        assert (luminance(fill) + 0.05) / (luminance(ink) + 0.05) >= 7  # WCAG AAA
    assert page.count("border-bottom:4px solid") == sum(token.in_loss for token in tokens) + 1  # and the legend
    assert page.count("border-bottom:4px dotted") == sum(not token.in_loss for token in tokens) + 3
    lines = chat.chat_text(tokens).splitlines()
    assert [line[0] for line in lines] == [" ", " ", " ", "*", "*", "*"]
    assert lines[-1].startswith("* in the loss: ") and lines[2].startswith("  template  <|eot_id|>|")


def test_the_explorer_follows_its_fields(tokenizer, monkeypatch):
    explorer = explore.chat_template(tokenizer)
    assert len(explorer.messages) == 4
    default = explorer.output.value
    explorer.controls["user 2"].value = explorer.controls["reply 2"].value = " "
    assert explorer.messages == [{"role": r, "content": t} for r, _, t in explorer.TURNS[:2]]
    explorer.controls["user 1"].value = "My zebra <script> broke."
    assert "My␣zebra␣&lt;script&gt; broke." in re.sub("</?span[^>]*>", "", explorer.output.value)
    explorer.controls["form"].value = "llama-2"
    assert "&lt;/s&gt;" in explorer.output.value
    explorer.controls["loss"].value = "all"
    n = len(explorer.tokens)
    assert f"{n} of {n} tokens are in the loss" in explorer.output.value
    shown = []
    monkeypatch.setattr(explore, "display", lambda x, raw=False: shown.append(x))
    explorer._ipython_display_()
    static, box = shown
    assert static["text/html"] == default and static["text/plain"].startswith("  template  <|begin_of_text|>|")
    assert box is explorer.box and repr(box) == "Run this notebook to write another chat."


def test_perplexity_by_hand():
    """Probabilities 1/2 and 1/8: geometric mean 1/4. A uniform model over 1,536 tokens: 1,536."""
    logps = torch.tensor([[math.log(1 / 2), math.log(1 / 8), 5.0]])
    mask = torch.tensor([[1, 1, 0]])
    assert perplexity(logps, mask).item() == pytest.approx(4)
    uniform = perplexity_interval([-3 * math.log(1536), -7 * math.log(1536)], [3, 7])
    assert uniform.value == uniform.low == pytest.approx(1536) and uniform.high == pytest.approx(1536)


def test_the_interval_of_perplexity_covers_the_truth_about_as_often_as_it_says():
    """Replies of 1 to 20 tokens, each token's log p uniform on [-2, 0]: perplexity e. 300 samples of 50 replies."""
    rng, hits = torch.Generator().manual_seed(0), 0
    for seed in range(300):
        lengths = torch.randint(1, 21, (50,), generator=rng).tolist()
        logps = [(-2 * torch.rand(n, generator=rng)).sum().item() for n in lengths]
        interval = perplexity_interval(logps, lengths, seed=seed, n_boot=400)
        hits += interval.low <= math.e <= interval.high
    assert 0.90 <= hits / 300 <= 0.98
