"""Measured runs into MLflow: one run each, in an experiment named as the sweep. Uses MLflow's client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from foretaste.errors import UserError
from foretaste.interop.entries import Entry, Exported, entries, missing, shortened, tally

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

# Limits of MLflow 3 (mlflow.utils.validation); longer values it would cut without a word.
MAX_PARAMETER, MAX_TAG = 6_000, 5_000
PARAMETERS_A_BATCH, METRICS_A_BATCH = 100, 1_000
RUN_ID, DIGEST = "foretaste.run_id", "foretaste.digest"
PAGE = 1_000


def export(folders: Sequence[Path], tracking_uri: str) -> Exported:
    """Write the runs of some folders into an MLflow tracking store.

    Parameters are the resolved spec with dotted keys, metrics the numbers of `foretaste.frame` and, of each
    trigger, `triggered/NAME/target_rate` and `/accuracy`; `train/loss` has one value a step. Tags begin with
    `foretaste.`. A run that did not complete is there with MLflow's status FAILED and foretaste's own in
    `foretaste.status`. A run that is there already is left alone; one whose record has changed since is
    deleted (MLflow keeps it in its bin) and written anew.

    Args:
        folders: Folders of sweeps.
        tracking_uri: Such as `sqlite:///mlflow.db`.

    Raises:
        UserError: MLflow is not installed or refuses, the URI is none, or the folders cannot be read.
    """
    _check(tracking_uri)
    found, problems = entries(folders)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise missing("mlflow-skinny (or mlflow)", "mlflow") from None
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        done: list[str] = []
        for sweep in dict.fromkeys(entry.sweep for entry in found):
            experiment = _experiment(client, sweep)
            there = _there(client, experiment)
            done += [_put(client, experiment, there, entry) for entry in found if entry.sweep == sweep]
    except (MlflowException, ImportError) as error:
        raise UserError(f"MLflow refused: {error}", where=tracking_uri) from None
    return tally(tracking_uri, done, found, problems)


def _check(tracking_uri: str) -> None:
    scheme, _, path, *_ = urlsplit(tracking_uri)
    if len(scheme) < 2:
        raise UserError(
            f"'{tracking_uri}' is no tracking URI",
            where="--tracking-uri",
            cure=f"Such as sqlite:///{tracking_uri or 'mlflow.db'} or http://127.0.0.1:5000.",
        )
    if scheme == "sqlite" and path.strip("/"):
        # SQLAlchemy: three slashes are a relative path, four an absolute one. MLflow tries for minutes to
        # open a file in a folder that does not exist.
        folder = Path(path[1:]).parent
        if not folder.is_dir():
            raise UserError("there is no such folder", where=str(folder), cure="Make it first.")


def _experiment(client: MlflowClient, name: str) -> str:
    known: Experiment | None = client.get_experiment_by_name(name)
    if known is None:
        return str(client.create_experiment(name))
    if known.lifecycle_stage != "active":
        raise UserError(
            f"MLflow's experiment '{name}' is deleted",
            cure="Restore it in MLflow, or remove it there for good (`mlflow gc`).",
        )
    return str(known.experiment_id)


def _there(client: MlflowClient, experiment: str) -> dict[str, list[Run]]:
    """The runs of an experiment that come from here, by foretaste's run id."""
    runs: dict[str, list[Run]] = {}
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=PAGE, page_token=token)
        for run in page:
            if RUN_ID in run.data.tags:
                runs.setdefault(run.data.tags[RUN_ID], []).append(run)
        token = page.token
        if not token:
            return runs


def _put(client: MlflowClient, experiment: str, there: dict[str, list[Run]], entry: Entry) -> str:
    """Write a run unless it is there as it is."""
    old = there.get(entry.run_id, [])
    if len(old) == 1 and old[0].data.tags.get(DIGEST) == entry.digest:
        return "kept"
    for run in old:
        client.delete_run(run.info.run_id)
    _write(client, experiment, entry)
    return "replaced" if old else "added"


def _write(client: MlflowClient, experiment: str, entry: Entry) -> None:
    from mlflow.entities import Metric, Param

    started = round(1000 * entry.started)
    ended = started if entry.ended is None else round(1000 * entry.ended)
    tags = {f"foretaste.{key}": shortened(value, MAX_TAG) for key, value in entry.tags.items()}
    run = client.create_run(experiment, start_time=started, tags=tags, run_name=entry.label)
    at = run.info.run_id
    parameters = [Param(key, shortened(value, MAX_PARAMETER)) for key, value in entry.parameters.items()]
    for batch in _batches(parameters, PARAMETERS_A_BATCH):
        client.log_batch(at, params=batch)
    metrics = [Metric(name, value, ended, 0) for name, value in entry.metrics.items()]
    metrics += [Metric("train/loss", loss, started, step) for step, loss in entry.losses.items()]
    for batch in _batches(metrics, METRICS_A_BATCH):
        client.log_batch(at, metrics=batch)
    client.set_terminated(at, "FINISHED" if entry.completed else "FAILED", end_time=ended)
    # Last, so that an export that was interrupted here is known to be unfinished.
    client.set_tag(at, DIGEST, entry.digest)


T = TypeVar("T", bound=Any)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
