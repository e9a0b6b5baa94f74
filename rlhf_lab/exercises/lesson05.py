"""Exercises of lesson 05: a LoRA layer from blank, its merge and its size, labels of a reply, the loss, perplexity."""

# ruff: noqa: PIE790  (the `...` is where the learner writes)
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lab import chat, lora, losses
from rlhf_lab import perplexity as ppl
from rlhf_lab.exercises.exercise import Mistake, function_exercise, value_exercise
from rlhf_lab.exercises.inputs import normal, tensor

# --- LoRA ---------------------------------------------------------------------------------------------------------


def _adapters() -> list[tuple]:
    """x, W, A, B, alpha. r and alpha differ from each other and from the sizes of W."""
    first = (tensor([1, 2]), tensor([1, 0], [0, 1]), tensor([1, -1]), tensor([0.5], [0.25]), 4)
    return [
        first,
        (normal(1, 3, 4), normal(2, 5, 4), normal(3, 2, 4), normal(4, 5, 2), 8),
        (normal(5, 2, 2, 6), normal(6, 3, 6), normal(7, 2, 6), normal(8, 3, 2), 1),
    ]


def _frozen(update: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Callable:
    """A wrong lora_forward: W x plus an update of its own."""
    return lambda x, weight, A, B, alpha: F.linear(x, weight.detach()) + update(x, A, B, alpha)  # noqa: N803


@function_exercise(
    lesson=5,
    title="A LoRA layer from blank",
    difficulty=3,
    importance=5,
    minutes=15,
    rows=(36,),
    maths="y = W x + (alpha / r) B A x, with W constant. A is (r, in), B is (out, r)",
    reference=lora.lora_forward,
    cases=_adapters,
    differentiable=("lora_A", "lora_B"),
    constants=("weight",),
    hints=(
        "Rows are tokens here, so W x of the formula is x @ weight.T in code, and A x is x @ lora_A.T.",
        "r is how many rows lora_A has. The update, and it alone, is multiplied by alpha / r.",
        "W is frozen: weight.detach(), so that no gradient is computed for it.",
    ),
    mistakes=(
        Mistake(
            "alpha not divided by r",
            "The scale of the update is alpha / r. Without the division a larger r takes larger steps.",
            _frozen(lambda x, A, B, alpha: alpha * x @ A.T @ B.T),  # noqa: N803
        ),
        Mistake(
            "divided by the width of W",
            "r is the rank, the rows of lora_A: len(lora_A) or lora_A.shape[0]. Its columns are the inputs of W.",
            _frozen(lambda x, A, B, alpha: alpha / A.shape[1] * x @ A.T @ B.T),  # noqa: N803
        ),
        Mistake(
            "r over alpha",
            "The scale is alpha / r: a larger alpha makes a larger update.",
            _frozen(lambda x, A, B, alpha: len(A) / alpha * x @ A.T @ B.T),  # noqa: N803
        ),
        Mistake(
            "no scale",
            "y = W x + (alpha / r) B A x: the factor alpha / r is missing.",
            _frozen(lambda x, A, B, alpha: x @ A.T @ B.T),  # noqa: N803
        ),
        Mistake(
            "the square root of r",
            "alpha / sqrt(r) is rsLoRA (arXiv 2312.03732), use_rslora=True in peft. LoRA itself, and the article's "
            "config, divide by r.",
            _frozen(lambda x, A, B, alpha: alpha / len(A) ** 0.5 * x @ A.T @ B.T),  # noqa: N803
        ),
        Mistake(
            "the frozen path forgotten",
            "The update stands beside W x and does not replace it: with B = 0 the layer must do what it did before.",
            lambda x, weight, A, B, alpha: alpha / len(A) * x @ A.T @ B.T,  # noqa: N803
        ),
        Mistake(
            "the whole scaled",
            "Only the update is scaled by alpha / r. W x stays as it is, or step 0 is another model.",
            lambda x, weight, A, B, alpha: alpha / len(A) * (F.linear(x, weight.detach()) + x @ A.T @ B.T),  # noqa: N803
        ),
        Mistake(
            "missing detach",
            "W is frozen: weight.detach(). Its gradient is as large as W, and so would be what Adam keeps for it: the "
            "memory that LoRA is there to save.",
            lambda x, weight, A, B, alpha: F.linear(x, weight) + alpha / len(A) * x @ A.T @ B.T,  # noqa: N803
        ),
    ),
)
def lora_forward(x, weight, lora_A, lora_B, alpha):  # noqa: N803
    """The layer's output, (..., out).

    x: (..., in), one row a token. weight: W, (out, in), frozen. lora_A: (r, in). lora_B: (out, r). alpha: a number.
    """
    ...


@function_exercise(
    lesson=5,
    title="Merge the adapter",
    difficulty=2,
    importance=4,
    minutes=6,
    rows=(36,),
    maths="W x + (alpha / r) B A x = (W + (alpha / r) B A) x, so the merged matrix is W + (alpha / r) B A, (out, in)",
    reference=lora.lora_merge,
    cases=lambda: [case[1:] for case in _adapters()],
    hints=(
        "Take x out of the formula of the layer: which one matrix gives the same for every x?",
        "B is (out, r) and A is (r, in): lora_B @ lora_A has the shape of W.",
    ),
    mistakes=(
        Mistake(
            "alpha not divided by r",
            "The layer scaled its update by alpha / r; the merged matrix has to do the same.",
            lambda weight, A, B, alpha: weight + alpha * B @ A,  # noqa: N803
        ),
        Mistake(
            "no scale",
            "W + (alpha / r) B A: without the factor the merged model is another one than the trained one.",
            lambda weight, A, B, alpha: weight + B @ A,  # noqa: N803
        ),
        Mistake(
            "the update alone",
            "The merged matrix replaces W and adapter, so W must be in it.",
            lambda weight, A, B, alpha: alpha / len(A) * B @ A,  # noqa: N803
        ),
        Mistake(
            "subtracted",
            "W - (alpha / r) B A is how one takes an adapter out again.",
            lambda weight, A, B, alpha: weight - alpha / len(A) * B @ A,  # noqa: N803
        ),
        Mistake(
            "divided by the width of W",
            "r is the rank: the rows of lora_A, the columns of lora_B.",
            lambda weight, A, B, alpha: weight + alpha / A.shape[1] * B @ A,  # noqa: N803
        ),
    ),
)
def lora_merge(weight, lora_A, lora_B, alpha):  # noqa: N803
    """One matrix (out, in) that gives for every x what the LoRA layer gives. Shapes as in lora_forward."""
    ...


@function_exercise(
    lesson=5,
    title="How many numbers LoRA trains",
    difficulty=2,
    importance=4,
    minutes=5,
    rows=(36,),
    maths="A is (r, in), B is (out, r): r (in + out) for each adapted matrix, summed over the matrices",
    reference=lora.lora_parameter_count,
    cases=lambda: [
        ([(4, 3)], 2),
        ([(4096, 4096), (4096, 4096)], 16),
        ([(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)], 8),  # shapes of Llama 3.1 8B
    ],
    hints=(
        "Write down the shapes of A and of B for one matrix and count.",
        "Not every matrix is square: with grouped-query attention v_proj has fewer outputs than inputs.",
    ),
    mistakes=(
        Mistake(
            "the full matrix counted",
            "in x out is what full fine-tuning trains. LoRA trains A and B: r (in + out).",
            lambda shapes, r: sum(a * b for a, b in shapes),
        ),
        Mistake(
            "A alone",
            "B, (out, r), is trained too.",
            lambda shapes, r: sum(r * n_in for _, n_in in shapes),
        ),
        Mistake(
            "square matrices assumed",
            "2 r in holds only where out = in. In general r (in + out).",
            lambda shapes, r: sum(2 * r * n_in for _, n_in in shapes),
        ),
        Mistake(
            "one matrix only",
            "Every adapted matrix has its own A and B: sum over all of them.",
            lambda shapes, r: r * sum(shapes[-1]),
        ),
        Mistake(
            "r counted twice",
            "Between A and B stands nothing: there is no r x r matrix to train, and no square of r.",
            lambda shapes, r: sum(r * r * (a + b) for a, b in shapes),
        ),
    ),
)
def lora_parameter_count(shapes, r):
    """How many parameters are trained: one whole number. shapes: the adapted matrices, a list of (out, in). r: rank."""
    ...


def _factor_of_the_scale() -> float:
    return (32 / 128) / (32 / 16)


value_exercise(
    name="rank_without_alpha",
    question="""The article has r = 16 and alpha = 32. A colleague takes r = 128 "for more capacity" and leaves alpha
        as it is. By which factor is the scale of the update (what B A x is multiplied by) multiplied?""",
    lesson=5,
    title="Rank without alpha",
    difficulty=2,
    importance=3,
    minutes=3,
    rows=(36,),
    maths="alpha / r was 32 / 16 = 2 and is 32 / 128 = 0.25: an eighth. Raise alpha with r, or use rsLoRA",
    reference=_factor_of_the_scale,
    hints=("The scale is alpha / r. Write it down before and after.", "A factor: the new scale over the old one."),
    mistakes=(
        Mistake("turned round", "You have old over new: the scale is alpha / r, and r stands below.", 8.0),
        Mistake(
            "the new scale",
            "0.25 is alpha / r now. The question is by what it was multiplied.",
            0.25,
        ),
        Mistake(
            "the square root of r",
            "With alpha / sqrt(r), which is rsLoRA, it would be this. LoRA itself divides by r.",
            8**-0.5,
        ),
        Mistake("unchanged", "alpha alone does not set the scale: alpha / r does.", 1.0),
        Mistake("the old scale", "2 is alpha / r as the article has it, before the change.", 2.0),
    ),
)


def _bits_in_nf4() -> float:
    return 4 + 8 / 64 + 32 / (64 * 256)


value_exercise(
    name="bits_in_nf4",
    question="""NF4 keeps 4 bits a weight, and for each block of 64 weights one scale in fp32. With double
        quantisation that scale takes 8 bits, plus one fp32 number for each 256 scales. How many bits does one weight
        take in the end, double quantisation on? (Two decimals will do.)""",
    lesson=5,
    title="What a weight costs in NF4",
    difficulty=3,
    importance=3,
    minutes=6,
    rows=(35,),
    errata=("E22",),
    maths="4 + 8/64 + 32/(64 x 256) = 4.127 bits (QLoRA, arXiv 2305.14314, section 3); without it 4 + 32/64 = 4.5",
    reference=_bits_in_nf4,
    tolerance=1e-3,
    hints=(
        "Share out each scale over the weights it serves.",
        "One 8-bit scale serves 64 weights; one fp32 number serves 256 scales, which is 64 x 256 weights.",
    ),
    mistakes=(
        Mistake("the scales forgotten", "A block needs its scale too: 4 + 8/64 + ...", 4.0),
        Mistake("without double quantisation", "4.5 is with the scales in fp32: 32/64 on top.", 4.5),
        Mistake(
            "256 weights a block of scales",
            "256 counts scales, and each scale serves 64 weights.",
            4 + 8 / 64 + 32 / 256,
        ),
        Mistake(
            "both kinds of scale in full",
            "The 8-bit scale replaces the fp32 one, it does not join it.",
            4 + 32 / 64 + 8 / 64,
        ),
        Mistake("bytes", "That is bytes a weight. Times 8.", (4 + 8 / 64 + 32 / (64 * 256)) / 8),
    ),
)


# --- what the loss covers -----------------------------------------------------------------------------------------

PAD, EOS = 0, 9


def _batches() -> list[tuple]:
    """input_ids, attention_mask, prompt_lengths, pad_id; in two of them padding and the end look alike."""
    return [
        (torch.tensor([[5, 6, 7, EOS]]), torch.tensor([[1, 1, 1, 1]]), torch.tensor([2]), PAD),
        (
            torch.tensor([[5, 6, 7, 8, EOS], [5, 7, EOS, EOS, EOS]]),
            torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
            torch.tensor([2, 1]),
            EOS,
        ),
        (
            torch.tensor([[4, 5, EOS, 6, 6, 8, EOS, EOS], [5, 5, 5, 5, 6, 7, 8, EOS], [5, EOS, EOS, EOS] + [EOS] * 4]),
            torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0], [1] * 8, [1, 1, 0, 0, 0, 0, 0, 0]]),
            torch.tensor([4, 3, 1]),
            EOS,
        ),
        (torch.tensor([[5, 6, 7, EOS, PAD], [5, 5, 5, 8, EOS]]), torch.tensor([[1, 1, 1, 1, 0], [1] * 5]),
         torch.tensor([2, 3]), PAD),
    ]  # fmt: skip


def _labels(keep: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]) -> Callable:
    """A completion_labels that keeps ids where keep(places, ids, attention_mask, prompt_lengths[:, None], pad_id)."""

    def labels(input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor, pad_id: int) -> Tensor:
        places = torch.arange(input_ids.shape[1])
        kept = keep(places, input_ids, attention_mask.bool(), prompt_lengths[:, None], pad_id)
        return input_ids.masked_fill(~kept, -100)

    return labels


@function_exercise(
    lesson=5,
    title="Labels that cover the reply",
    difficulty=3,
    importance=5,
    minutes=12,
    rows=(5, 37),
    errata=("E22",),
    maths="labels_t = input_ids_t where t >= prompt_length and attention_mask_t = 1, else -100. No shift: the model's "
    "loss shifts by itself",
    reference=chat.completion_labels,
    cases=_batches,
    hints=(
        "-100 is the label that cross-entropy leaves out. Start from a clone of input_ids and set it where needed.",
        "torch.arange(seq) < prompt_lengths[:, None] is True on the prompt, header of the assistant's turn included.",
        "Padding is where attention_mask is 0. Do not look for it by its id: the reply ends in the same id, perhaps.",
    ),
    mistakes=(
        Mistake(
            "the EOS masked with the padding",
            "Where pad = eos, `labels == pad_id` also hits the token that ends the reply. It is then never trained on, "
            "and generation never stops. Padding is where attention_mask is 0.",
            _labels(lambda t, ids, mask, start, pad: (t >= start) & (ids != pad)),
        ),
        Mistake(
            "padding trained on",
            "Positions after the end hold padding: attention_mask is 0 there, and the label -100.",
            _labels(lambda t, ids, mask, start, pad: t >= start),
        ),
        Mistake(
            "the prompt trained on",
            "The prompt is given, not learned: -100 on the first prompt_length positions.",
            _labels(lambda t, ids, mask, start, pad: mask),
        ),
        Mistake(
            "one token of the prompt too many",
            "Position prompt_length is the reply's first token, so the last of the prompt is prompt_length - 1.",
            _labels(lambda t, ids, mask, start, pad: (t >= start - 1) & mask),
        ),
        Mistake(
            "the reply's first token lost",
            "Position prompt_length is the reply's first token, and it is trained on. (The shift is the model's.)",
            _labels(lambda t, ids, mask, start, pad: (t > start) & mask),
        ),
        Mistake(
            "the end of the reply left out",
            "The last token of the reply, its EOS, is what teaches the model to stop. Keep it.",
            _labels(lambda t, ids, mask, start, pad: (t >= start) & (t < mask.sum(1, keepdim=True) - 1)),
        ),
        Mistake(
            "labels already shifted",
            "transformers and TRL shift inside the model's loss. Labels stand where their tokens stand.",
            lambda ids, mask, starts, pad: F.pad(
                chat.completion_labels(ids, mask, starts, pad)[:, 1:], (0, 1), value=-100
            ),
        ),
        Mistake(
            "0 in place of -100",
            "0 is a token. The label that is left out is -100, cross-entropy's ignore_index.",
            lambda ids, mask, starts, pad: chat.completion_labels(ids, mask, starts, pad).clamp(min=0),
        ),
    ),
)
def completion_labels(input_ids, attention_mask, prompt_lengths, pad_id):
    """Labels for completion-only loss: a tensor (batch, seq), -100 where a token is not trained on.

    input_ids: (batch, seq), prompt, then reply with its EOS, then padding. attention_mask: 0 on padding.
    prompt_lengths: (batch,), tokens before the reply, the header of the assistant's turn among them.
    pad_id: what padding is filled with. Some tokenizers use their EOS.
    """
    ...


HEADER = [2, 3]


def _chats() -> list[tuple]:
    """input_ids, header, eos_id of whole conversations. 1 opens, 2 3 is the assistant's header, 2 4 the user's."""
    return [
        ([1, 2, 4, 7, 9, 2, 3, 6, 9], HEADER, EOS),
        ([1, 2, 4, 7, 9, 2, 3, 6, 8, 9, 2, 4, 3, 9, 2, 3, 5, 9], HEADER, EOS),
        ([1, 2, 4, 2, 7, 9, 2, 3, 9, 2, 4, 8, 8, 9, 2, 3, 3, 2, 9, 2, 4, 6, 9], HEADER, EOS),
        ([1, 2, 4, 7, 8, 9], HEADER, EOS),
    ]


def _spans(wanted: Callable[[list[tuple[int, int]]], list[tuple[int, int]]], start: int = 0, end: int = 0) -> Callable:
    """An assistant_labels that keeps `wanted` of the replies' (start, end), moved by start and end."""

    def labels(input_ids: list[int], header: list[int], eos_id: int) -> list[int]:
        found = [
            (i, input_ids.index(eos_id, i) + 1)
            for i in range(len(header), len(input_ids) + 1)
            if input_ids[i - len(header) : i] == header and eos_id in input_ids[i:]
        ]
        kept = {t for a, b in wanted(found) for t in range(a + start, b + end)}
        return [token if t in kept else -100 for t, token in enumerate(input_ids)]

    return labels


@function_exercise(
    lesson=5,
    title="Labels of a whole conversation",
    difficulty=4,
    importance=3,
    minutes=20,
    rows=(5,),
    maths="after each header of the assistant, from its first token to the EOS that ends it: the ids; all else -100",
    reference=chat.assistant_labels,
    cases=_chats,
    hints=(
        "Walk through the positions. Where the ids just before are the header, a reply begins.",
        "From there on keep tokens up to and with the first eos_id, then stop keeping.",
        "A user's turn ends in the same EOS, and is not kept.",
    ),
    mistakes=(
        Mistake(
            "the header trained on",
            "The header says whose turn it is. In use the template writes it, the model never has to: -100.",
            _spans(lambda found: found, start=-len(HEADER)),
        ),
        Mistake(
            "the end of the reply left out",
            "The EOS after a reply is what teaches the model to stop: keep it.",
            _spans(lambda found: found, end=-1),
        ),
        Mistake(
            "only the last reply",
            "That is TRL's loss on prompt and completion. Here every reply of the conversation is trained on.",
            _spans(lambda found: found[-1:]),
        ),
        Mistake(
            "only the first reply",
            "Go on after the first EOS: further replies follow.",
            _spans(lambda found: found[:1]),
        ),
        Mistake(
            "everything from the first reply on",
            "The user's later turns are not the model's to write: stop keeping at the EOS.",
            lambda ids, header, eos: _spans(lambda found: [(found[0][0], len(ids))] if found else [])(ids, header, eos),
        ),
        Mistake(
            "the users' turns trained on",
            "Which half is kept? The tokens after the assistant's header, not those before it.",
            lambda ids, header, eos: [
                token if label == -100 else -100
                for token, label in zip(ids, chat.assistant_labels(ids, header, eos), strict=True)
            ],
        ),
    ),
)
def assistant_labels(input_ids, header, eos_id):
    """Labels of a chat of several turns: a list as long as input_ids, -100 where a token is not trained on.

    input_ids: list of ids, turns of users and assistants in alternation. header: list of ids that opens each turn of
    the assistant. eos_id: ends every turn, the users' too. Each reply is kept with its EOS, without its header.
    """
    ...


# --- the loss -----------------------------------------------------------------------------------------------------


def _sft_batches() -> list[tuple]:
    def batch(seed: int, labels: list) -> tuple:
        labels = torch.tensor(labels)
        return normal(seed, *labels.shape, 3), labels

    return [
        batch(60, [[-100, 1, 2]]),
        batch(61, [[-100, -100, 2, 0, 1], [-100, 1, 2, -100, -100]]),
        batch(62, [[-100, 0, 1, 2, 2, 1], [-100, -100, -100, -100, 1, 2]]),
    ]


def _reference_sft_loss(logits: Tensor, labels: Tensor) -> Tensor:
    mask = labels != -100
    return losses.sft_loss(logits, labels, mask)


def _mean_nll(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


@function_exercise(
    lesson=5,
    title="The loss of SFT, from logits and labels",
    difficulty=3,
    importance=5,
    minutes=12,
    rows=(5, 37),
    maths="L = -(1/N) sum over the N labels that are not -100 of log softmax(logits_{t-1})[label_t]",
    reference=_reference_sft_loss,
    cases=_sft_batches,
    differentiable=("logits",),
    hints=(
        "logits[:, t] are about the token at t + 1: logits[:, :-1] go with labels[:, 1:].",
        "F.cross_entropy leaves out labels of -100 and takes the mean over the rest: of the whole batch, not by row.",
    ),
    mistakes=(
        Mistake(
            "no shift",
            "logits[:, t] predict the token at t + 1. Unshifted, the model is trained to repeat what it has just read.",
            _mean_nll,
        ),
        Mistake(
            "shifted the wrong way",
            "It is logits[:, :-1] with labels[:, 1:], not the other way round.",
            lambda logits, labels: _mean_nll(logits[:, 1:], labels[:, :-1]),
        ),
        Mistake(
            "the mean of each reply's mean",
            "Every token weighs the same here, as in TRL: sum over the batch, divide by the number of labels in it.",
            lambda logits, labels: torch.stack(
                [_mean_nll(a[None, :-1], b[None, 1:]) for a, b in zip(logits, labels, strict=True)]
            ).mean(),
        ),
        Mistake(
            "divided by every position",
            "Divide by the labels that count, not by positions with -100: else a long prompt makes the loss small.",
            lambda logits, labels: (
                F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
                / labels[:, 1:].numel()
            ),
        ),
        Mistake(
            "sum in place of the mean",
            "With a sum the step grows with the batch and with the length of the replies.",
            lambda logits, labels: F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            ),
        ),
        Mistake(
            "the minus forgotten",
            "The log-likelihood is to be raised, a loss is lowered: minus.",
            lambda logits, labels: -_mean_nll(logits[:, :-1], labels[:, 1:]),
        ),
        Mistake(
            "-100 taken for a token",
            "Labels of -100 are to be left out. Clamped to 0 they train the model to write token 0.",
            lambda logits, labels: _mean_nll(logits[:, :-1], labels[:, 1:].clamp(min=0)),
        ),
    ),
)
def sft_loss(logits, labels):
    """The loss of SFT, in nats a token: a scalar tensor.

    logits: (batch, seq, vocab). labels: (batch, seq), ids where they stand, -100 on what is left out.
    """
    ...


def _logp_batches() -> list[tuple]:
    def batch(seed: int, mask: list) -> tuple:
        mask = torch.tensor(mask)
        # Padding holds numbers too, as a model gives them there.
        return -normal(seed, *mask.shape).abs() - 0.1, mask

    return [
        (tensor([-1, -2]), torch.tensor([[1, 1]])),
        batch(70, [[1, 1, 1, 1], [0, 1, 0, 0]]),
        batch(71, [[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]),
    ]


@function_exercise(
    lesson=5,
    title="Perplexity of a batch",
    difficulty=2,
    importance=4,
    minutes=8,
    rows=(5,),
    maths="PPL = exp(-(1/N) sum of log p over the N tokens with mask 1): of the corpus, so every token weighs the same",
    reference=ppl.perplexity,
    cases=_logp_batches,
    hints=(
        "First the mean of -log p over all tokens that count, in the whole batch. Then exp, once.",
        "A model that gives every token 1/2 has perplexity 2.",
    ),
    mistakes=(
        Mistake(
            "the mean of perplexities",
            "exp is convex: the mean of exps is larger than the exp of the mean. Average -log p over all tokens first.",
            lambda logps, mask: torch.exp(-(logps * mask).sum(1) / mask.sum(1)).mean(),
        ),
        Mistake(
            "each reply weighed alike",
            "A corpus's perplexity averages over tokens: divide the sum over the batch by the tokens in the batch.",
            lambda logps, mask: torch.exp(-((logps * mask).sum(1) / mask.sum(1)).mean()),
        ),
        Mistake(
            "the mask forgotten in the count",
            "Divide by mask.sum(), not by all positions: padding would make any model look good.",
            lambda logps, mask: torch.exp(-(logps * mask).sum() / mask.numel()),
        ),
        Mistake(
            "the mask forgotten",
            "Where mask is 0 stand prompt and padding; what the model gives there does not count.",
            lambda logps, mask: torch.exp(-logps.mean()),
        ),
        Mistake(
            "the minus forgotten",
            "log p is negative: exp(mean of -log p), which is at least 1.",
            lambda logps, mask: torch.exp((logps * mask).sum() / mask.sum()),
        ),
        Mistake(
            "the mean log-prob itself",
            "That is the loss, in nats a token. Perplexity is its exp.",
            lambda logps, mask: -(logps * mask).sum() / mask.sum(),
        ),
        Mistake(
            "base 2",
            "2 to the power of nats mixes two bases. These log-probs are natural: exp.",
            lambda logps, mask: 2 ** (-(logps * mask).sum() / mask.sum()),
        ),
    ),
)
def perplexity(logps, mask):
    """Perplexity of a batch: one number. logps: log p of each token. mask: 1 where it counts. Both (batch, seq)."""
    ...


value_exercise(
    name="pad_is_eos",
    question="""`tokenizer.pad_token = tokenizer.eos_token`, and a collator that sets labels to -100 wherever the id is
        the pad id. After SFT, what does the model do when it has finished a reply?""",
    lesson=5,
    title="pad = eos",
    difficulty=2,
    importance=5,
    minutes=3,
    rows=(37,),
    errata=("E22",),
    options={
        "goes_on": "it goes on writing: nothing ever taught it to end",
        "stops": "it stops as it should: padding is not trained on either way",
        "pads": "it writes padding until the limit",
        "early": "it stops too early, after the first words",
        "crashes": "nothing: training fails, for a token cannot be both",
    },
    maths="the EOS that ends the reply has the pad id, so its label is -100 too: the loss never asks for an EOS",
    reference=lambda: "goes_on",
    hints=("Which tokens have the pad id, in a row of a batch?", "What does a label of -100 teach?"),
    mistakes=(
        Mistake("harmless", "The reply's own EOS has the pad id as well, and loses its label too.", "stops"),
        Mistake("padding learned", "The labels of the padding are -100: nothing is learned there.", "pads"),
        Mistake("the sign turned", "An EOS that is never a label is never made likelier.", "early"),
        Mistake(
            "an error expected",
            "No error comes, and that is the trouble: the loss falls as it should.",
            "crashes",
        ),
    ),
)  # fmt: skip
