"""Each stage for a few steps on the shipped Llama: what it writes, that it can be used, interrupted, gone on from."""

import json
import os
import signal

import pytest
import torch

from rlhf_lab import evaluate as ev
from rlhf_lab.data import load_preferences
from rlhf_lab.models import load_policy, load_reward_model, load_tokenizer, lora_config
from rlhf_lab.pipeline import HELPDESK
from rlhf_lab.profiles import ATTENTION, DATA_DIR, get_profile
from rlhf_lab.stages import dpo, ppo, reward, sft
from rlhf_lab.stages.common import InterruptedTraining, Job

TINY = get_profile("tiny")
BASE = DATA_DIR / "tiny-llama"
FEW = {"max_steps": 3, "per_device_train_batch_size": 8, "logging_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def sft_model(folder):
    return sft.run(TINY, HELPDESK / "sft.jsonl", {"model": BASE}, folder / "sft", settings=FEW)


@pytest.fixture(scope="module")
def reward_model(folder, sft_model):
    data = HELPDESK / "preferences_test.jsonl"
    return reward.run(TINY, data, {"model": sft_model.path}, folder / "reward", settings=FEW)


def no_pickles(path):
    return not [p for p in path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_sft_writes_one_plain_llama(sft_model):
    config = json.loads((sft_model.path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not (sft_model.path / "adapter_config.json").exists() and no_pickles(sft_model.path)
    assert sft_model.metrics["loss"] > 0 and sft_model.seconds > 0 and sft_model.peak_memory_mb > 100
    base, tuned = load_policy(BASE, TINY), load_policy(sft_model.path, TINY)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base.state_dict()[name], tuned.state_dict()[name])


def test_sft_learns_on_the_reply_alone(sft_model):
    """TRL's own collator masks the prompt: the labels that count decode to the reply and its end of turn."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(BASE)
    row = json.loads((HELPDESK / "sft.jsonl").read_text(encoding="utf-8").splitlines()[0])
    trainer = SFTTrainer(
        model=load_policy(BASE, TINY),
        args=SFTConfig(use_cpu=True, bf16=False, report_to="none", completion_only_loss=True, max_length=160),
        train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    counted = batch["labels"][0][batch["labels"][0] != -100]
    assert tokenizer.decode(counted) == row["completion"][0]["content"] + "<|eot_id|>"
    assert batch["input_ids"][0].tolist().count(tokenizer.bos_token_id) == 1


def test_a_reward_model_can_be_loaded_and_scores(reward_model):
    assert no_pickles(reward_model.path)
    tokenizer = load_tokenizer(reward_model.path)
    model = load_reward_model(reward_model.path, TINY)
    prompts = [[{"role": "user", "content": "Hey, my kettle broke."}]] * 2
    scores = ev.score(model, tokenizer, prompts, ["I have refunded the kettle.", "Take care."], batch_size=2)
    assert scores.shape == (2,) and scores[0] != scores[1]


def test_the_trained_score_head_is_saved(reward_model):
    """LoRA without modules_to_save would leave the head at random each time it is loaded."""
    first, second = (load_reward_model(reward_model.path, TINY).score.weight for _ in range(2))
    assert torch.equal(first, second)


def test_ppo_scores_as_the_reward_model_does_though_its_adapter_sits_elsewhere(sft_model, reward_model):
    """One base: the policy's adapter on every matrix, the reward's on attention. Against the model loaded alone."""
    from peft import get_peft_model

    from rlhf_lab.ppo.roles import OneBaseRoles

    policy = get_peft_model(load_policy(sft_model.path, TINY), lora_config(TINY, "CAUSAL_LM"))
    roles = OneBaseRoles(policy, reward_model.path, lora_config(TINY, "CAUSAL_LM"))
    assert set(policy.peft_config["reward"].target_modules) == set(ATTENTION) < set(TINY.lora_targets)
    tokenizer = load_tokenizer(sft_model.path)
    prompts = [[{"role": "user", "content": "Hey, my kettle broke."}]] * 2
    texts = ["I have refunded the kettle.", "Take care."]
    alone = ev.score(load_reward_model(reward_model.path, TINY), tokenizer, prompts, texts, progress=False)
    for prompt, text, expected in zip(prompts, texts, alone, strict=True):
        ids = torch.tensor([ev.encode_dialogue(tokenizer, prompt, text)])
        with torch.no_grad():
            score, values = roles.scores(ids, torch.ones_like(ids)), roles.values(ids, torch.ones_like(ids))
        assert score.item() == pytest.approx(expected, abs=1e-5)
        assert values[0, -1].item() == pytest.approx(expected, abs=1e-5), "the value starts as the reward model"


def test_a_profile_without_reward_targets_uses_the_same_for_both():
    smol = get_profile("smol")
    assert set(lora_config(smol, "SEQ_CLS").target_modules) == set(lora_config(smol, "CAUSAL_LM").target_modules)


def test_batches_hold_rows_whose_longer_reply_is_as_long(folder):
    """What a batch pads to is its longest row: pairs (short, long) and (long, short) belong together."""

    def say(item, n):
        return [{"role": "assistant", "content": f"I have refunded the {item}. " * n}]

    prompt = [{"role": "user", "content": "Hey"}]
    sizes = [(1, 8), (4, 4), (8, 1), (4, 5), (8, 8), (2, 1), (1, 2), (5, 4)]
    rows = [{"prompt": prompt, "chosen": say("kettle", a), "rejected": say("toaster", b)} for a, b in sizes]
    data = Job(TINY, rows, "data", {"model": BASE}, folder, 0, {}).prepare(160, 2)[1]
    longest = [max(row[side][0]["content"].count("refunded") for side in ("chosen", "rejected")) for row in data]
    assert sum(max(longest[i : i + 2]) for i in range(0, 8, 2)) == 8 + 8 + 5 + 2


def test_dpo_and_ppo_save_adapters_that_change_the_policy(folder, sft_model, reward_model):
    rows = load_preferences(HELPDESK / "preferences_test.jsonl")[:32]
    by_dpo = dpo.run(TINY, rows, {"model": sft_model.path}, folder / "dpo", settings=FEW)
    few_episodes = {"total_episodes": 32, "gradient_accumulation_steps": 2, "response_length": 16}
    inputs = {"model": sft_model.path, "reward": reward_model.path}
    by_ppo = ppo.run(TINY, [{"prompt": row["prompt"]} for row in rows], inputs, folder / "ppo", settings=few_episodes)
    tokenizer = load_tokenizer(sft_model.path)
    prompts, texts = [row["prompt"] for row in rows[:4]], [row["chosen"][0]["content"] for row in rows[:4]]
    before = ev.reply_logps(load_policy(sft_model.path, TINY), tokenizer, prompts, texts, progress=False)
    for result in (by_dpo, by_ppo):
        files = {p.name for p in result.path.iterdir()}
        assert "adapter_model.safetensors" in files and no_pickles(result.path)
        assert not {"reward", "value"} & files, "only the policy is saved"
        after = ev.reply_logps(load_policy(result.path, TINY), tokenizer, prompts, texts, progress=False)
        assert abs(after - before).max() > 1e-3


def test_the_reference_of_ppo_is_where_dpo_starts(folder, sft_model):
    """Before the first step every margin is 0, so the loss of DPO, alone, is log 2."""
    alone = FEW | {"max_steps": 1, "loss_type": ["sigmoid"], "loss_weights": [1.0]}
    rows = load_preferences(HELPDESK / "preferences_test.jsonl")[:8]
    result = dpo.run(TINY, rows, {"model": sft_model.path}, folder / "dpo-first", settings=alone)
    assert result.history[0]["loss"] == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(stage, folder, sft_model, reward_model, monkeypatch):
    from rlhf_lab.stages.callbacks import StageProgress

    step_end = StageProgress.on_step_end

    def press_ctrl_c(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step_end(self, args, state, control, **kwargs)

    inputs = {"model": BASE} if stage == "sft" else {"model": sft_model.path, "reward": reward_model.path}
    settings = FEW if stage == "sft" else {"total_episodes": 24, "gradient_accumulation_steps": 1, "response_length": 8}
    data = HELPDESK / ("sft.jsonl" if stage == "sft" else "prompts.jsonl")
    run = {"sft": sft, "ppo": ppo}[stage].run
    output = folder / f"interrupted-{stage}"
    monkeypatch.setattr(StageProgress, "on_step_end", press_ctrl_c)
    with pytest.raises(InterruptedTraining, match="same command"):
        run(TINY, data, inputs, output, settings=settings)
    assert not output.exists()
    (checkpoint,) = (folder / f".interrupted-{stage}.partial" / "checkpoints").glob("checkpoint-*")
    assert list(checkpoint.glob("*.safetensors"))
    monkeypatch.setattr(StageProgress, "on_step_end", step_end)
    result = run(TINY, data, inputs, output, settings=settings)
    assert [entry["step"] for entry in result.history if "step" in entry][-1] == 3
    assert not (folder / f".interrupted-{stage}.partial").exists()


def test_in_a_notebook_a_stage_shows_its_own_bar_and_no_other(folder, monkeypatch):
    """There transformers' trainer begins with another callback, a table that is sent anew with each step."""
    from transformers.utils.notebook import NotebookProgressCallback

    shown = []

    class InANotebook(NotebookProgressCallback):
        def on_train_begin(self, *_, **__):
            shown.append("a table")

        on_step_end = on_log = on_train_end = on_train_begin

    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", InANotebook)
    sft.run(TINY, HELPDESK / "sft.jsonl", {"model": BASE}, folder / "in-a-notebook", settings=FEW | {"max_steps": 1})
    assert shown == []
