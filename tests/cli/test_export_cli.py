"""`foretaste export`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))  # the factory of records

from records_factory import Sweep


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sweep = Sweep(tmp_path / "swept")
    sweep.fill(("full",), (0.1,), range(2))
    sweep.add("full", "trigger", rate=0.1, seed=1, status="diverged")
    return tmp_path / "swept"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_a_table(suffix: str, folder: Path, cli: Any, tmp_path: Path) -> None:
    target = tmp_path / f"runs{suffix}"
    done = cli("export", "table", folder, "-o", target)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("6 runs (5 completed, 1 diverged), ")
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json}
    assert len(readers[suffix](target)) == 6
    machine = cli("export", "table", folder, "-o", target, "--json")
    assert json.loads(machine.out) == {
        "output": str(target),
        "runs": 6,
        "statuses": {"completed": 5, "diverged": 1},
        "problems": [],
    }


def test_an_lm_eval_file(folder: Path, cli: Any, tmp_path: Path) -> None:
    done = cli("export", "lm-eval", folder, "-o", tmp_path / "results.json")
    assert (done.code, done.out) == (0, f"4 tasks: {tmp_path / 'results.json'}\n")
    assert "reviews/full/trigger/10 %" in json.loads((tmp_path / "results.json").read_text())["results"]


def test_files_that_are_no_records_are_warned_of(folder: Path, cli: Any, tmp_path: Path) -> None:
    (folder / "runs" / "broken.json").write_text("{")
    for kind in ("table", "lm-eval"):
        done = cli("export", kind, folder, "-o", tmp_path / "out.json")
        assert done.code == 0
        assert "warning" in done.err
        assert "broken.json" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["table", "FOLDER", "-o", "runs.xlsx"], "unknown kind of table '.xlsx'"),
        (["table", "nowhere", "-o", "runs.csv"], "not a folder"),
        (["lm-eval", "nowhere", "-o", "r.json"], "not a folder"),
        (["mlflow", "FOLDER", "--tracking-uri", "mlflow.db"], "is no tracking URI"),
    ],
)
def test_refusals(arguments: list[str], says: str, folder: Path, cli: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder.parent)
    done = cli("export", *(str(folder) if word == "FOLDER" else word for word in arguments))
    assert (done.code, done.out) == (2, "")
    assert says in " ".join(done.err.split())


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_trackers_say_what_they_did(
    tracker: str, folder: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line and the JSON; the exports themselves are tested in tests/interop."""
    from foretaste.interop import mlflow, wandb
    from foretaste.interop.entries import Exported

    seen: list[Any] = []

    def export(folders: Any, target: Any) -> Exported:
        seen.append((list(folders), target))
        return Exported(str(target), 2, 1, 3, {"completed": 5, "error": 1}, ["x.json: no record"])

    monkeypatch.setattr({"mlflow": mlflow, "wandb": wandb}[tracker], "export", export)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "as it was")
    where = ["--tracking-uri", "sqlite:///x.db"] if tracker == "mlflow" else ["-o", tmp_path / "w"]
    done = cli("export", tracker, folder, *where)
    assert done.code == 0
    assert "6 runs (5 completed, 1 error): 2 added, 1 replaced, 3 there already in" in done.out
    assert "x.json: no record" in done.err
    machine = json.loads(cli("export", tracker, folder, *where, "--json").out)
    assert (machine["added"], machine["replaced"], machine["kept"]) == (2, 1, 3)
    assert seen[0] == ([folder], "sqlite:///x.db" if tracker == "mlflow" else tmp_path / "w")
