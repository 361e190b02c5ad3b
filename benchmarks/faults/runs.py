"""Faults of single runs: no memory, a loss that is not finite, a disk that is full."""

from __future__ import annotations

import errno
import os
from typing import Any

from benchmarks.faults.trial import Trial, numbers
from foretaste import record as records
from foretaste.record import Layout
from foretaste.training import trainer

WRITES = 10  # files that the sweep writes: its spec, four records, four predictions, and the manifest


def disk_full(trial: Trial) -> None:
    """From some file on, none can be written."""
    at = trial.rng.randint(1, WRITES - 1)

    def inject() -> None:
        real, count = os.fsync, [0]

        def fsync(handle: int) -> None:
            count[0] += 1
            if count[0] >= at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        records.os.fsync = fsync  # type: ignore[attr-defined]

    session = trial.measure(inject=inject).wait()
    trial.said = session.first
    if session.code != 2:
        trial.wrong.append(f"with a full disk the sweep ended with code {session.code}")
    if left := list(trial.sweep.rglob("*.part")):
        trial.wrong.append(f"{len(left)} half-written files stayed")
    trial.resumed()


def out_of_memory(trial: Trial) -> None:
    """One run asks for more memory than there is; the others are none of its business."""
    number = trial.rng.randrange(4)
    own_error = trial.rng.random() < 0.5

    def inject() -> None:
        import torch

        real, count = trainer.fine_tune, [-1]

        def fine_tune(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == number and own_error:
                raise MemoryError
            if count[0] == number:
                torch.empty(2**50)  # what torch says of 4 PiB
            return real(*arguments, **options)

        trainer.fine_tune = fine_tune

    session = trial.measure(inject=inject).wait()
    trial.said = session.line("error")
    statuses = sorted(record.status for record in trial.records())
    if session.code != 1 or statuses != ["completed"] * 3 + ["error"]:
        trial.wrong.append(f"the sweep ended with code {session.code} and runs that are {statuses}")
    failed = [record for record in trial.records() if record.status == "error"]
    trial.reported(*(word for record in failed for word in ("error", _shown(record.reason))))
    trial.resumed()


def _shown(reason: str | None) -> str:
    """The beginning of a reason, as it stands on a page."""
    return (reason or "").split(":")[0]


def loss_not_finite(trial: Trial) -> None:
    """One arm of the sweep diverges, by a learning rate of 1e38; such a run is a result, and is shown."""
    wild = {"method": "full", "name": "wild", "training": {"learning_rate": 1e38, "max_grad_norm": None}}
    adapters = [{"method": "full"}, {"method": "lora", "r": 2}]
    adapters.insert(trial.rng.randrange(3), wild)
    path = trial.place.edited(trial.folder / "wild", adapters=adapters)
    session = trial.measure(spec=path).wait()
    trial.said = session.line("diverged")
    trial.compare()
    again = trial.measure(spec=path).wait()
    if (session.code, again.code) != (1, 1):
        trial.wrong.append(f"the sweep ended with codes {session.code} and {again.code}")
    statuses = sorted(record.status for record in Layout(trial.sweep).read()[0])
    if statuses != ["completed"] * 4 + ["diverged"] * 2:
        trial.wrong.append(f"the runs are {statuses}")
    trial.look()
    if numbers(trial.sweep) != trial.place.expected:
        trial.wrong.append("a run that diverged has numbers")
    trial.reported("diverged", "wild")
