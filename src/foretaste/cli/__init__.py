"""The command line: parses, calls, prints."""

from foretaste.cli.app import main

__all__ = ["main"]
