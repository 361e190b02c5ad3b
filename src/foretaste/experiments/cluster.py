"""Where runs are done: in processes of this machine, or on Ray. This file loads neither torch nor Ray."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

from foretaste.errors import UserError, unknown

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Cluster:
    """A Ray that does the work, in place of worker processes of this machine.

    Attributes:
        address: Of a running cluster that this machine is a node of, such as "auto" or "10.0.0.1:6379"; None
            starts a Ray on this machine for the time of the work. A program that is connected to a Ray
            already keeps that one.
    """

    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is started.

        Raises:
            UserError: Ray is not installed, or the address is one of Ray Client.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "Ray is not installed",
                where="--engine ray",
                cure="Install it with: pip install 'foretaste[ray]'.",
            )
        if self.address is not None and self.address.startswith("ray://"):
            raise UserError(
                f"'{self.address}' is an address of Ray Client, which is not used here",
                where="--address",
                cure="Start the command on a node of the cluster, with --address auto.",
            )


@dataclass(frozen=True)
class Demand:
    """What the runs of a sweep want of a node.

    Attributes:
        parameters: Of the largest model, which decide the memory.
        names: Model and data as the spec names them; every node must have them.
        devices: The `device` of each run's training.
    """

    parameters: int
    names: Sequence[str]
    devices: set[str]


def chosen(engine: str, address: str | None) -> Cluster | None:
    """The one place that chooses between the engines; None is this machine's processes.

    Args:
        engine: `local` or `ray`.
        address: Of a running Ray cluster; as RAY_ADDRESS says when None, which is Ray's own convention.

    Raises:
        UserError: No such engine, an address without Ray, or as `Cluster`.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES, where="--engine")
    if engine == "ray":
        return Cluster(address or os.environ.get("RAY_ADDRESS") or None)
    if address is not None:
        raise UserError(
            f"'{address}' is an address for Ray, and the engine is local",
            where="--address",
            cure="Add --engine ray.",
        )
    return None
