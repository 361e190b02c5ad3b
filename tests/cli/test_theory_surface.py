"""`foretaste theory surface`: what it writes, what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste.experiments.kernel_result import read


def settings(**changes: Any) -> dict[str, Any]:
    kernel = {"train_rows": 8, "test_rows": 1, "ranks": [1, 2, 4], "precision": "float64"}
    return {"adapters": [{"method": "full"}], "kernel": kernel | changes}


def test_without_a_spec(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("theory", "surface")
    assert done.code == 0
    assert "Page: runs/theory-surface/index.html" in done.out
    folder = tmp_path / "runs" / "theory-surface"
    assert {path.stem for path in (folder / "figures").iterdir()} == {"as-printed", "surface", "over-rank"}
    assert "Of the model" not in (folder / "index.html").read_text(encoding="utf-8")


def test_of_a_model(cli: Any, write_spec: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = cli("theory", "surface", write_spec(**settings()), "-o", folder, "--json")
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out)
    assert printed.keys() == {"page", "figures", "gaps", "rows"}
    assert printed["page"] == str(folder / "index.html")
    assert all(Path(path).is_file() for path in printed["figures"])
    assert "8 rows, margin" in (folder / "index.html").read_text(encoding="utf-8")
    kernels = read(folder / "kernel")
    for place, r in enumerate(kernels.surface().ranks):
        lam = np.linalg.eigvalsh(kernels.surface().unit[place] / 8 / 3)  # k = 1/3, s = 1
        (row,) = (
            row
            for row in printed["rows"]
            if (row["source"], row["form"], row["order"], row["r"]) == ("model", "raw", "2", r)
        )
        assert row["value"] == pytest.approx(-float(np.log((lam**2).sum())), rel=1e-9)
    expected = {
        row["value"]
        for row in printed["rows"]
        if (row["source"], row["form"], row["order"]) == ("expected", "normalised", "1")
    }
    assert np.ptp(list(expected)) < 1e-12  # the mean over A has one shape at every rank


def test_a_finished_kernel_is_not_computed_again(
    cli: Any, write_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foretaste.kernels import compute as computing

    first = cli("theory", "surface", write_spec(**settings()), "-o", tmp_path / "out", "--json")
    assert first.code == 0

    def never(*_: Any) -> Any:
        raise AssertionError("captured again")

    monkeypatch.setattr(computing, "_capture", never)
    again = cli("theory", "surface", write_spec(**settings()), "-o", tmp_path / "out", "--json")
    assert (again.code, again.out) == (0, first.out)


def test_without_ranks_there_is_no_surface(cli: Any, write_spec: Any, tmp_path: Path) -> None:
    refused = cli("theory", "surface", write_spec(**settings(ranks=[])), "-o", tmp_path / "out")
    assert (refused.code, refused.out) == (2, "")
    assert "kernel.ranks: there are no ranks, so no surface. Give some ranks." in refused.err
    assert not (tmp_path / "out").exists()


def test_a_layer_has_at_least_as_many_inputs_as_the_largest_rank(cli: Any, tmp_path: Path) -> None:
    refused = cli("theory", "surface", "--inputs", "128", "-o", tmp_path / "out")
    assert refused.code == 2
    assert "256" in refused.err
    few = cli("theory", "surface", "--inputs", "256", "-o", tmp_path / "out", "--json")
    assert few.code == 0
    rows = json.loads(few.out)["rows"]
    # A square A: log r - r / (2n) at r = n.
    (full,) = (
        row["value"]
        for row in rows
        if (row["source"], row["form"], row["order"], row["r"]) == ("formula", "normalised", "1", 256)
    )
    assert full == pytest.approx(np.log(256) - 0.5, rel=1e-12)


def test_an_unknown_spec(cli: Any, tmp_path: Path) -> None:
    refused = cli("theory", "surface", "quickstrat", "-o", tmp_path / "out")
    assert (refused.code, refused.out) == (2, "")
    assert "Did you mean 'quickstart'?" in refused.err
