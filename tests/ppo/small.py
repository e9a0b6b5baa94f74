"""A Llama of a few thousand parameters, and a trainer for it."""

from dataclasses import fields

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lab.ppo import PPOConfig, PPOTrainer

PROMPTS = [
    "Hey, my kettle broke.",
    "Where is my tent?",
    "I was charged twice for the oven and I am angry.",
    "Good morning, the sofa is late.",
]


def tiny(tokenizer, cls=LlamaForCausalLM, seed=0, **extra):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )
    return cls(config)


def trainer(tokenizer, folder, reward=None, model=None, **settings):
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "total_episodes": 16,
        "response_length": 8,
        "temperature": 1.0,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "max_grad_norm": 0.0,
    }
    return PPOTrainer(
        args=PPOConfig(**(arguments | settings)),
        processing_class=tokenizer,
        model=model or tiny(tokenizer),
        reward_model=reward or (lambda prompts, completions, **_: [len(c[0]["content"]) / 10 for c in completions]),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS * 2]),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def filled(t):
    """A scored batch with advantages."""
    t._start(None)
    batch = t.rollout(t._next_rows())
    t.score(batch)
    t.compute_advantages(batch)
    return batch


def my_share(t):
    """A batch of 8 episodes that is the same everywhere, of which this process is given its part, scored and all."""
    world = t.accelerator.num_processes
    batch = t.rollout([t.train_dataset[i] for i in range(8)])
    mine = slice(t.accelerator.process_index * 8 // world, (t.accelerator.process_index + 1) * 8 // world)
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, (list, torch.Tensor)):
            setattr(batch, field.name, value[mine])
    t.score(batch)
    t.compute_advantages(batch)
    return batch
