"""Record what a user of TRL 1.12's PPO can see: config fields, arguments, names in the log, into trl_1_12.json.

pip install --no-deps --target SIDE trl==1.12.0
PYTHONPATH=SIDE:. python tests/ppo/record_trl_1_12.py
"""

import inspect
import json
import tempfile
from dataclasses import fields
from pathlib import Path

import trl
from datasets import Dataset
from small import PROMPTS, tiny
from transformers import AutoTokenizer, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rlhf_lab.profiles import DATA_DIR

assert trl.__version__ == "1.12.0", f"this is trl {trl.__version__}"


def written_by_trl() -> dict:
    """Field -> default, of the fields that TRL's classes write themselves."""
    classes = [cls for cls in PPOConfig.__mro__ if cls.__module__.startswith("trl.")]
    names = {name for cls in classes for name in cls.__annotations__}
    return {field.name: field.default for field in fields(PPOConfig) if field.name in names}


def logged() -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama", padding_side="left")
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder, use_cpu=True, bf16=False, report_to="none", save_strategy="no", total_episodes=8,
                per_device_train_batch_size=4, response_length=6, stop_token="eos", num_sample_generations=0,
            ),
            processing_class=tokenizer,
            model=tiny(tokenizer),
            ref_model=tiny(tokenizer),
            reward_model=tiny(tokenizer, LlamaForSequenceClassification, seed=1, num_labels=1),
            value_model=tiny(tokenizer, LlamaForSequenceClassification, seed=2, num_labels=1),
            train_dataset=Dataset.from_list([{"input_ids": tokenizer(p)["input_ids"]} for p in PROMPTS]),
            eval_dataset=Dataset.from_list([{"input_ids": tokenizer(p)["input_ids"]} for p in PROMPTS]),
        )  # fmt: skip
        trainer.train()
    return sorted(trainer.state.log_history[0])


record = {
    "trl": trl.__version__,
    "fields": written_by_trl(),
    "arguments": list(inspect.signature(PPOTrainer.__init__).parameters)[1:],
    "logged": logged(),
}
Path(__file__).with_name("trl_1_12.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
