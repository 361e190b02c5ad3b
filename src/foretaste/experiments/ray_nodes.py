"""The nodes of a Ray: connecting, what a task asks of a node, and whether every node can do the work."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from foretaste import assets
from foretaste.errors import UserError
from foretaste.experiments.cluster import Cluster, Demand
from foretaste.experiments.engine import MAX_ATTEMPTS, WORKER_ENVIRONMENT, cores, environment
from foretaste.experiments.run import versions
from foretaste.record import write_atomic

# Ray prints messages of its processes to standard output, among what this one prints for programs to read.
# When it is imported it takes this expression for lines to leave out; what matters a listener hears from us.
# Whatever uses Ray takes it from here.
with environment({"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}):
    import ray as ray
    from ray import exceptions as exceptions
    from ray.util.scheduling_strategies import (
        NodeAffinitySchedulingStrategy as NodeAffinitySchedulingStrategy,
    )

# Bytes of the object store of a Ray that is started here; Ray allows no fewer than 75 MB.
OBJECT_STORE = 100 * 10**6
# Of a Ray that is started here: no report of its use to anybody, and workers as urgent as this process, where
# Ray would make them nice to all others.
RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
# Seconds until a file that another node has written must be seen here: network file systems look again after
# up to a minute.
VISIBLE = 60.0
# Seconds for a cluster to answer at its address.
CONNECT = 10.0


@dataclass(frozen=True)
class Share:
    """What Ray keeps free for one task: its own units are logical, it does not hold a task to them."""

    cpus: int
    gpus: int
    memory: int

    def fits(self, node: dict[str, Any]) -> int:
        """How many tasks a node takes at once."""
        has = node["Resources"]
        counts = [has.get("CPU", 0) // self.cpus, has.get("memory", 0) // self.memory]
        if self.gpus:
            counts.append(has.get("GPU", 0) // self.gpus)
        return int(min(counts))


@contextmanager
def connected(cluster: Cluster, cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray; one that the program has already is used, and left as it is.

    Args:
        cluster: Which Ray.
        cpus: That a Ray started here believes to have; this process's cores by default.

    Raises:
        UserError: There is no cluster at the address, or Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    if cluster.address is not None:
        _require_listening(cluster.address)
    # Workers of a Ray that is started here inherit the environment; those of a cluster have to be told.
    options: dict[str, Any] = {"runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    if cluster.address is None:
        options = {
            "num_cpus": cpus or cores(),
            "object_store_memory": OBJECT_STORE,
            "include_dashboard": False,
        }
    log = logging.getLogger("ray")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with environment(WORKER_ENVIRONMENT | RAY_ENVIRONMENT):
            ray.init(cluster.address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, AssertionError, exceptions.RayError) as error:
        what = "Ray does not start" if cluster.address is None else f"no Ray cluster at '{cluster.address}'"
        raise UserError(
            f"{what} ({' '.join(str(error).split())[:300]})",
            where="--engine ray" if cluster.address is None else "--address",
            cure="Start the command on a node of the cluster (`ray start` makes one), with --address auto.",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
        log.setLevel(level)


def _require_listening(address: str) -> None:
    """Ray tries for minutes to reach an address at which nobody listens.

    Raises:
        UserError: Nobody does, or the address is neither `auto` nor of the form HOST:PORT.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"'{address}' is no address", where="--address", cure="Give auto, or HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster at '{address}' ({error})",
            where="--address",
            cure="Start the command on a node of the cluster (`ray start` makes one), with --address auto.",
        ) from None


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray says of each node that is there."""
    return [node for node in cast(Any, ray).nodes() if node["Alive"]]


def share_of(demand: Demand, runs: int, processes: int | None, threads: int | None) -> Share:
    """CPUs, GPUs and memory of a run.

    Memory is counted as the local engine counts it, and no more than the largest node has: like there, one
    run is tried where none would fit. On a GPU, weights pass through the memory of the node while loading.

    Raises:
        UserError: No node is large enough, or there is no GPU for runs that need one.
    """
    nodes = alive_nodes()
    gpus = bool(demand.devices & {"auto", "cuda"}) and any(n["Resources"].get("GPU", 0) for n in nodes)
    if "cuda" in demand.devices and not gpus:
        raise UserError(
            "no node of the cluster has a GPU", where="training.device", cure="Use `auto` or `cpu`."
        )
    nodes = [n for n in nodes if not gpus or n["Resources"].get("GPU", 0)]
    cpus = [int(n["Resources"].get("CPU", 0)) for n in nodes]
    largest = max(cpus, default=0)
    if largest < (threads or 1):
        raise UserError(
            f"no node has {threads or 1} CPUs for Ray to use (the largest has {largest})",
            where="--threads",
            cure="Ask for fewer, or start a larger node.",
        )
    if threads is None:
        at_once = min(runs, processes or runs)
        fitting = [t for t in range(1, largest + 1) if sum(n // t for n in cpus) >= at_once]
        threads = max(fitting, default=1)
    memory = 0.8e9 + (8.0 if gpus else 20.0) * demand.parameters
    large = [n["Resources"] for n in nodes if n["Resources"].get("CPU", 0) >= threads]
    roomy = max(int(has.get("memory", 0)) for has in large)
    return Share(threads, int(gpus), max(1, min(int(memory), roomy)))


@contextmanager
def token_in(folder: Path) -> Iterator[Path]:
    """A file in the folder by which a node can tell that it sees this folder and not one of the same name."""
    for left in folder.glob(".ray-*"):  # by a driver that was killed: the folder is locked, there is no other
        left.unlink(missing_ok=True)
    path = folder / f".ray-{uuid4().hex}"
    write_atomic(path, path.name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def require_same(nodes: Sequence[dict[str, Any]], token: Path, names: Sequence[str], base_dir: Path) -> None:
    """Let every node look at the folder, the model, the data and its packages, before anything starts.

    Raises:
        UserError: What one of them lacks.
    """
    local = [name for name in names if name in assets.ASSETS or (base_dir / Path(name).expanduser()).exists()]
    looks = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(look).options(num_cpus=0, max_retries=MAX_ATTEMPTS - 1, scheduling_strategy=there)
        looks[task.remote(token, f"{token.name}-{node['NodeID']}", local, base_dir, versions())] = node
    for ref, node in looks.items():
        name = str(node["NodeManagerHostname"])
        try:
            problem: UserError | None = ray.get(ref)
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise UserError(
                f"this node cannot do a run ({type(cause).__name__}: {' '.join(str(cause).split())[-300:]})",
                where=f"node {name}",
                cure="Install the same foretaste there as here.",
            ) from None
        if problem is not None:
            raise problem.located(f"node {name}")
        answer = token.with_name(f"{token.name}-{node['NodeID']}")
        await_file(answer, f"what node {name} wrote")
        answer.unlink()


def look(
    token: Path, answer: str, names: Sequence[str], base_dir: Path, wanted: dict[str, str]
) -> UserError | None:
    """What is wrong with the node that this is called on, None when it can do the runs.

    Args:
        token: A file in the folder of the sweep.
        answer: Name of a file to write beside it.
        names: Models and data that must be there: assets, or paths.
        base_dir: Folder that relative paths start from.
        wanted: Versions of the packages that decide the numbers.
    """
    if not token.exists():
        return _unseen(token.parent)
    own = versions()
    other = [f"{name} {own[name]}, not {value}" for name, value in wanted.items() if own[name] != value]
    if other:
        return UserError(
            f"other versions than where the sweep was started: {'; '.join(other)}",
            cure="Install the same on every node: numbers may depend on it.",
        )
    for name in names:
        if name in assets.ASSETS:
            if not assets.is_pulled(assets.ASSETS.get(name)):
                return UserError(
                    f"the asset '{name}' is not in the cache {assets.cache_dir()}",
                    cure=f"Run `foretaste assets pull {name}` there, or share a cache (FORETASTE_CACHE).",
                )
        elif not (base_dir / Path(name).expanduser()).exists():
            return UserError(
                f"it does not see {base_dir / Path(name).expanduser()}",
                cure="Put model and data where every node sees them under the same path.",
            )
    try:
        write_atomic(token.with_name(answer), answer)
    except OSError as error:
        return UserError(f"it cannot write there: {error.strerror}", where=str(token.parent))
    return None


def _unseen(folder: Path) -> UserError:
    return UserError(
        f"it does not see the folder of the sweep, {folder}",
        cure="Choose a folder (-o) on a file system that all nodes share, under the same path.",
    )


def await_file(path: Path, what: str) -> None:
    """Wait for a file of another node to be seen here.

    Raises:
        UserError: It does not come.
    """
    end = time.monotonic() + VISIBLE
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(
                f"{what} is not seen here after {VISIBLE:.0f} s",
                where=str(path),
                cure="The folder must be the same one on all nodes.",
            )
        time.sleep(0.1)


def require_seen(token: Path) -> None:
    """Check that this node sees the folder: it may have joined after the others were looked at.

    Raises:
        UserError: It does not.
    """
    if not token.exists():
        raise _unseen(token.parent).located(f"node {socket.gethostname()}")
