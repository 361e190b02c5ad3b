"""Every fault, so many times, as one table and a JSON record."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.faults import files, processes, runs
from benchmarks.faults.index import Index, served
from benchmarks.faults.trial import Missed, Place, Trial, prepared
from foretaste.experiments.run import versions
from foretaste.record import write_atomic

SEED = 0


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: For the command line and the record.
        title: For readers.
        inject: Does it to a trial, resumes the sweep, and compares.
    """

    name: str
    title: str
    inject: Callable[[Trial], None]


def faults(index: Index) -> list[Fault]:
    """All of them."""
    damaged = files.record_damaged
    return [
        Fault("worker", "a worker process is killed", processes.worker_killed),
        Fault("parent", "the command is killed, beside its workers", processes.parent_killed),
        Fault("process", "the command is killed, alone", processes.process_killed),
        Fault("disk", "the disk is full", runs.disk_full),
        Fault("record-bit", "one bit of a record is flipped", damaged(files.flipped)),
        Fault("record-digit", "one digit of a record is another", damaged(files.digit)),
        Fault("record-cut", "a record ends early", damaged(files.cut)),
        Fault("record-empty", "a record is empty", damaged(files.emptied)),
        Fault("predictions", "per-row predictions are damaged", files.evidence_damaged("predictions")),
        Fault("manifest", "a manifest of poisoned rows is damaged", files.evidence_damaged("manifests")),
        Fault("cache", "a half-written model in the cache", files.cache_half_written),
        Fault("network", "the network goes in the middle of a model", files.network_gone(index)),
        Fault("clock", "the clock jumps by up to ten years", processes.clock_jumped),
        Fault("two", "two sweeps on one folder", processes.two_at_once),
        Fault("memory", "one run has no memory", runs.out_of_memory),
        Fault("loss", "one arm's loss is not finite", runs.loss_not_finite),
        Fault("spec", "the spec is edited before the sweep goes on", files.spec_edited),
    ]


def try_fault(fault: Fault, place: Place, times: int, seed: int) -> dict[str, Any]:
    """One fault, so many times; a line of the table and what stands behind it."""
    trials: list[dict[str, Any]] = []
    draws = itertools.count()
    while len(trials) < times:
        number = next(draws)
        folder = place.root / "trials" / f"{fault.name}-{number}"
        trial = Trial(place, random.Random(f"{seed} {fault.name} {number}"), folder)
        began = time.monotonic()
        try:
            fault.inject(trial)
        except Missed:
            if number > 5 * times:
                break
            continue
        except Exception as error:  # noqa: BLE001 - a trial that breaks is a finding too
            trial.wrong.append(f"the trial broke: {type(error).__name__}: {error}")
        said = trial.said.replace(f"{folder}/", "").replace(f"{place.root}/", "")
        trials.append(
            {
                "lost": sorted(trial.lost),
                "wrong": [line.replace(f"{place.root}/", "") for line in trial.wrong],
                "said": said,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "fault": fault.name,
        "title": fault.title,
        "times": len(trials),
        "lost": sum(len(trial["lost"]) for trial in trials),
        "wrong": sum(bool(trial["wrong"]) for trial in trials),
        "trials": trials,
    }


def markdown(record: dict[str, Any]) -> str:
    """The table of a record, as it stands in docs/faults.md."""
    lines = [
        "| fault | times tried | runs lost | wrong results | what the user sees |",
        "|---|---|---|---|---|",
    ]
    for row in record["faults"]:
        said = row["trials"][0]["said"].replace("|", "\\|")
        lines.append(f"| {row['title']} | {row['times']} | {row['lost']} | {row['wrong']} | `{said}` |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the faults that are named, all by default; ends with code 1 where something was lost or wrong."""
    parser = argparse.ArgumentParser(prog="benchmarks faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults to try; all by default")
    parser.add_argument("--times", type=int, default=3, help="trials of each (default 3)")
    parser.add_argument("--seed", type=int, default=SEED, help="of where and when the faults strike")
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    asked = parser.parse_args(arguments)
    # Before the first fork: every session inherits them, and threads do not survive a fork.
    import torch

    import foretaste.report  # noqa: F401

    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    record: dict[str, Any] = {"versions": versions(), "seed": asked.seed, "faults": []}
    rows: list[dict[str, Any]] = record["faults"]
    console = Console()
    with tempfile.TemporaryDirectory(prefix="foretaste-faults-") as temporary:
        folder = Path(temporary)
        os.environ["FORETASTE_CACHE"] = str(folder / "cache")
        (folder / "index").mkdir()
        with served(folder / "index") as index:
            place = prepared(folder)
            known = {fault.name: fault for fault in faults(index)}
            for name in asked.names:
                if name not in known:
                    parser.error(f"unknown fault '{name}' (known: {', '.join(known)})")
            for name in asked.names or known:
                with console.status(f"{known[name].title} ..."):
                    rows.append(try_fault(known[name], place, asked.times, asked.seed))
                console.print(f"{name}: {rows[-1]['lost']} lost, {rows[-1]['wrong']} wrong")
                if asked.output:  # after each: the whole takes a while
                    write_atomic(asked.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    show(record, console)
    if any(row["lost"] or row["wrong"] for row in rows):
        raise SystemExit(1)


def show(record: dict[str, Any], console: Console) -> None:
    """The table, and every finding under it."""
    table = Table("fault", "times", "runs lost", "wrong results", "what the user sees", box=None)
    for row in record["faults"]:
        numbers = [str(row[key]) for key in ("times", "lost", "wrong")]
        table.add_row(row["title"], *numbers, escape(row["trials"][0]["said"]))
    console.print(table)
    for row in record["faults"]:
        for number, trial in enumerate(row["trials"]):
            for line in (*trial["wrong"], *(f"run {run_id} was lost" for run_id in trial["lost"])):
                console.print(f"{row['fault']}, trial {number}: {line}", markup=False)
