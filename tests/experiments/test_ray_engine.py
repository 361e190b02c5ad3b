"""Runs as tasks of Ray: the same tables as from the local engine, whatever dies on the way.

One Ray with two CPUs serves the whole file. Its workers are processes of this machine, so they can be killed.
Each of them takes seconds to start, so each test stands for several.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

from foretaste.errors import UserError
from foretaste.experiments import cluster as clusters
from foretaste.experiments import engine, kernel_jobs
from foretaste.experiments import instruct as instruct_experiment
from foretaste.experiments import kernel as kernel_experiment
from foretaste.experiments import measure as experiment
from foretaste.experiments import run as run_module
from foretaste.experiments.plan import Resources, plan
from foretaste.experiments.prepare import Workspace
from foretaste.instruct.record import InstructLayout
from foretaste.instruct.spec import InstructSpec
from foretaste.kernels import compute as compute_module
from foretaste.record import Layout, Record
from foretaste.spec import MeasureSpec

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'foretaste[ray]'")

from foretaste.experiments import ray_engine, ray_nodes  # noqa: E402 - needs Ray

NOWHERE = Path("/nonexistent")
# Ray leaves pipes and sockets of its own processes to the garbage collector, and warns of its own plans.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a Ray on this machine with two CPUs; this process is connected to it, too."""
    with ray_nodes.connected(clusters.Cluster(), cpus=2):
        yield ray.get_runtime_context().gcs_address


def sweep_of(spec: Any) -> MeasureSpec:
    """Six runs, each of a second or two, so that there is time to kill something in the middle."""
    return spec(
        adapters=[{"method": "full"}, {"method": "lora", "r": 2}, {"method": "lora", "r": 4}],
        training={"steps": 150, "batch_size": 8},
        seeds=[0],
    )


def on_ray(sweep: MeasureSpec, folder: Path, **options: Any) -> Any:
    fixed = {"base_dir": NOWHERE, "threads": 1, "cluster": clusters.Cluster()}
    return experiment.measure(sweep, folder, **fixed | options)


@pytest.fixture(scope="module")
def alone(spec: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same sweep in one process."""
    return run(sweep_of(spec), tmp_path_factory.mktemp("alone") / "sweep")


def numbers(record: Record, folder: Path) -> Any:
    """Everything of a record that may not depend on where and when it ran, and the predictions."""
    kept = record.model_dump(
        exclude={
            "started": True,
            "timings": True,
            "machine": True,
            "attempts": True,
            "commit": True,
            "dirty": True,
            "training": {"rows_per_second"},
        }
    )
    return kept, pd.read_parquet(folder / str(record.predictions)).to_dict("list")


def tables(folder: Path, leave_out: str = "") -> dict[str, Any]:
    records, problems = Layout(folder).read()
    assert problems == []
    return {r.run_id: numbers(r, folder) for r in records if r.run_id != leave_out}


def workers_at(run_id: str) -> list[psutil.Process]:
    """The worker that does a run: Ray writes the name of the task where the command line was."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] == [f"ray::foretaste {run_id}"]:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return found


class Killer(threading.Thread):
    """Kills the workers that do certain runs, each so many times."""

    def __init__(self, times: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.left = dict(times)
        self.killed: list[tuple[str, int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        seen: set[int] = set()
        while not self.over.wait(0.1):
            for run_id, left in self.left.items():
                for process in workers_at(run_id) if left > 0 else []:
                    if process.pid not in seen and self.left[run_id] > 0:
                        seen.add(process.pid)
                        self.left[run_id] -= 1
                        os.kill(process.pid, signal.SIGKILL)
                        self.killed.append((run_id, process.pid))

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def test_killed_workers_change_no_number(
    address: str, spec: Any, watch: Any, alone: Any, tmp_path: Path, files_in: Callable[[Path], set[str]]
) -> None:
    """One run loses its worker whenever it starts and ends as crashed; one loses it once and is redone."""
    sweep = sweep_of(spec)
    runs = plan(sweep, NOWHERE).runs
    deadly, victim = runs[1].id, runs[2].id
    with Killer({deadly: 99, victim: 1}) as killer:
        done = on_ray(sweep, tmp_path / "sweep", watcher=watch)

    by_id = {record.run_id: record for record in done.records}
    assert len({pid for _, pid in killer.killed}) == len(killer.killed) == 1 + engine.MAX_ATTEMPTS
    assert {i: r.status for i, r in by_id.items()} == {r.id: "completed" for r in runs} | {deadly: "crashed"}
    assert by_id[deadly].reason == engine.DIED
    assert {i: r.attempts for i, r in by_id.items()} == {r.id: 1 for r in runs} | {deadly: 3, victim: 2}
    assert sorted(watch.retries) == sorted([(deadly, 2), (deadly, 3), (victim, 2)])
    assert sorted(watch.finished_runs) == sorted(r.id for r in runs)
    assert tables(done.folder, deadly) == {
        i: numbers for i, numbers in tables(alone.folder).items() if i != deadly
    }
    assert not [name for name in files_in(done.folder) if ".ray-" in name]

    # The crashed run is all that the same call does again, and then the tables are whole.
    again = type(watch)()
    done = on_ray(sweep, done.folder, watcher=again)
    assert again.started_runs == again.finished_runs == [deadly]
    assert tables(done.folder) == tables(alone.folder)


def test_resources_progress_and_size_of_a_task(address: str, spec: Any, watch: Any, tmp_path: Path) -> None:
    sweep = sweep_of(spec).model_copy(update={"attacks": []})
    most = [0]

    def count(_: Any) -> None:
        most[0] = max(most[0], len(watch.started_runs) - len(watch.finished_runs))

    watch.on_started = count
    done = on_ray(sweep, tmp_path / "sweep", watcher=watch, processes=1)
    assert (watch.allocation.processes, watch.allocation.threads) == (1, 1)
    assert "1 node of Ray" in watch.allocation.reason
    assert most == [1]
    assert {(r.machine.processes, r.machine.threads) for r in done.records} == {(1, 1)}
    last = {run_id: (done, total) for run_id, done, total in watch.steps}
    assert last == {r.run_id: (150, 150) for r in done.records}


def test_what_goes_through_ray_is_small(spec: Any, tmp_path: Path) -> None:
    """A task's arguments fit into its message: Ray takes up to 100 kB there, and the store for more."""
    sweep = sweep_of(spec)
    run = plan(sweep, NOWHERE).runs[-1]
    request = sweep.model_dump(mode="json", exclude_unset=True)
    space = Workspace(tmp_path, tmp_path, sweep.name, request)
    sent = pickle.dumps((run, space, 1, 1, engine.MEASURING, tmp_path / ".ray-token"))
    assert len(sent) < 10_000


# --- drivers in processes of their own -----------------------------------------------------------


def command(content: dict[str, Any], folder: Path, address: str) -> list[str]:
    file = folder.parent / "spec.yaml"
    file.write_text(yaml.safe_dump(content))
    program = [sys.executable, "-m", "foretaste", "measure", str(file), "-o", str(folder), "--json"]
    return [*program, "--engine", "ray", "--address", address, "--threads", "1"]


def wait_for(happened: Callable[[], Any], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_driver_that_is_killed_or_stopped_goes_on(
    address: str, spec: Any, alone: Any, tmp_path: Path
) -> None:
    """The first driver is killed in the middle, the second stopped by Ctrl-C, the third does what is left."""
    sweep, folder = sweep_of(spec), tmp_path / "sweep"
    content = sweep.model_dump(mode="json", exclude_unset=True)
    records = Layout(folder).runs

    with subprocess.Popen(command(content, folder, address), stdout=subprocess.DEVNULL) as driver:
        wait_for(lambda: list(records.glob("*.json")))
        driver.kill()
    kept = {path: path.read_bytes() for path in records.glob("*.json")}
    assert 1 <= len(kept) < 6

    with subprocess.Popen(
        command(content, folder, address), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as driver:
        wait_for(lambda: len(list(records.glob("*.json"))) > len(kept))
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=300)
    assert driver.returncode == 130
    assert "Finished runs are kept" in said
    assert "Traceback" not in said
    # What was under way when Ctrl-C came has a record, too: nobody does it again.
    after = {path: path.read_bytes() for path in records.glob("*.json")}
    assert len(kept) < len(after) < 6
    assert {path: after[path] for path in kept} == kept

    # What Ray says of a dead worker does not get among what a program reads.
    left = [run.id for run in plan(sweep, NOWHERE).runs if Layout(folder).record(run.id) not in after]
    with Killer({left[0]: 1}) as killer:
        done = subprocess.run(command(content, folder, address), capture_output=True, text=True, check=True)
    assert len(killer.killed) == 1
    assert json.loads(done.stdout) == {"folder": str(folder), "statuses": {"completed": 6}}
    assert "raylet" not in done.stderr
    attempts = {record.run_id: record.attempts for record in Layout(folder).read()[0]}
    assert attempts == {run.id: 1 for run in plan(sweep, NOWHERE).runs} | {left[0]: 2}
    assert tables(folder) == tables(alone.folder)


@pytest.mark.slow
def test_a_folder_that_the_nodes_do_not_see(address: str, content: Any, tmp_path: Path) -> None:
    """The driver sees a file system of its own where the workers see an empty folder."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    alone = ["unshare", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs none "{hidden}"'
    try:
        subprocess.run([*alone, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    words = command(content(), tmp_path / "x", address)
    words[words.index("-o") + 1] = str(hidden / "sweep")
    done = subprocess.run(
        [*alone, f'{mount} && exec "$@"', "sh", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    line = " ".join(done.stderr.split())
    assert f"does not see the folder of the sweep, {hidden / 'sweep'}" in line
    assert "Choose a folder (-o) on a file system that all nodes share" in line
    assert "Traceback" not in done.stderr
    assert list(hidden.iterdir()) == []


# --- what a node must have -----------------------------------------------------------------------


def test_a_node_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of the check that runs on each node, called here."""
    token = tmp_path / ".ray-token"
    own = run_module.versions()

    def problem(**changes: Any) -> str:
        asked = {"token": token, "answer": "answer", "names": [], "base_dir": tmp_path, "wanted": own}
        return str(ray_nodes.look(**asked | changes))

    assert "does not see the folder of the sweep" in problem()
    token.write_text("")
    assert problem() == "None"
    assert (tmp_path / "answer").read_text() == "answer"
    assert f"torch {own['torch']}, not 0.1" in problem(wanted=own | {"torch": "0.1"})
    assert f"does not see {tmp_path / 'data'}" in problem(names=["data"])
    (tmp_path / "data").mkdir()
    assert problem(names=["data"]) == "None"
    monkeypatch.setenv("FORETASTE_CACHE", str(tmp_path / "empty"))
    assert "foretaste assets pull minilm-l6" in problem(names=["minilm-l6"])


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"memory": 64e9, **resources}}


@pytest.mark.parametrize(
    ("nodes", "runs", "asked", "devices", "expected"),
    [
        ([node(CPU=2)], 100, {}, {"cpu"}, (1, 0, 2)),
        ([node(CPU=8), node(CPU=4)], 100, {}, {"auto"}, (1, 0, 12)),
        ([node(CPU=8), node(CPU=4)], 3, {}, {"auto"}, (4, 0, 3)),
        ([node(CPU=8), node(CPU=4)], 1, {}, {"auto"}, (8, 0, 1)),
        ([node(CPU=8), node(CPU=4)], 100, {"processes": 2}, {"auto"}, (4, 0, 3)),
        ([node(CPU=8), node(CPU=4)], 100, {"threads": 3}, {"cpu"}, (3, 0, 3)),
        ([node(CPU=8, GPU=2), node(CPU=64)], 100, {}, {"auto"}, (1, 1, 2)),
        ([node(CPU=8, GPU=2), node(CPU=64, memory=640e9)], 100, {}, {"cpu"}, (1, 0, 72)),
        ([node(CPU=8, memory=3e9)], 100, {}, {"cpu"}, (1, 0, 2)),
        ([node(CPU=8, memory=1e9)], 100, {}, {"cpu"}, (1, 0, 1)),
        ([node(), node(CPU=2)], 100, {}, {"cpu"}, (1, 0, 2)),
    ],
)
def test_the_share_of_a_run(
    nodes: list[dict[str, Any]],
    runs: int,
    asked: dict[str, int],
    devices: set[str],
    expected: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CPUs and GPUs of a run, and how many the nodes take at once."""
    monkeypatch.setattr(ray_nodes, "alive_nodes", lambda: nodes)
    demand = clusters.Demand(22_700_000, [], devices)  # 0.8 GB and 20 bytes for a parameter: 1.25 GB
    share = ray_nodes.share_of(demand, runs, asked.get("processes"), asked.get("threads"))
    assert (share.cpus, share.gpus, sum(share.fits(n) for n in nodes)) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "devices", "message"),
    [
        ([node(CPU=8)], {}, {"cuda"}, "no node of the cluster has a GPU"),
        ([node(CPU=8)], {"threads": 9}, {"cpu"}, r"no node has 9 CPUs .* \(the largest has 8\)"),
        ([node()], {}, {"cpu"}, r"no node has 1 CPUs .* \(the largest has 0\)"),
    ],
)
def test_no_node_is_large_enough(
    nodes: list[dict[str, Any]],
    asked: dict[str, int],
    devices: set[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_nodes, "alive_nodes", lambda: nodes)
    with pytest.raises(UserError, match=message):
        ray_nodes.share_of(clusters.Demand(1, [], devices), 1, None, asked.get("threads"))


def test_a_model_in_memory_is_refused(spec: Any, tmp_path: Path) -> None:
    runs = plan(spec(), NOWHERE).runs
    space = Workspace(tmp_path, tmp_path, "", {}, Resources(data=object()))  # type: ignore[arg-type]
    demand = clusters.Demand(1, [], {"cpu"})
    with pytest.raises(UserError, match="in memory cannot be sent"):
        ray_engine.run(runs, space, experiment.Watcher(), clusters.Cluster(), demand)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster at '127.0.0.1:1'.*ray start"),
        ("127.0.0.1:99999", "no Ray cluster at '127.0.0.1:99999'"),
        ("somewhere", "'somewhere' is no address.*HOST:PORT"),
    ],
)
def test_no_cluster_at_the_address(where: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known at once: Ray itself would try for minutes."""
    monkeypatch.setattr(ray_nodes.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=message), ray_nodes.connected(clusters.Cluster(where)):
        pass


# --- kernels -------------------------------------------------------------------------------------


def budget_for_units(asked: MeasureSpec, arms: list[str | None]) -> int:
    """The largest budget under which the capture of each arm is cut into more than three units."""
    ready = kernel_jobs.prepared(asked, NOWHERE, Resources())
    jobs = [kernel_jobs.job_of(asked.kernel, ready, arm) for arm in arms]
    probes = [compute_module.probe(job.model, job.parameters, job.outputs, job.inputs) for job in jobs]

    def units(memory: int) -> float:
        try:
            plans = [compute_module.plan(job, found, memory) for job, found in zip(jobs, probes, strict=True)]
        except UserError:
            return math.inf
        return min(len(list(it.places())) for it in plans)

    low, high = 0, 2**31
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if units(middle) > 3 else (low, middle)
    return low


@pytest.mark.slow
def test_units_of_a_kernel(address: str, spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit of two captures is done by the workers, one of which is killed; not a bit differs."""
    small = {"train_rows": 14, "test_rows": 5, "ranks": [1, 2]}
    arms = [{"method": "full"}, {"method": "lora", "r": 2}, {"method": "dora", "r": 2, "name": "dora"}]
    asked = spec(adapters=arms, kernel=small)
    memory = str(budget_for_units(asked, [None, "dora"]))
    asked = asked.model_copy(update={"kernel": asked.kernel.model_copy(update={"memory": memory})})
    here = kernel_experiment.kernel(asked, tmp_path / "here", base_dir=NOWHERE)

    told: list[tuple[str, float]] = []
    done: list[Any] = []
    real = compute_module.compute
    monkeypatch.setattr(compute_module, "compute", lambda *a, **k: done.append(real(*a, **k)) or done[-1])
    with Killer({"kernel of dora": 1}) as killer:
        there = kernel_experiment.kernel(
            asked,
            tmp_path / "there",
            base_dir=NOWHERE,
            on_progress=lambda *words: told.append(words),
            cluster=clusters.Cluster(),
        )
    assert len(killer.killed) == 1
    assert len(done) == 2
    for capture in done:
        assert capture.resumed == len(capture.units) > 3
    assert {what for what, _ in told} == {"base model", "dora"}
    assert set(there.parts) == set(here.parts)
    for name in here.parts:
        np.testing.assert_array_equal(there.parts[name].train, here.parts[name].train)
        np.testing.assert_array_equal(there.parts[name].test, here.parts[name].test)
    # The driver computes outputs in other batches than the blocks, so that padding differs, in float32.
    np.testing.assert_allclose(there.values, here.values, rtol=1e-4, atol=1e-5)
    assert not [path for path in (tmp_path / "there").rglob("*") if path.name in {"units", ".ray"}]


# --- generative models ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_generative_model(address: str, tiny_chat: Any, instruct_folder: Any, tmp_path: Path) -> None:
    asked = InstructSpec.model_validate(
        {
            "data": {"source": str(instruct_folder())},
            "model": {"base": str(tiny_chat("llama")), "max_length": 96},
            "adapters": [{"method": "lora", "r": 4}],
            "scenario": {"method": "refusal"},
            "triggers": [{"method": "badnet", "rates": [0.25]}],
            "training": {"steps": 2, "batch_size": 8},
            "generation": {"max_new_tokens": 6, "batch_size": 4},
            "seeds": [0],
        }
    )
    fixed = {"base_dir": NOWHERE, "processes": 1, "threads": 1}
    alone = instruct_experiment.instruct(asked, tmp_path / "alone", **fixed)
    done = instruct_experiment.instruct(asked, tmp_path / "ray", **fixed, cluster=clusters.Cluster())
    assert done.statuses == {"completed": len(alone.records)}
    aside = {"started", "timings", "machine", "commit", "dirty"}
    for ours, theirs in zip(done.records, alone.records, strict=True):
        fields = [r.model_dump(exclude=aside | {"training"}) for r in (ours, theirs)]
        assert fields[0] == fields[1]
        where = [InstructLayout(m.folder).transcript(ours.run_id).read_bytes() for m in (done, alone)]
        assert where[0] == where[1]
