"""Several processes that train one model together, as `accelerate launch` and `torchrun` start them.

All of them do the same runs in the same order, each on its part of every batch. The first one owns the
sweep's folder, and tells the others what is to be done.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

from foretaste.errors import UserError


def count() -> int:
    """Processes that train one model; 1 where this one was started by itself."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def number() -> int:
    """Of this process among them, from 0."""
    return int(os.environ["RANK"]) if _launched() else 0


def on_this_machine() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) if _launched() else 1


def _launched() -> bool:
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def told(value: Any, *, cpu: bool) -> Any:
    """The first process's value, in each of them; all must call this.

    Args:
        value: Small; what the others give is of no account.
        cpu: The processes will train on CPUs.
    """
    if count() == 1:
        return value
    PartialState(cpu=cpu)  # joins the processes where that has not been done
    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]


def require_one(what: str) -> None:
    """Refuse to do in several processes what only one can do.

    Raises:
        UserError: Several processes were started.
    """
    if count() > 1:
        raise UserError(
            f"{what} is done by one process, and {count()} were started together",
            where="accelerate launch",
            cure="Start it without a launcher; several processes can share the runs of `foretaste measure`.",
        )


def share_of(batch: int) -> int:
    """Rows of a batch that each process trains on.

    Raises:
        UserError: They cannot be shared out evenly.
    """
    if batch % count():
        raise UserError(
            f"a batch of {batch} rows cannot be shared out evenly among {count()} processes",
            where="training.batch_size",
            cure="Start a number of processes that divides it.",
        )
    return batch // count()
