"""A script for TRL 1.12's PPOTrainer that asks of it all that TRL's own two scripts ask, in their order.

Arguments by HfArgumentParser, an added pad token, models from folders, LoRA by --use_peft, tokenised prompts with a
column to filter by, save_model, push_to_hub with the data set's name, generate_completions.
"""

import shutil

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config
from trl.experimental.ppo import PPOConfig, PPOTrainer


def tokenised(rows, tokenizer, processes):
    def ids(row):
        found = tokenizer(row["prompt"], padding=False)["input_ids"]
        return {"input_ids": found, "lengths": len(found)}

    with PartialState().local_main_process_first():
        rows = rows.map(ids, remove_columns=rows.column_names, num_proc=processes)
        return rows.filter(lambda row: row["lengths"] <= 512, num_proc=processes)


def main():
    script, training, model = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig)).parse_args_into_dataclasses()
    shutil.rmtree(training.output_dir, ignore_errors=True)
    assert get_quantization_config(model) is None
    load = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(training.reward_model_path, num_labels=1, **load)
        for _ in range(2)
    )
    policy = AutoModelForCausalLM.from_pretrained(training.sft_model_path, **load)
    lora = get_peft_config(model)
    reference = None if lora else AutoModelForCausalLM.from_pretrained(training.sft_model_path, **load)
    splits = load_dataset(script.dataset_name, name=script.dataset_config)
    evaluated = training.eval_strategy != "no"
    trainer = PPOTrainer(
        args=training,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=tokenised(splits[script.dataset_train_split], tokenizer, training.dataset_num_proc),
        eval_dataset=tokenised(splits[script.dataset_test_split], tokenizer, None) if evaluated else None,
        peft_config=lora,
    )
    trainer.train()
    trainer.save_model(training.output_dir)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.generate_completions()


if __name__ == "__main__":
    main()
