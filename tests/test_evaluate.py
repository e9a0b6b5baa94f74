"""Intervals and calibration against hand work, textbooks and simulation; generation, KL, scores on a random Llama."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest

from rlhf_lab.evaluate import (
    Interval,
    calibration_curve,
    encode_dialogue,
    encode_prompt,
    expected_calibration_error,
    generate,
    generate_ids,
    mean_interval,
    pair_accuracy,
    score,
    sequence_kl,
    wilson_interval,
    win_rate,
)

# ---- statistics ----


def test_importing_it_loads_no_torch():
    code = "import sys, rlhf_lab.evaluate; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_interval_reads_as_a_number_with_its_bounds():
    interval = Interval(0.84, 0.81, 0.8749)
    assert str(interval) == "0.84 [0.81, 0.87]"
    assert f"{interval:.3f}" == "0.840 [0.810, 0.875]"
    assert Interval(**interval.as_dict()) == interval


def test_win_rate_counts_a_tie_as_half():
    # won, lost, tied, tied up to float noise: (1 + 0 + 1/2 + 1/2) / 4
    assert win_rate([3.0, 1.0, 2.0, 0.1 + 0.2], [1.0, 2.0, 2.0, 0.3]).value == 0.5
    assert win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 2.0, 2.0, 0.3]).value == 0.625
    assert win_rate([0.0], [1e-6]).value == 0.0  # small, and no tie


def test_win_rate_of_a_model_against_itself_is_a_half_and_swapping_sides_mirrors_it():
    scores, baseline = np.random.default_rng(0).normal(size=(2, 60))
    assert win_rate(scores, scores) == Interval(0.5, 0.5, 0.5)
    here, there = win_rate(scores, baseline), win_rate(baseline, scores)
    assert here.value == pytest.approx(1 - there.value)
    assert (here.low, here.high) == pytest.approx((1 - there.high, 1 - there.low))


def test_the_bootstrap_is_paired():
    """A model better by 0.1 on every prompt wins always, however much prompts differ: an unpaired test sees nothing."""
    baseline = np.random.default_rng(0).normal(0, 100, size=50)
    assert win_rate(baseline + 0.1, baseline) == Interval(1.0, 1.0, 1.0)


def test_bootstrap_of_two_prompts_is_the_one_that_can_be_enumerated():
    # one won, one lost: resamples have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    assert mean_interval([1.0, 0.0]) == Interval(0.5, 0.0, 1.0)


def test_bootstrap_depends_on_its_seed_and_on_nothing_else():
    values = np.random.default_rng(3).normal(size=40)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_bootstrap_agrees_with_the_normal_interval_on_many_values():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=4000)  # more than one chunk of resamples
    half = 1.96 * values.std() / math.sqrt(len(values))
    interval = mean_interval(values)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    samples = rng.random((400, 200)) < 0.8
    intervals = [mean_interval(sample, seed=i, n_boot=400) for i, sample in enumerate(samples)]
    coverage = np.mean([interval.low <= 0.8 <= interval.high for interval in intervals])
    assert 0.91 <= coverage <= 0.98  # 0.95 in truth; three standard errors of 400 trials are 0.033


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_textbook_one(successes, n, low, high):
    interval = wilson_interval(successes, n)
    assert interval.value == successes / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_keeps_its_bounds_at_the_ends():
    assert wilson_interval(20, 20).high == 1.0
    assert wilson_interval(20, 20).low == pytest.approx(1 - 0.1611, abs=5e-5)
    with pytest.raises(ValueError, match="n > 0"):
        wilson_interval(1, 0)


def test_pair_accuracy_counts_ties_half_and_does_not_collapse_when_all_are_right():
    assert pair_accuracy([2.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 0.0]).value == 0.625
    perfect = pair_accuracy(np.ones(20), np.zeros(20))
    assert perfect.value == perfect.high == 1.0
    assert perfect.low < 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one"),
        (lambda: mean_interval([1.0, math.nan]), r"values\[1\] is not a finite number"),
        (lambda: win_rate([1.0, 2.0], [1.0]), "same prompts"),
        (lambda: expected_calibration_error([1.0], [2.0]), "between 0"),
        (lambda: calibration_curve([1.0, 2.0], [1.0]), "2 margins against 1 labels"),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ece_of_a_hand_case():
    sure = math.log(3)  # sigmoid is 0.75
    assert expected_calibration_error([sure], [1]) == pytest.approx(0.25)  # said 0.75, was 1; said 0.25, was 0
    assert expected_calibration_error([sure] * 4, [1, 1, 1, 0]) == pytest.approx(0.0)  # 3 of 4 it is
    # 0.75 four times, right three times, and 0.55 twice, wrong twice: (4 * 0 + 2 * 0.55) / 6
    less_sure = math.log(0.55 / 0.45)
    assert expected_calibration_error([sure] * 4 + [less_sure] * 2, [1, 1, 1, 0, 0, 0]) == pytest.approx(0.55 / 3)


def test_calibration_does_not_depend_on_which_of_the_pair_came_first():
    rng = np.random.default_rng(0)
    margins, labels = rng.normal(size=300), rng.random(300) < 0.7
    swap = rng.random(300) < 0.5
    swapped = expected_calibration_error(np.where(swap, -margins, margins), np.where(swap, ~labels, labels))
    assert swapped == pytest.approx(expected_calibration_error(margins, labels))


def test_chosen_minus_rejected_needs_no_labels():
    margins = np.array([2.0, -1.0, 0.5])
    assert expected_calibration_error(margins) == expected_calibration_error(margins, [1, 1, 1])


def test_ece_of_a_calibrated_model_is_only_the_chance_that_the_docstring_states():
    rng = np.random.default_rng(0)

    def simulated(pairs):
        p = rng.random(pairs)
        return expected_calibration_error(np.log(p / (1 - p)), rng.random(pairs) < p)

    assert simulated(400_000) < 0.003
    expected = math.sqrt(10 / (math.pi * 1000)) * math.pi / 8  # E sqrt(p (1 - p)) is pi / 8 for uniform p
    assert np.mean([simulated(1000) for _ in range(60)]) == pytest.approx(expected, rel=0.15)
    assert expected == pytest.approx(0.02, abs=0.003)


def test_calibration_curve_of_an_overconfident_model_lies_below_the_diagonal_where_it_is_sure():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, size=50_000)
    labels = rng.random(50_000) < 1 / (1 + np.exp(-margins / 2))  # the truth is half as sure
    curve = calibration_curve(margins, labels)
    assert curve.count.sum() == 100_000
    assert np.all(curve.observed[curve.predicted > 0.6] < curve.predicted[curve.predicted > 0.6])
    assert np.allclose(curve.observed, 1 - curve.observed[::-1])  # both orders of each pair
    with np.errstate(over="raise"):
        assert calibration_curve([800.0, -800.0], [1, 1]).predicted.tolist() == [0.0, 1.0]


# ---- models ----

CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PROMPTS = [
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a much longer question than the others"}],
    "a raw line to go on",
    [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
    "x",
]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    # As Llama's do, it adds a BOS to whatever it tokenises: a template that writes its own must not get a second.
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
    )


def llama_config(tokenizer, **more):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # far from uniform, so that greedy has no ties to break
        attention_dropout=0.1,  # shows if training mode is left on
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(tokenizer)).eval()


@pytest.fixture
def adapted(model):
    """The same Llama under LoRA at its init, where the adapters are exactly nothing."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2))


def move_adapters(adapted):
    import torch

    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def sampled(model, tokenizer, **options):
    return generate(model, tokenizer, PROMPTS, **{"max_new_tokens": 12, "progress": False, **options})


def test_a_prompt_has_one_bos(tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for prompt in [*PROMPTS, "<bos>already there", ""]:
        ids = encode_prompt(tokenizer, prompt)
        assert ids[0] == bos
        assert ids.count(bos) == 1
        assert encode_dialogue(tokenizer, prompt, "yes").count(bos) == 1
    chat, raw = PROMPTS[0], PROMPTS[2]
    assert tokenizer.decode(encode_prompt(tokenizer, chat)) == "<bos><user>a<eos><assistant>"
    assert tokenizer.decode(encode_dialogue(tokenizer, chat, "yes")) == "<bos><user>a<eos><assistant>yes<eos>"
    assert tokenizer.decode(encode_dialogue(tokenizer, raw, "yes")) == "<bos>a raw line to go onyes<eos>"
    assert encode_dialogue(tokenizer, raw, "yes")[-1] == eos


def test_generate_is_reproducible_and_leaves_the_random_state_alone(model, tokenizer):
    import torch

    first = sampled(model, tokenizer, seed=7)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert sampled(model, tokenizer, seed=7) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert sampled(model, tokenizer, seed=8) != first
    assert len(first) == len(PROMPTS)


def test_padding_and_order_change_nothing(model, tokenizer):
    """Alone, each prompt has no padding at all; in a batch with a longer one it must say the same."""
    together = sampled(model, tokenizer, temperature=0, batch_size=5)
    assert sampled(model, tokenizer, temperature=0, batch_size=1) == together
    assert sampled(model, tokenizer, temperature=0, batch_size=2) == together
    backwards = generate(model, tokenizer, PROMPTS[::-1], max_new_tokens=12, temperature=0, progress=False)
    assert backwards[::-1] == together
    assert len(set(together)) > 1
    assert tokenizer.padding_side == "right"


def test_greedy_is_the_argmax_of_the_model(model, tokenizer):
    import torch

    ids = encode_prompt(tokenizer, PROMPTS[1])
    start = len(ids)
    for _ in range(6):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    generated = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=6, temperature=0, progress=False)
    assert generated[1] == ids[start:]


def test_samples_come_from_the_models_own_distribution(model, tokenizer):
    """1,024 first tokens against the softmax: no top-k of 50 (the library's default), no other temperature."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([encode_prompt(tokenizer, PROMPTS[0])])).logits[0, -1].double()
    half_as_hot = (logits / 2).softmax(-1)  # temperature 2 spreads the mass beyond the first 50
    drawn = generate_ids(
        model, tokenizer, [PROMPTS[0]] * 1024, max_new_tokens=1, temperature=2.0, batch_size=512, progress=False
    )
    share = np.bincount([ids[0] for ids in drawn if ids], minlength=len(half_as_hot)) / 1024
    tail = half_as_hot.argsort(descending=True)[50:]
    expected = float(half_as_hot[tail].sum())
    assert expected > 0.1
    assert share[tail.numpy()].sum() == pytest.approx(expected, abs=4 * math.sqrt(expected / 1024))
    likeliest = int(half_as_hot.argmax())
    assert share[likeliest] == pytest.approx(float(half_as_hot[likeliest]), abs=0.06)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_models_saved_generation_config_changes_nothing_and_is_kept(model, adapted, tokenizer, wrapped):
    from transformers import GenerationConfig

    policy = adapted if wrapped else copy.deepcopy(model)
    plain = sampled(policy, tokenizer, seed=3)
    saved = GenerationConfig(top_k=1, repetition_penalty=5.0, temperature=0.1, min_new_tokens=12, do_sample=True)
    (policy.get_base_model() if wrapped else policy).generation_config = saved
    assert sampled(policy, tokenizer, seed=3) == plain
    assert policy.generation_config is saved


def test_a_reply_ends_at_the_tokenizers_or_the_models_eos(model, tokenizer):
    policy = copy.deepcopy(model)
    greedy = {"max_new_tokens": 8, "temperature": 0, "progress": False}
    (free,) = generate_ids(policy, tokenizer, PROMPTS[1:2], **greedy)
    assert len(free) == 8
    third = free[2]
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, third]
    ended = generate_ids(policy, tokenizer, PROMPTS, **greedy)
    assert ended[1] == free[: free.index(third) + 1]
    assert all(third not in ids[:-1] for ids in ended)
    assert all(tokenizer.pad_token_id not in ids for ids in ended)


def test_generate_puts_training_mode_back(model, tokenizer):
    policy = copy.deepcopy(model).train()
    policy.model.layers[0].eval()
    expected = sampled(model, tokenizer, temperature=0)
    assert sampled(policy, tokenizer, temperature=0) == expected  # dropout was off
    assert policy.training and policy.model.layers[1].training and not policy.model.layers[0].training


def test_generate_of_nothing_is_nothing_and_bad_arguments_are_refused(model, tokenizer):
    assert generate(model, tokenizer, [], max_new_tokens=3, progress=False) == []
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(model, tokenizer, PROMPTS, max_new_tokens=0)


def test_kl_is_exactly_zero_while_the_adapters_are_at_init(adapted, tokenizer):
    replies = ["one", "", "a third, and longer", "four", "five"]
    assert np.all(sequence_kl(adapted, tokenizer, PROMPTS, replies, progress=False) == 0.0)


def by_hand(network, ids, start):
    """log p of ids[start:] given what stands before, one token at a time, no padding and no shift tricks."""
    import torch

    with torch.no_grad():
        logps = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logps[position - 1, ids[position]]) for position in range(start, len(ids)))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_kl_is_the_sum_of_log_ratios_over_the_reply(adapted, model, tokenizer, batch_size):
    move_adapters(adapted)
    adapted.eval()
    replies = ["one", "", "a third, and longer", "four", "five"]
    expected = []
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        start = encode_prompt(tokenizer, prompt)
        ids = [*start, *tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        expected.append(by_hand(adapted, ids, len(start)) - by_hand(model, ids, len(start)))
    off = sequence_kl(adapted, tokenizer, PROMPTS, replies, batch_size=batch_size, progress=False)
    apart = sequence_kl(adapted, tokenizer, PROMPTS, replies, model, batch_size=batch_size, progress=False)
    assert off == pytest.approx(expected, abs=1e-4)
    assert apart == pytest.approx(expected, abs=1e-4)
    assert np.abs(expected).max() > 0.1


def test_k1_averaged_over_every_reply_is_the_kl_divergence(adapted, tokenizer):
    """For replies of one token all can be enumerated: sum of p * k1 is torch's own KL(p || q)."""
    import torch
    from torch.distributions import Categorical, kl_divergence

    move_adapters(adapted)
    adapted.eval()
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[0])])
    with torch.no_grad():
        policy = Categorical(logits=adapted(ids).logits[0, -1].double())
        with adapted.disable_adapter():
            reference = Categorical(logits=adapted(ids).logits[0, -1].double())
    every = [[token] for token in range(len(tokenizer))]
    k1 = sequence_kl(adapted, tokenizer, [PROMPTS[0]] * len(every), every, batch_size=64, progress=False)
    exact = float(kl_divergence(policy, reference))
    assert (policy.probs.numpy() * k1).sum() == pytest.approx(exact, abs=1e-5)
    assert exact > 0.01
    assert k1.min() < 0  # a single one may well be negative


def test_kl_needs_a_reference(model, tokenizer):
    with pytest.raises(ValueError, match="PeftModel"):
        sequence_kl(model, tokenizer, PROMPTS, ["a"] * len(PROMPTS))
    with pytest.raises(ValueError, match="5 prompts against 1 completions"):
        sequence_kl(model, tokenizer, PROMPTS, ["a"])


def test_score_is_what_the_model_says_of_each_reply_alone(tokenizer):
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    reward_model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=1)).eval()
    replies = ["one", "", "a third, and longer", "four", "five"]
    expected = []
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = torch.tensor([encode_dialogue(tokenizer, prompt, reply)])
        with torch.no_grad():
            hidden = reward_model.model(ids).last_hidden_state[0, -1]
            expected.append(float(reward_model.score(hidden)))
    for batch_size in (1, 2, 5):
        scores = score(reward_model, tokenizer, PROMPTS, replies, batch_size, progress=False)
        assert scores == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.01
    reward_model.config.pad_token_id = None
    with pytest.raises(ValueError, match="pad_token_id"):
        score(reward_model, tokenizer, PROMPTS, replies)
