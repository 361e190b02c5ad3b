"""Where commands speak: results on the standard output, all else on the standard error."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

out = Console()
err = Console(stderr=True)


def print_json(value: Any) -> None:
    """Print a value for a program to read."""
    print(json.dumps(value, ensure_ascii=False, indent=1))  # noqa: T201 - for programs, unstyled
