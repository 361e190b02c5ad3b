"""SignGD: descent by the signs of the gradient (Malladi et al. 2023, Definition 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim import Optimizer

from foretaste.errors import UserError


class SignGD(Optimizer):
    """p <- p - lr sign(gradient of p), the limit of Adam for beta1 = beta2 = epsilon = 0.

    Every entry with a gradient moves by the learning rate, whatever the gradient's size, so clipping its norm
    changes nothing. An entry whose gradient is exactly zero stays, as the row of a token that does not occur;
    one whose gradient is zero but for rounding (a key bias, to which attention is blind) moves. There is no
    weight decay and no state.

    Args:
        params: Parameters, or groups of them, as every optimiser of torch takes.
        lr: Learning rate, above zero; no default, since none suits all models.

    Raises:
        UserError: The learning rate is not a number above zero, or a group asks for weight decay.
    """

    def __init__(self, params: Iterable[torch.Tensor] | Iterable[dict[str, Any]], lr: float) -> None:
        if not math.isfinite(lr) or lr <= 0:
            raise UserError(f"the learning rate is {lr!r}: expected a number above zero", where="lr")
        super().__init__(params, {"lr": lr})
        if any(group.get("weight_decay") for group in self.param_groups):
            raise UserError("SignGD has no weight decay", where="weight_decay", cure="Set it to 0.")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            What the closure gives.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad.sign(), alpha=-group["lr"])
        return loss
