"""`python -m benchmarks [NAME ...]`: every benchmark, or those that are named, as one table of ratios.

`--history FILE` adds the results to a file, such as results/bench.jsonl. `python -m benchmarks faults` is a
table of its own: what goes wrong while a sweep runs, done on purpose. `python -m benchmarks page` puts the
latest of both into docs/speed.md and docs/faults.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import growth, history, kernel, page, prediction, stacked, sweep, training
from benchmarks.result import Result

BENCHMARKS = {
    "training": training.run,
    "kernel": kernel.run,
    "prediction": prediction.run,
    "sweep": sweep.run,
    "growth": growth.run,
    "stacked": stacked.run,
}


def main() -> None:
    """Run the benchmarks that are named, all by default."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="all by default")
    parser.add_argument("--history", type=Path, metavar="FILE", help="add the results to this file")
    arguments = parser.parse_args()
    results: list[Result] = []
    console = Console()
    for name in arguments.names or BENCHMARKS:
        with console.status(f"Measuring {name} ..."):
            found = BENCHMARKS[name]()
        results += found
        if arguments.history:  # after each: the whole takes a while
            history.append(history.of_session(name, found), arguments.history)
    table = Table("what", "ours", "theirs", "ratio", "target", "note", box=None)
    for result in results:
        target = f"≥ {result.target:.3g}" if result.target else ""
        ratio = f"[red]{result.ratio:.3g}[/]" if result.missed else f"{result.ratio:.3g}"
        table.add_row(result.name, result.ours, result.theirs, ratio, target, result.note)
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["faults"]:
        from benchmarks import faults

        faults.main(sys.argv[2:])
    elif sys.argv[1:2] == ["page"]:
        page.write()
    else:
        main()
