"""docs/from_trl.md: what its readers are told to write runs as it stands."""

import re

import pytest
from datasets import Dataset
from small import PROMPTS, tiny
from transformers import LlamaForSequenceClassification

from rlhf_lab.profiles import DATA_DIR

PAGE = (DATA_DIR.parent / "docs" / "from_trl.md").read_text(encoding="utf-8")
AFTER = dict(re.findall(r"```python\n# after: (\w+)\n(.*?)```", PAGE, re.DOTALL))


def test_the_page_has_an_after_for_each_start():
    assert set(AFTER) == {"import", "shorter", "step", "article"}


@pytest.mark.parametrize("name", list(AFTER))
def test_it_runs(name, tokenizer, tmp_path, capsys):
    conversations = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    names = {
        "settings": {
            "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
            "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "total_episodes": 32,
            "response_length": 6,
        },
        "tokenizer": tokenizer,
        "policy": tiny(tokenizer),
        "ref_policy": tiny(tokenizer),
        "reward_model": tiny(tokenizer, LlamaForSequenceClassification, seed=1, num_labels=1),
        "value_model": tiny(tokenizer, LlamaForSequenceClassification, seed=2, num_labels=1),
        "tokenized": Dataset.from_list([{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in PROMPTS]),
        "conversations": Dataset.from_list(conversations),
        "politeness": lambda prompts, completions, **_: [0.5] * len(completions),
        "score": lambda question, reply: float(len(reply)),
    }  # fmt: skip
    exec(compile(AFTER[name], f"docs/from_trl.md, after: {name}", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == trainer.args.num_total_batches > 0
    assert trainer.state.log_history[-1]["objective/kl"] == pytest.approx(0, abs=0.5)
    if name == "import":
        assert (tmp_path / "model.safetensors").is_file()
        assert "model response" in capsys.readouterr().out
