"""Predicted memory against autograd's own count, published sizes, and what was and is measured."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lab import memory
from rlhf_lab.memory import SHAPES, STAGES, LlamaShape, activations, predicted_memory
from rlhf_lab.profiles import ALL_LINEAR, ATTENTION, DATA_DIR, REPO_ROOT, get_profile
from rlhf_lab.shrunk import on_cpu

SMALL = LlamaShape(
    vocab_size=100, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
)  # fmt: skip


def kept_for_backward(shape, targets, r, rows, length, padded, autocast, checkpointing):
    """Bytes that autograd keeps for the backward pass of a Llama's body, weights left out: each storage once."""
    names = [name for name in shape.__dataclass_fields__ if name != "stored_bytes"]
    model = LlamaForCausalLM(LlamaConfig(**{name: getattr(shape, name) for name in names}))
    model = get_peft_model(model, LoraConfig(r=r, target_modules=list(targets))).train()
    if autocast:
        # Adapters too: on plain matrices PEFT would give each its own copy of the states. On 4-bit ones it does not.
        model.bfloat16()
    model.enable_input_require_grads()
    if checkpointing:
        model.activation_checkpointing_enable()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address comes twice
        return tensor

    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -3:] = 0 if padded else 1
    ids = torch.zeros(rows, length, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        states = model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "mixed"])
def test_with_checkpointing_a_layer_keeps_its_input_alone(autocast):
    counted = kept_for_backward(SMALL, ALL_LINEAR, 4, 3, 32, True, autocast, checkpointing=True)
    width = 2 if autocast else 4
    one_layer = 96 * memory.layer_activations(SMALL, 32, ALL_LINEAR, 4, width)
    said = activations(SMALL, 96, 32, ALL_LINEAR, 4, width, checkpointing=True)
    assert said - one_layer == pytest.approx(counted, rel=0.1)  # what is kept between layers: positions, the mask


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "mixed"])
@pytest.mark.parametrize("targets", [ALL_LINEAR, ATTENTION, ("q_proj", "v_proj")], ids=["all", "attention", "article"])
def test_activations_are_what_autograd_keeps(targets, autocast, padded):
    counted = kept_for_backward(SMALL, targets, 4, 3, 32, padded, autocast, checkpointing=False)
    said = activations(SMALL, 96, 32, targets, 4, 2 if autocast else 4, padded=padded)
    assert said == pytest.approx(counted, rel=0.02)


def test_parameters_are_the_published_ones():
    published = {"smol": 134_515_008, "llama-1b": 1_235_814_400, "llama-2-7b": 6_738_415_616, "llama-8b": 8_030_261_248}
    assert {name: SHAPES[name].parameters() for name in published} == published


def test_a_shape_is_read_from_a_folder():
    tiny = LlamaShape.of(DATA_DIR / "tiny-llama")
    assert tiny.parameters() == 2_508_864 and tiny.head_dim == 32 and tiny.stored_bytes == 2


def test_lora_parameters_by_hand():
    """Llama 2 7B, r = 8, queries and values: 32 layers x 2 matrices x 8 x (4096 + 4096)."""
    assert SHAPES["llama-2-7b"].lora(("q_proj", "v_proj"), 8) == 4_194_304


def test_nf4_takes_what_the_paper_says():
    """QLoRA, section 3: double quantisation brings the constants from 0.5 to 0.127 bits a parameter."""
    assert pytest.approx(4.127, abs=1e-3) == memory.NF4_BYTES * 8


# --- against what was and is measured -----------------------------------------------------------------------------

RECORD = json.loads((DATA_DIR / "records" / "memory.json").read_text(encoding="utf-8"))
MEASURED = {case: result for case, result in RECORD["cases"].items() if case not in ("libraries", "smol/sft/heap")}


def test_the_record_says_when_and_with_what():
    assert set(RECORD) == {"cases", "date", "versions", "command"}
    assert {"torch", "transformers", "trl", "bitsandbytes"} <= set(RECORD["versions"])
    assert pytest.approx(RECORD["cases"]["libraries"]["measured_mb"], rel=0.05) == memory.CPU_LIBRARIES_MB
    models = {case.split("/")[0] for case in MEASURED}
    assert models == {"smol", "llama-1b", "llama-2-7b", "llama-8b"}
    assert {case.split("/")[1] for case in MEASURED} == set(STAGES)


def test_freed_memory_that_goes_back_is_a_large_part_of_the_peak():
    """The same step of SmolLM2, as glibc manages memory by itself, and with its bound held."""
    by_itself, asked = (RECORD["cases"][case]["measured_mb"] for case in ("smol/sft/heap", "smol/sft/160"))
    assert asked < 0.9 * by_itself


def shrunk_shape(name, words):
    return replace(SHAPES[name], num_hidden_layers=1, vocab_size=words)


def predicted_for(case):
    """Anew, from what the record says was run."""
    name, stage = case.split("/")[:2]
    was = MEASURED[case]
    profile = get_profile(name) if name == "smol" else on_cpu(name, "somewhere")
    profile = replace(profile, **{stage: getattr(profile, stage) | was["settings"]})
    shape = SHAPES[name] if name == "smol" else shrunk_shape(name, was["vocab_size"])
    return predicted_memory(
        profile, stage, shape, batch=was["batch"], length=was["length"], reply_length=was["reply_length"], gpu=False
    ).total_mb


@pytest.mark.parametrize("case", MEASURED)
def test_prediction_agrees_with_the_record(case):
    assert predicted_for(case) == pytest.approx(MEASURED[case]["measured_mb"], rel=0.15)


@pytest.mark.parametrize("name", SHAPES)
def test_a_profile_says_what_its_hungriest_stage_takes(name):
    profile = get_profile(name)
    hungriest = max(predicted_memory(profile, stage).total_mb for stage in STAGES)
    assert profile.expected_memory_mb == pytest.approx(hungriest, rel=0.03)


def test_checkpointing_and_shorter_rows_save_what_they_are_said_to_save():
    """Differences, in which libraries and weights play no part."""
    for less in ("smol/sft/checkpointed", "smol/sft"):
        more = "smol/sft" if less.endswith("checkpointed") else "smol/sft/160"
        saved = MEASURED[more]["measured_mb"] - MEASURED[less]["measured_mb"]
        assert predicted_for(more) - predicted_for(less) == pytest.approx(saved, rel=0.15)


MEASURE = """
import sys
from pathlib import Path
from rlhf_lab.data import check_tokens
from rlhf_lab.memory import peak_resident_mb, return_freed_memory
from rlhf_lab.models import load_tokenizer
from rlhf_lab.shrunk import on_cpu, shrunk_model
from rlhf_lab.stages import sft
return_freed_memory()
rows = [{"prompt": [{"role": "user", "content": "Hey" + " kettle" * 60}],
         "completion": [{"role": "assistant", "content": "Yes" + " kettle" * (60 + i % 2)}]} for i in range(16)]
base = shrunk_model("llama-2-7b", Path(sys.argv[1]), layers=6, vocab_size=1536, hidden_size=512,
                    intermediate_size=1376, num_attention_heads=4, num_key_value_heads=4)
profile = on_cpu("llama-2-7b", base, max_length=256, quantisation=None)
settings = {"max_steps": 1, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
sft.run(profile, rows, {"model": base}, Path(sys.argv[1]) / "sft", settings=settings)
longest = max(check_tokens(rows, load_tokenizer(base), 256, "rows"))
print(longest, peak_resident_mb())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and holds glibc's malloc")
def test_a_live_measurement_agrees(tmp_path):
    """Six layers an eighth as wide as Llama 2's, not quantised: 16 rows, an SFT step, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO_ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    length, peak_mb = map(float, done.stdout.split()[-2:])
    shape = LlamaShape.of(tmp_path)
    profile = on_cpu("llama-2-7b", tmp_path, quantisation=None)
    said = predicted_memory(profile, "sft", shape, batch=16, length=int(length), checkpointing=False, gpu=False)
    assert said.total_mb == pytest.approx(peak_mb, rel=0.15)
    assert said.parts["activations"] > 0.3 * said.total_mb, "not the libraries alone"
