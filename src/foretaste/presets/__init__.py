"""Specs that ship with foretaste, by name: plain ones here, those of the papers' figures in `reproduce/`."""

from __future__ import annotations

from importlib import resources

from foretaste.calibration.places import natural
from foretaste.errors import unknown


def names() -> list[str]:
    """Every plain spec."""
    return files("")


def read(name: str) -> str:
    """The YAML text of a plain spec.

    Raises:
        UserError: There is no such preset, and no file of that name either.
    """
    if name not in names():
        raise unknown("spec file or preset", name, names())
    return text(name)


def title(name: str) -> str:
    """The preset's title, from its YAML; `name` may be a path such as reproduce/ttr-fig1."""
    import yaml

    return str(yaml.safe_load(text(name)).get("title", ""))


def files(folder: str) -> list[str]:
    """Names of the YAML files in a folder below this package, sorted: fig2 before fig10."""
    entries = resources.files(__package__).joinpath(folder).iterdir()
    return sorted(
        (file.name.removesuffix(".yaml") for file in entries if file.name.endswith(".yaml")), key=natural
    )


def text(path: str) -> str:
    """The YAML text at a path below this package, without ending."""
    return (resources.files(__package__) / f"{path}.yaml").read_text(encoding="utf-8")
