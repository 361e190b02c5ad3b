"""foretaste: how far poisoned training data can push a language model, predicted and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretaste.errors import UserError

if TYPE_CHECKING:
    from foretaste.api import audit, kernel, measure, poison, predict
    from foretaste.interop.table import frame
    from foretaste.report import report

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "audit", "frame", "kernel", "measure", "poison", "predict", "report"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and altair take seconds, and reporting needs no torch.
    if name in {"audit", "kernel", "measure", "poison", "predict"}:
        from foretaste import api

        return getattr(api, name)
    if name == "frame":
        from foretaste.interop.table import frame

        return frame
    if name == "report":
        import foretaste.report as package

        return package
    raise AttributeError(f"module 'foretaste' has no attribute '{name}'")
