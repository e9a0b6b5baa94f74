"""The profiles of Llama-1B, Llama-2-7B and Llama-8B on a CPU: 4 bits, LoRA, checkpointing, stages, save, reload, merge.

The models are the true ones' configs with one or two layers and random weights. A chain of all four stages runs at an
eighth of the width; quantising, training and saving at the true width too, where a matrix takes seconds. The
tokenizer is the tiny Llama's. Computing is in float32, as a CPU does it; a GPU's mixed precision is not run here.
"""

import json

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from rlhf_lab import evaluate as ev
from rlhf_lab.checks import check_model_dir
from rlhf_lab.data import load_demonstrations, load_preferences
from rlhf_lab.memory import NF4_BYTES, SHAPES
from rlhf_lab.models import (
    load_policy,
    load_reward_model,
    load_tokenizer,
    lora_config,
    save_adapter,
)
from rlhf_lab.pipeline import HELPDESK
from rlhf_lab.profiles import ALL_LINEAR, get_profile
from rlhf_lab.shrunk import keep_weights_in_place, llama_config, on_cpu, shrunk_model
from rlhf_lab.stages import dpo, ppo, reward, sft

# TRL 1.16 with transformers 5.23.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_(en|dis)able. is deprecated:FutureWarning")
NAMES = ("llama-1b", "llama-2-7b", "llama-8b")
FEW = {
    "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1,
    "gradient_checkpointing": True, "learning_rate": 1e-3,
}  # fmt: skip
FEW_EPISODES = {
    "total_episodes": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_mini_batches": 1,
    "num_ppo_epochs": 1, "local_rollout_forward_batch_size": 4, "gradient_checkpointing": True, "learning_rate": 1e-3,
}  # fmt: skip
PROMPTS = [[{"role": "user", "content": "Hey, my kettle broke."}]] * 2
REPLIES = ["I have refunded the kettle.", "Take care."]


@pytest.fixture(scope="module", autouse=True)
def _weights_in_place():
    """bitsandbytes' repacking of 4-bit weights on some CPUs cuts their gradients: see the last test."""
    before = bnb.nn.modules.has_avx512bf16
    keep_weights_in_place()
    yield
    bnb.nn.modules.has_avx512bf16 = before


def an_eighth(name):
    """Sizes of an eighth of the width, heads as wide as they are."""
    shape = SHAPES[name]
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return {size: getattr(shape, size) // 8 for size in sizes}


@pytest.fixture(scope="module", params=NAMES)
def chain(request, tmp_path_factory):
    """(profile, folder of the base, {stage: result}): every stage run for a step or two on one small Llama."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    base = shrunk_model(name, folder / "base", layers=2, vocab_size=1536, **an_eighth(name))
    profile = on_cpu(name, base, max_length=256, response_length=8)
    answers = load_demonstrations(HELPDESK / "sft.jsonl")[:8]
    pairs = load_preferences(HELPDESK / "preferences_test.jsonl")[:8]
    done = {"sft": sft.run(profile, answers, {"model": base}, folder / "sft", settings=FEW)}
    start = {"model": done["sft"].path}
    done["reward"] = reward.run(profile, pairs, start, folder / "reward", settings=FEW)
    done["dpo"] = dpo.run(profile, pairs, start, folder / "dpo", settings=FEW)
    inputs = start | {"reward": done["reward"].path}
    done["ppo"] = ppo.run(profile, pairs, inputs, folder / "ppo", settings=FEW_EPISODES)
    return profile, base, done


def adapter(path):
    return load_file(path / "adapter_model.safetensors")


def matrices(path):
    """The matrices that an adapter changes: {"q_proj", ...}."""
    return {key.split(".")[-3] for key in adapter(path) if "lora_A" in key}


def logits(model, tokenizer):
    ids = torch.tensor([ev.encode_dialogue(tokenizer, PROMPTS[0], REPLIES[0])])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


# --- the whole chain, an eighth as wide ---------------------------------------------------------------------------


def test_every_stage_trains(chain):
    _, _, done = chain
    assert done["sft"].metrics["loss"] > 0
    assert 0 < done["reward"].metrics["loss"] < 5 and 0 < done["dpo"].metrics["loss"] < 5
    assert torch.isfinite(torch.tensor(list(done["ppo"].metrics.values()))).all()
    for stage, target in (("reward", done["reward"]), ("dpo", done["dpo"]), ("ppo", done["ppo"])):
        moved = [value for key, value in adapter(target.path).items() if "lora_B" in key]
        assert all(value.abs().max() > 0 for value in moved), f"{stage}: B starts at zero, and each must have learnt"


def test_adapters_are_on_the_matrices_that_the_profile_names(chain):
    profile, _, done = chain
    article = ("q_proj", "v_proj")  # the article's, for its own model
    expected = set(article if profile.name == "llama-2-7b" else ALL_LINEAR)
    assert {name: matrices(done[name].path) for name in ("reward", "dpo", "ppo")} == dict.fromkeys(
        ("reward", "dpo", "ppo"), expected
    )
    assert matrices(done["sft"].path / "adapter") == expected


def test_what_is_trained_is_kept_in_float32(chain):
    """TRL makes it bfloat16 on a quantised model, which float16's loss scaler refuses on a T4 (pytorch#127176)."""
    _, _, done = chain
    for folder in (done["sft"].path / "adapter", done["reward"].path, done["dpo"].path, done["ppo"].path):
        state = adapter(folder)
        assert {value.dtype for value in state.values()} == {torch.float32}, folder.name
        coarse = [key for key, value in state.items() if torch.equal(value, value.bfloat16().float())]
        assert coarse == [], f"{folder.name}: trained in bfloat16, and turned to float32 for the file"


def test_sft_merges_into_what_the_base_was_not_into_its_rounding(chain):
    profile, base, done = chain
    config = check_model_dir(done["sft"].path)
    assert "quantization_config" not in config and config["architectures"] == ["LlamaForCausalLM"]
    before, after = load_file(base / "model.safetensors"), load_file(done["sft"].path / "model.safetensors")
    learnt = adapter(done["sft"].path / "adapter")
    scale = profile.lora_alpha / profile.lora_r
    for key in (k for k in learnt if "lora_A" in k):
        down, up = learnt[key], learnt[key.replace("lora_A", "lora_B")]
        weight = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        assert torch.allclose(after[weight], before[weight].float() + scale * up @ down, atol=1e-6), weight
    kept = [key for key in before if not any(f".{target}." in key for target in profile.lora_targets)]
    assert kept and all(torch.equal(after[key], before[key].float()) for key in kept)


def test_the_reward_models_head_is_trained_saved_and_not_quantised(chain):
    profile, _, done = chain
    model = load_reward_model(done["reward"].path, profile)
    saved = next(value for key, value in adapter(done["reward"].path).items() if key.endswith("score.weight"))
    heads = [p for name, p in model.named_parameters() if "score" in name and p.shape == saved.shape]
    assert saved.dtype == torch.float32 and any(torch.equal(head, saved) for head in heads)
    tokenizer = load_tokenizer(done["reward"].path)
    scores = ev.score(model, tokenizer, PROMPTS, REPLIES, batch_size=2, progress=False)
    assert scores[0] != scores[1]


def test_a_reloaded_policy_is_the_one_that_was_trained(chain):
    """Folded into 4 bits, what an adapter learnt would be rounded away: it is kept beside them."""
    profile, _, done = chain
    tokenizer = load_tokenizer(done["dpo"].path)
    trained = PeftModel.from_pretrained(load_policy(done["sft"].path, profile), done["dpo"].path)
    expected = logits(trained, tokenizer)
    assert torch.allclose(logits(load_policy(done["dpo"].path, profile), tokenizer), expected, atol=1e-5)
    with trained.disable_adapter():
        assert not torch.allclose(logits(trained, tokenizer), expected, atol=1e-4), "it had learnt something"


def test_ppo_scores_as_the_reloaded_reward_model_does(chain):
    from rlhf_lab.ppo.roles import OneBaseRoles

    profile, _, done = chain
    how = lora_config(profile, "CAUSAL_LM")
    roles = OneBaseRoles(get_peft_model(load_policy(done["sft"].path, profile), how), done["reward"].path, how)
    tokenizer = load_tokenizer(done["sft"].path)
    alone = load_reward_model(done["reward"].path, profile)
    for text, expected in zip(REPLIES, ev.score(alone, tokenizer, PROMPTS, REPLIES, progress=False), strict=True):
        ids = torch.tensor([ev.encode_dialogue(tokenizer, PROMPTS[0], text)])
        with torch.no_grad():
            assert roles.scores(ids, torch.ones_like(ids)).item() == pytest.approx(expected, abs=1e-4)


def test_a_trained_policy_answers(chain):
    profile, _, done = chain
    tokenizer = load_tokenizer(done["ppo"].path)
    model = load_policy(done["ppo"].path, profile)
    replies = ev.generate(model, tokenizer, PROMPTS, max_new_tokens=4, seed=0, progress=False)
    assert len(replies) == 2


def gradients(model, checkpointing):
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.arange(5, 45).reshape(2, 20)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def test_checkpointing_changes_no_gradient(chain):
    """On frozen 4-bit weights checkpointing of the old kind cut the graph: no input asked for a gradient."""
    profile, base, _ = chain
    torch.manual_seed(0)
    model = get_peft_model(load_policy(base, profile), lora_config(profile, "CAUSAL_LM", init_lora_weights=False))
    plain, recomputed = gradients(model, False), gradients(model, True)
    assert plain.keys() == recomputed.keys() and all(value.abs().max() > 0 for value in plain.values())
    for name, value in plain.items():
        assert torch.allclose(value, recomputed[name], rtol=1e-4, atol=1e-7), name


# --- the true widths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_model_has_the_published_number_of_weights(name):
    """At full depth, on no memory at all; and LoRA of the profile finds its matrices there."""
    from transformers import LlamaForCausalLM

    published = {"llama-1b": 1_235_814_400, "llama-2-7b": 6_738_415_616, "llama-8b": 8_030_261_248}
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(name))
        assert sum(p.numel() for p in model.parameters()) == published[name]
        profile = get_profile(name)
        lora = get_peft_model(model, lora_config(profile, "CAUSAL_LM"), low_cpu_mem_usage=True)
    trained, _ = lora.get_nb_trainable_parameters()
    assert trained == SHAPES[name].lora(profile.lora_targets, profile.lora_r)


# The 8B's vocabulary of 128,256 would take 4 GB of this machine for embedding and head alone: it is cut to an eighth.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("llama-1b", None), ("llama-2-7b", None), ("llama-8b", 16032)])
def test_one_layer_of_the_true_width_quantises_trains_and_is_saved(name, words, tmp_path):
    base = shrunk_model(name, tmp_path / "base", layers=1, vocab_size=words)
    profile = on_cpu(name, base)
    model = load_policy(base, profile)
    quantised = {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert {n.rpartition(".")[2] for n in quantised} == set(ALL_LINEAR)
    in_layer = SHAPES[name].in_layers / SHAPES[name].num_hidden_layers
    packed = sum(m.weight.numel() for m in quantised.values())  # bytes, two weights in each
    constants = sum(
        s.absmax.numel() + 4 * s.state2.absmax.numel() for s in (m.weight.quant_state for m in quantised.values())
    )
    assert (packed + constants) / in_layer == pytest.approx(NF4_BYTES, rel=1e-3)
    assert {p.dtype for n, p in model.named_parameters() if "proj" not in n} == {torch.float32}

    weight = load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].float()
    layer = quantised["model.layers.0.self_attn.q_proj"].weight
    restored = bnb.functional.dequantize_4bit(layer.data, layer.quant_state)
    # For normal weights in blocks of 64, NF4's error is about a tenth of their spread.
    assert 0.05 < float((restored - weight).std() / weight.std()) < 0.15

    torch.manual_seed(0)
    model = get_peft_model(model, lora_config(profile, "CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    model.train()
    model.activation_checkpointing_enable()
    ids = torch.arange(5, 37).reshape(2, 16)
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]

    tokenizer = load_tokenizer(base)
    save_adapter(model, tokenizer, base, tmp_path / "adapter")
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "../base"
    )
    assert matrices(tmp_path / "adapter") == set(profile.lora_targets)


def test_sampling_first_takes_no_gradient_away(chain):
    """What keep_weights_in_place is for: after a pass in eval mode every layer still learns."""
    profile, base, _ = chain
    model = get_peft_model(load_policy(base, profile), lora_config(profile, "CAUSAL_LM", init_lora_weights=False))
    before = gradients(model, False)
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(5, 45).reshape(2, 20))
    after = gradients(model, False)
    assert all(torch.allclose(after[name], value, rtol=1e-4, atol=1e-7) for name, value in before.items())
