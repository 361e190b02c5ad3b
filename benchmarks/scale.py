"""Time and peak memory of one exact kernel, as rows and model grow: `python -m benchmarks.scale`.

Every point is a process of its own, so that its peak resident memory is its own; the memory of the loaded
model is measured before the kernel starts and shown apart. Rows have exactly 32 tokens, outputs are margins.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import kernel
from foretaste.experiments.run import versions
from foretaste.kernels import Gram, Job, kernels, margin, parse_bytes, trainable

POINTS = [("minilm-l6", rows) for rows in (64, 128, 256, 512, 1024)] + [("smollm2-135m", 64)]
MEMORY = "4GiB"


def measure(base: str, rows: int) -> dict[str, Any]:
    """One kernel in this process: seconds, and memory in MiB."""
    torch.manual_seed(0)  # the head alone is random
    model, inputs = kernel.subject(rows, base)
    before = _peak()
    began = time.perf_counter()
    _, done = kernels(
        Job(model, trainable(model), margin, inputs, rows, [Gram()]), memory=parse_bytes(MEMORY)
    )
    return {
        "model": base,
        "rows": rows,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - began,
        "model_mib": before,
        "kernel_mib": _peak() - before,
        "budget": MEMORY,
        "sets": len(done.plan.sets),
        "blocks": len(done.plan.train),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every point, print a table with the fitted exponent, and write a record."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--point", nargs=2, metavar=("MODEL", "ROWS"), help="one point, as JSON")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.point[0], int(arguments.point[1]))))
        return
    found = []
    for base, rows in POINTS:
        command = [sys.executable, "-m", "benchmarks.scale", "--point", base, str(rows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    small = [point for point in found if point["model"] == "minilm-l6"]
    logs = [np.log([point[key] for point in small]) for key in ("rows", "seconds", "kernel_mib")]
    exponents = {
        "seconds": float(np.polyfit(logs[0][-3:], logs[1][-3:], 1)[0]),
        "kernel_mib": float(np.polyfit(logs[0], logs[2], 1)[0]),
    }
    table = Table("model", "rows", "seconds", "MiB beside the model", "sets", "blocks", box=None)
    for point in found:
        table.add_row(
            point["model"],
            *(str(round(point[key], 1)) for key in ("rows", "seconds", "kernel_mib", "sets", "blocks")),
        )
    console = Console()
    console.print(table)
    console.print(f"seconds grow as rows^{exponents['seconds']:.2f} over the last three points")
    if arguments.output:
        content = {"versions": versions(), "points": found, "exponents": exponents}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
