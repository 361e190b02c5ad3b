"""Whether the device that a spec asks for is here, said before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from foretaste.errors import UserError
from foretaste.instruct.spec import InstructSpec
from foretaste.spec import MeasureSpec

_IS_HERE: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": lambda: bool(torch.backends.mps.is_available()),
}


def asked(spec: MeasureSpec | InstructSpec) -> dict[str, object]:
    """Device of every arm by the key that says so; an arm's own `training` goes before the spec's."""
    found: dict[str, object] = {}
    for index, adapter in enumerate(spec.adapters):
        if "device" in adapter.training:
            found[f"adapters.{index}.training.device"] = adapter.training["device"]
        else:
            found["training.device"] = spec.training.device
    return found


def refuse_absent(asked: Mapping[str, object]) -> None:
    """Refuse a device that this machine does not have. What a cluster does is not for its driver to check.

    Args:
        asked: Devices by the key of the spec; what is no device at all is left to the spec's own check.

    Raises:
        UserError: torch finds no such device here.
    """
    for key, device in asked.items():
        if isinstance(device, str) and device in _IS_HERE and not _IS_HERE[device]():
            raise UserError(
                f"the device is '{device}', and torch finds none here",
                where=key,
                cure="Leave the key out: `auto` takes a GPU where there is one. Or install the torch that "
                "fits your GPU.",
            )
