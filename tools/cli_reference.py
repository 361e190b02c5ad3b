"""Write docs/reference/cli.md from the commands: `python tools/cli_reference.py`. A test compares."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from foretaste.cli.app import app

HEAD = """# Every command

Made from the commands by `python tools/cli_reference.py`. `foretaste COMMAND --help` prints the same.

| exit code | when |
|---|---|
| 0 | all is done |
| 1 | a run of a sweep did not complete; its record says why |
| 2 | a wrong command, spec or file: stderr says what is wrong and how to cure it; nothing was trained |
| 3 | a condition of `--fail-if` is met |
| 130 | stopped by Ctrl-C; finished runs are kept, and the same command goes on |

With `--json` stdout holds JSON alone.
"""


WORDS = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}


def commands(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group with the words that call it, in the order of `--help`."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


def cell(text: str) -> str:
    """A text inside a table."""
    return " ".join(text.split()).replace("|", "\\|")


def type_name(parameter: Any) -> str:
    """What a value must be, as a reader would say it."""
    if getattr(parameter, "is_flag", False):
        return "switch"
    annotation = parameter.type_descriptor.annotation
    several = typing.get_origin(annotation) is list
    kind = typing.get_args(annotation)[0] if several else annotation
    if typing.get_origin(kind) is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in typing.get_args(kind))
    said = WORDS.get(kind, getattr(kind, "__name__", str(kind)))
    least, most = parameter.min, parameter.max
    if least is not None and most is not None:
        said += f" from {least} to {most}"
    elif least is not None:
        said += f", at least {least}"
    elif most is not None:
        said += f", at most {most}"
    return f"{said}; may be repeated" if several and parameter.nargs == 1 else said


def default_of(parameter: Any) -> str:
    """The default where it says something."""
    if parameter.required:
        return "required"
    default = parameter.default
    if default is None or callable(default) or default == [] or default == ():
        return ""
    if isinstance(default, bool):
        if parameter.secondary_opts:
            return f"`{(parameter.opts if default else parameter.secondary_opts)[0]}`"
        return "`true`" if default else ""
    return f"`{default}`" if isinstance(default, str | int | float | Path) else ""


def argument_name(parameter: Any) -> str:
    """An argument as a usage line writes it."""
    name = str(parameter.metavar or parameter.name.upper())
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def section(words: tuple[str, ...], command: Any) -> list[str]:
    """One command."""
    called = " ".join(words)
    arguments = [p for p in command.params if p.param_type_name == "argument" and not hidden(p)]
    options = [p for p in command.params if p.param_type_name == "option" and not hidden(p)]
    usage = " ".join(["foretaste", called, *(argument_name(p) for p in arguments), "[OPTIONS]"])
    text = (command.help or "").split("\f")[0].strip()
    lines = [f"## {called}", "", text, "", "```text", usage, "```", ""]
    if arguments:
        lines += ["| argument | value | meaning |", "|---|---|---|"]
        lines += [f"| `{argument_name(p)}` | {type_name(p)} | {cell(p.help or '')} |" for p in arguments]
        lines.append("")
    if options:
        lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
        for p in options:
            names = ", ".join(f"`{name}`" for name in (*p.opts, *p.secondary_opts))
            lines.append(f"| {names} | {type_name(p)} | {default_of(p)} | {cell(meaning(p))} |")
        lines.append("")
    example = re.search(r"Example: `([^`]+)`", " ".join((command.epilog or "").split()))
    if example:
        lines += ["```sh", example.group(1), "```", ""]
    return lines


def hidden(parameter: Any) -> bool:
    """Whether `--help` leaves it out, or it is `--help`."""
    return bool(getattr(parameter, "hidden", False)) or parameter.name == "help"


def meaning(parameter: Any) -> str:
    """Help, with the environment variable that gives the value, too."""
    text = parameter.help or ""
    variable = parameter.envvar if isinstance(parameter.envvar, str) else None
    return f"{text} Also from the environment: `{variable}`." if variable else text


def render() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    found = list(commands(group))
    lines = [HEAD, "| command | what it does |", "|---|---|"]
    for words, command in found:
        called = " ".join(words)
        first = (command.help or "").split("\n\n")[0]
        lines.append(f"| [`{called}`](#{'-'.join(words)}) | {cell(first)} |")
    lines.append("")
    for words, command in found:
        lines += section(words, command)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(render(), encoding="utf-8")
