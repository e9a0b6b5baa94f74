"""LoRA from its formula: a frozen matrix W and, beside it, a trained product of two thin ones.

    y = W x + (alpha / r) B A x        W: (out, in), frozen; A: (r, in), B: (out, r), trained

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1. B starts at zero, so nothing changes at step 0. The stages train
with peft; this is what peft computes, to be read. (Not here: dropout, which peft puts on the x of B A x.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lora_forward(x: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, alpha: float) -> Tensor:  # noqa: N803
    """W x + (alpha / r) B A x; no gradient reaches W.

    Args:
        x: (..., in). weight: W, (out, in). lora_A: (r, in). lora_B: (out, r).
        alpha: the scale of the update; r is read off lora_A.

    Returns:
        (..., out). A x comes first: r numbers a token, where B A would be a matrix as large as W.
    """
    update = F.linear(F.linear(x, lora_A), lora_B)
    return F.linear(x, weight.detach()) + alpha / len(lora_A) * update


def lora_merge(weight: Tensor, lora_A: Tensor, lora_B: Tensor, alpha: float) -> Tensor:  # noqa: N803
    """The one matrix that does what W and its adapter do: W + (alpha / r) B A, (out, in). Shapes as in lora_forward."""
    return weight + alpha / len(lora_A) * lora_B @ lora_A


def lora_parameter_count(shapes: Iterable[tuple[int, int]], r: int) -> int:
    """How many numbers LoRA trains: r (in + out) for each matrix of `shapes`, which are (out, in)."""
    return sum(r * (n_out + n_in) for n_out, n_in in shapes)


class LoRALinear(nn.Module):
    """A linear layer with its adapter. The layer itself is frozen; lora_A (r, in) and lora_B (out, r) are trained.

    `rule` computes x, W, A, B, alpha -> output; the learner's own, say. A starts as nn.Linear's weights do, as in peft.
    Raises ValueError for r < 1.
    """

    def __init__(self, linear: nn.Linear, r: int, alpha: float, rule: Callable[..., Tensor] = lora_forward) -> None:
        super().__init__()
        if r < 1:
            raise ValueError(f"the rank of LoRA is at least 1, got {r}")
        self.linear, self.alpha, self.rule = linear.requires_grad_(False), alpha, rule
        like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_A = nn.Parameter(torch.empty(r, linear.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.rule(x, self.linear.weight, self.lora_A, self.lora_B, self.alpha)
        return y if self.linear.bias is None else y + self.linear.bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with the adapter folded in; it replaces this one, whose weight it takes over."""
        self.linear.weight.copy_(lora_merge(self.linear.weight, self.lora_A, self.lora_B, self.alpha))
        return self.linear


def add_lora(
    model: nn.Module, targets: Sequence[str], r: int, alpha: float, rule: Callable[..., Tensor] = lora_forward
) -> list[nn.Parameter]:
    """Freeze `model` and put a LoRALinear in place of each linear layer whose name ends in one of `targets`.

    Returns the parameters to train, A and B of each layer in turn. Raises ValueError when no layer is called so.
    """
    model.requires_grad_(False)
    found = [(name, layer) for name, layer in model.named_modules() if _is_target(name, layer, targets)]
    if not found:
        raise ValueError(f"no linear layer is called {' or '.join(targets)}")
    for name, layer in found:
        model.set_submodule(name, LoRALinear(layer, r, alpha, rule))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every LoRALinear of `model` into a plain layer, in place: as many operations as before LoRA."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear):
            model.set_submodule(name, layer.merged())
    return model


def linear_shapes(model: nn.Module, targets: Sequence[str]) -> list[tuple[int, int]]:
    """(out, in) of each linear layer whose name ends in one of `targets`; the model may be on the meta device."""
    return [(x.out_features, x.in_features) for name, x in model.named_modules() if _is_target(name, x, targets)]


def _is_target(name: str, layer: nn.Module, targets: Sequence[str]) -> bool:
    return isinstance(layer, nn.Linear) and name.rsplit(".", 1)[-1] in targets
