"""Two updates on fixed batches of 8 episodes, shared between however many processes there are, under DeepSpeed or not.

torchrun --nproc_per_node N deepspeed_processes.py FILE STAGE [CHECKPOINT]     writes the trained weights to FILE
"""

import os
import sys

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from small import my_share, tiny, trainer
from transformers import AutoTokenizer

from rlhf_lab.profiles import DATA_DIR


def on_the_cpu():
    """What a GPU does not need: accelerate would not know how DeepSpeed is to communicate, DeepSpeed would compile."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    return {"use_cpu": False, "accelerator_config": {"use_configured_state": True}}


def two_updates(file, stage=0, checkpoint=None):
    """Stage 0 is without DeepSpeed. Returns the gradient norms that were logged; leaves checkpoint-1 in FILE.run."""
    settings = on_the_cpu() | {"deepspeed": {"zero_optimization": {"stage": stage}}} if stage else {}
    world = int(os.environ.get("WORLD_SIZE", 1))
    tokenizer = AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama")
    t = trainer(
        tokenizer, f"{file}.run", model=tiny(tokenizer, initializer_range=0.3), whiten_rewards=True,
        per_device_train_batch_size=2, gradient_accumulation_steps=4 // world, num_mini_batches=1, total_episodes=16,
        max_grad_norm=0.5, gradient_checkpointing=True, **settings,
    )  # fmt: skip
    assert t.is_deepspeed_enabled == (stage > 0)
    assert t.args.batch_size == 8 and t.accelerator.num_processes == world
    t._start(checkpoint)
    for update in range(t.state.global_step, 2):
        torch.manual_seed(update)
        batch = my_share(t)
        t._finish_step(batch, t.update(batch))
        if update == 0:
            t._save_checkpoint(t.model, trial=None)
    if t.is_world_process_zero():
        norms = torch.tensor([entry["grad_norm"] for entry in t.state.log_history])
        save_file({n: p.detach().contiguous() for n, p in t._trained().items()} | {"norms": norms}, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    two_updates(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    # The first to leave would cut the other's connection.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
