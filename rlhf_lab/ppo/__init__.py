"""PPO for language models: the trainer TRL had until 1.12, kept up, and short enough to read in one sitting.

config.py says what can be set, roles.py holds the four models on one base, rollout.py what one batch of experience is,
trainer.py is the algorithm.
"""

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf_lab.ppo import trainer

    return getattr(trainer, name)
