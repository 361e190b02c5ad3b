"""Blocks of a kernel as tasks of Ray: one unit (a set of parameters, a pair of blocks of rows) a task.

Tiles are written into the kernel's folder, where a call that was stopped would have left them, and the driver
goes on from there as after a stop. Nothing but the spec and the unit's place in the plan goes through Ray.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from foretaste.errors import UserError
from foretaste.experiments import ray_engine, ray_nodes
from foretaste.experiments.cluster import Cluster, Demand
from foretaste.experiments.engine import DIED, MAX_ATTEMPTS
from foretaste.experiments.kernel_jobs import OnProgress, Ready, SpreadOver, job_of, place_of, prepared
from foretaste.experiments.plan import Resources
from foretaste.kernels import Job, Place, parse_bytes
from foretaste.kernels.compute import UNITS, compute
from foretaste.kernels.store import InFolder
from foretaste.spec import MeasureSpec


@contextmanager
def spreading(
    spec: MeasureSpec,
    folder: Path,
    base_dir: Path,
    cluster: Cluster,
    parameters: int,
    on_progress: OnProgress | None,
) -> Iterator[SpreadOver]:
    """What does units of the spec's kernels on the cluster, while the context lasts.

    A unit whose worker dies is done again elsewhere, three times in all.

    Args:
        spec: Data, model, adapters and the section `kernel`.
        folder: Where the kernels are written; every node must see it.
        base_dir: Folder that relative paths in the spec start from.
        cluster: Which Ray.
        parameters: Of the base model, for memory; beside it, each unit has the budget `kernel.memory`.
        on_progress: Called with what is being done and the share that is done.

    Raises:
        UserError: As `ray_engine.run`; or the worker of a unit died each time.
    """
    folder, base_dir = folder.resolve(), base_dir.expanduser().resolve()
    names = [spec.model.base, spec.data.source]
    memory = parse_bytes(spec.kernel.memory)
    demand = Demand(parameters + memory // 20, names, {spec.training.device})
    text = spec.model_dump_json()
    with ray_nodes.connected(cluster), ray_nodes.token_in(folder) as token:
        nodes = ray_nodes.alive_nodes()
        ray_nodes.require_same(nodes, token, names, base_dir)

        def spread(arm: str | None, places: Sequence[Place]) -> None:
            share = ray_nodes.share_of(demand, len(places), None, None)
            ray_nodes.require_same(
                [node for node in ray_nodes.alive_nodes() if node not in nodes], token, names, base_dir
            )
            what = arm or "base model"
            unit = ray_engine.task(do_unit, share, f"kernel of {what}", retries=MAX_ATTEMPTS - 1)
            fixed = (text, folder, base_dir, arm)
            _wait([unit.remote(*fixed, place, share.cpus, token) for place in places], what, on_progress)

        yield spread


def _wait(units: list[Any], what: str, on_progress: OnProgress | None) -> None:
    def told(done: int) -> None:
        if on_progress is not None:
            on_progress(what, done / len(units))

    try:
        ray_engine.wait_for(units, told)
    except ray_engine.LOST:
        raise UserError(
            f"a block of the kernel cannot be done: {DIED}",
            where=what,
            cure="Lower --memory; what is finished is kept.",
        ) from None


# --- inside a worker -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _ready(text: str, base_dir: Path) -> Ready:
    return prepared(MeasureSpec.model_validate_json(text), base_dir, Resources())


@functools.lru_cache(maxsize=1)
def _job(text: str, base_dir: Path, arm: str | None) -> Job:
    return job_of(MeasureSpec.model_validate_json(text).kernel, _ready(text, base_dir), arm)


def do_unit(
    text: str, folder: Path, base_dir: Path, arm: str | None, place: Place, threads: int, token: Path
) -> None:
    """Do one unit of the capture of an arm, or of the base model, and put it into its folder.

    Args:
        text: The spec as JSON.
        folder: Of the kernels.
        base_dir: Folder that relative paths in the spec start from.
        arm: Name of the adapter; None is the base model.
        place: Of the unit in the plan.
        threads: To compute with.
        token: A file that is there when this node sees the folder.

    Raises:
        UserError: This node does not see the folder; or as `kernels.compute`.
        OSError: The tiles could not be written.
    """
    ray_nodes.require_seen(token)
    torch.set_num_threads(threads)
    memory = parse_bytes(MeasureSpec.model_validate_json(text).kernel.memory)
    store = InFolder(place_of(folder, arm) / UNITS)
    compute(_job(text, base_dir, arm), store, memory=memory, only={place})
