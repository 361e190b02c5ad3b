"""`python -m benchmarks`: every benchmark, one table, and a JSON record.

`python -m benchmarks faults` is a table of its own: what goes wrong while a sweep runs, done on purpose.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import kernel, prediction, sweep, training
from benchmarks.result import Result
from foretaste.experiments.run import versions

BENCHMARKS = {
    "training": training.run,
    "kernel": kernel.run,
    "prediction": prediction.run,
    "sweep": sweep.run,
}


def main() -> None:
    """Run the benchmarks that are named, all by default."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="all by default")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    table = Table("what", "ours", "theirs", "ratio", "target", "note", box=None)
    results: list[Result] = []
    console = Console()
    for name in arguments.names or BENCHMARKS:
        with console.status(f"Measuring {name} ..."):
            results += BENCHMARKS[name]()
    for result in results:
        target = f"≥ {result.target:.3g}" if result.target else ""
        table.add_row(result.name, result.ours, result.theirs, f"{result.ratio:.3g}", target, result.note)
    console.print(table)
    if arguments.output:
        content = {"versions": versions(), "results": [vars(result) for result in results]}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["faults"]:
        from benchmarks import faults

        faults.main(sys.argv[2:])
    else:
        main()
