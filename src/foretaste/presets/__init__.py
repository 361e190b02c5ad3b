"""Specs that ship with foretaste, by name: plain ones here, those of the papers' figures in `reproduce/`."""

from __future__ import annotations

from importlib import resources

from foretaste.calibration.places import natural
from foretaste.errors import UserError, nearest, unknown

FIGURES = "reproduce"
"""Folder of the papers' figures and tables, and the command that takes their names."""


def names() -> list[str]:
    """Every plain spec."""
    return files("")


def read(name: str) -> str:
    """The YAML text of a plain spec.

    Raises:
        UserError: There is no such preset, and no file of that name either; or it is a figure of a paper.
    """
    if name in names():
        return text(name)
    figures = files(FIGURES)
    if name in figures:
        raise UserError(
            f"'{name}' is a figure or table to reproduce, not a spec", cure=f"Run: foretaste {FIGURES} {name}"
        )
    error = unknown("spec file or preset", name, names())
    guess = nearest(name, figures)
    if error.cure is None and guess is not None:
        error.cure = f"For '{guess}', a figure or table, run: foretaste {FIGURES} {guess}"
    raise error


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
