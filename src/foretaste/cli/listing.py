"""What `foretaste list` shows: every registry, a line an entry."""

from __future__ import annotations

from collections.abc import Callable

from foretaste.errors import unknown
from foretaste.registry import summary


def _attacks() -> list[tuple[str, str]]:
    from foretaste.attacks import ATTACKS

    return [(name, f"{summary(kind)} [{kind.source}]") for name, kind in ATTACKS.items()]


def _adapters() -> list[tuple[str, str]]:
    from foretaste.models import adapters

    texts = {
        adapters.FULL: "every parameter is trained",
        "rslora": "LoRA scaled by alpha / sqrt r (Kalajdzievski 2023)",
        "dora": "LoRA on magnitude and direction (Liu et al. 2024)",
        "pissa": "LoRA from the principal singular vectors (Meng et al. 2024)",
        "olora": "LoRA from a QR decomposition (Buyukakyuz 2024)",
    }
    return [
        (name, texts.get(name) or f"peft's {adapters.config_class(name).__name__}")
        for name in adapters.methods()
    ]


def _inits() -> list[tuple[str, str]]:
    from foretaste.models.inits import INITS

    return [(name, summary(law)) for name, law in INITS.items()]


def _sources() -> list[tuple[str, str]]:
    from foretaste.data import SOURCES

    return [(name, summary(source)) for name, source in SOURCES.items()]


def _indicators() -> list[tuple[str, str]]:
    from foretaste.indicators import INDICATORS

    return [(name, f"{member.description}. Larger: {member.larger}") for name, member in INDICATORS.items()]


def _figures() -> list[tuple[str, str]]:
    from foretaste.report.figures import FIGURES

    return [(name, figure.caption) for name, figure in FIGURES.items()]


def _presets() -> list[tuple[str, str]]:
    from foretaste import presets

    return [(name, presets.title(name)) for name in presets.names()]


def _assets() -> list[tuple[str, str]]:
    from foretaste.assets import ASSETS

    return [(name, asset.description) for name, asset in ASSETS.items()]


LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "attacks": _attacks,
    "adapters": _adapters,
    "inits": _inits,
    "sources": _sources,
    "indicators": _indicators,
    "figures": _figures,
    "presets": _presets,
    "assets": _assets,
}


def rows_of(what: str) -> list[tuple[str, str]]:
    """Name and one-line description of every entry of a list.

    Raises:
        UserError: There is no such list.
    """
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    return LISTS[what]()
