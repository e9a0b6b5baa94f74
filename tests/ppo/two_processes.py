"""One update on a fixed batch of 8 episodes, shared between however many processes there are.

torchrun --nproc_per_node N two_processes.py FILE     writes the trained weights to FILE
"""

import sys

import torch
from safetensors.torch import save_file
from small import my_share, tiny, trainer
from transformers import AutoTokenizer

from rlhf_lab.profiles import DATA_DIR


def main():
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama")
    world = int(__import__("os").environ.get("WORLD_SIZE", 1))
    t = trainer(
        tokenizer, sys.argv[1] + ".run", model=tiny(tokenizer, initializer_range=0.3), whiten_rewards=True,
        per_device_train_batch_size=2, gradient_accumulation_steps=4 // world, num_mini_batches=1, total_episodes=8,
        max_grad_norm=0.5,
    )  # fmt: skip
    assert t.args.batch_size == 8 and t.accelerator.num_processes == world
    t._start(None)
    torch.manual_seed(0)
    batch = my_share(t)
    stats = t.update(batch)
    t._finish_step(batch, stats)
    if t.is_world_process_zero():
        save_file({n: p.detach().contiguous() for n, p in t._trained().items()}, sys.argv[1])
    # The first to leave would cut the other's connection.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
