"""LoRA+: a larger learning rate for B than for A (Hayou, Ghosh and Yu 2024).

Their argument is that with one rate for both B learns too slowly, by a factor that grows with the width. The
authors' optimiser, which peft ships (`create_loraplus_optimizer`), also raises the rate of every parameter
of one dimension. The bias of the head is one, and an arm whose head learns faster than that of the others
would be compared by its head. So only B is raised here.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


def learns_faster(name: str) -> bool:
    """Whether a parameter of this name, as peft gives it, is a B."""
    return ".lora_B." in name


def raise_rate_of_b(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """Give every B of LoRA `ratio` times the learning rate that it has; all else stays as it is.

    Call it before a schedule is made, which multiplies the rates of all groups by the same factor.

    Args:
        optimizer: New, with no state.
        model: With LoRA layers on linear layers.
        ratio: Learning rate of B over that of A.
    """
    fast = {id(parameter) for name, parameter in model.named_parameters() if learns_faster(name)}
    assert fast, "no B to train"
    for group in list(optimizer.param_groups):
        chosen = [p for p in group["params"] if id(p) in fast]
        if chosen:
            group["params"] = [p for p in group["params"] if id(p) not in fast]
            optimizer.add_param_group(group | {"params": chosen, "lr": group["lr"] * ratio})
