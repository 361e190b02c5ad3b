"""Specs that ship with foretaste, by name."""

from __future__ import annotations

from importlib import resources

from foretaste.errors import unknown


def names() -> list[str]:
    """Every preset."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read(name: str) -> str:
    """The YAML text of a preset.

    Raises:
        UserError: There is no such preset, and no file of that name either.
    """
    if name not in names():
        raise unknown("spec file or preset", name, names())
    return (resources.files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")


def title(name: str) -> str:
    """The preset's title, from its YAML."""
    import yaml

    return str(yaml.safe_load(read(name)).get("title", ""))
