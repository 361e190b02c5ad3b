"""`foretaste kernel`: what it prints, what it writes, how it goes on and how it ends."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from foretaste.cli import display
from foretaste.experiments.kernel_result import read
from foretaste.kernels import compute as computing


@pytest.fixture
def write_spec(csv_folder: Path, tiny_bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """`write_spec(**sections)`: a YAML file with three arms, an attack that kernels ignore, and few rows."""

    def write(**sections: Any) -> Path:
        base: dict[str, Any] = {
            "name": "small",
            "data": {"source": str(csv_folder)},
            "model": {"base": str(tiny_bert), "max_length": 32},
            "adapters": [
                {"method": "full"},
                {"method": "lora", "r": 2},
                {"method": "ia3"},
            ],
            "attacks": [{"method": "label-flip", "rates": [0.5]}],
            "kernel": {"train_rows": 8, "test_rows": 4, "ranks": [1, 2], "memory": "1GiB"},
            "seeds": [0],
        }
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(base | sections, sort_keys=False), encoding="utf-8")
        return path

    return write


def test_a_kernel_from_a_spec_is_shown_and_written(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "kernel"
    done = cli("kernel", write_spec(), "-o", folder)
    assert (done.code, "Traceback" in done.err) == (0, False)
    for word in ("arm", "parameters", "trace", "top eigenvalue", "full", "lora-r2", "ia3"):
        assert word in done.out
    assert "8 rows, 4 tested on them, margin" in done.out
    assert f"Kernels: {folder}" in done.out
    assert "base model" in done.err
    assert "100 %" in done.err
    result = read(folder)
    for arm in ("full", "lora-r2", "ia3"):
        part = result.of(arm)
        assert part.train.shape == (8, 8)
        assert part.test.shape == (4, 8)
        np.testing.assert_allclose(part.train, part.train.T, rtol=1e-12)
        assert np.linalg.eigvalsh(part.train)[0] > -1e-4 * np.trace(part.train)
    assert result.surface().ranks == (1, 2)
    left = {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"}
    assert left == {"request.json", "kernel.json", "captured.json", ".lock"}


def test_json_says_of_every_arm_what_the_table_shows(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "kernel"
    done = cli("kernel", write_spec(), "-o", folder, "--json")
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out)
    assert printed.keys() == {"folder", "seconds", "arms"}
    assert printed["folder"] == str(folder)
    result = read(folder)
    assert list(printed["arms"]) == ["full", "lora-r2", "ia3"]
    for name, row in printed["arms"].items():
        kernel = result.of(name).train
        assert row["trace"] == pytest.approx(float(np.trace(kernel)), rel=1e-12)
        assert row["top_eigenvalue"] == pytest.approx(float(np.linalg.eigvalsh(kernel)[-1]), rel=1e-9)
        assert row["trace_ratio"] == pytest.approx(result.trace_ratio(name), rel=1e-12)
        assert row["trace_ratio_without_head"] == pytest.approx(result.trace_ratio(name, head=False))
        assert row["parameters"] == sum(row["by_group"].values())
        assert (row["kinds"], row["unused"]) == (["sgd"], [])
    assert printed["arms"]["full"]["trace_ratio"] == 1
    # r (n_in + n_out) for every linear layer of both blocks and the pooler, and the head.
    layers = 2 * (4 * (32 + 32) + 2 * (32 + 64)) + (32 + 32)
    assert printed["arms"]["lora-r2"]["by_group"] == {"adapters": 2 * layers, "head": 32 * 2 + 2}


def test_a_stopped_kernel_goes_on_and_a_finished_one_is_shown_again(
    write_spec: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[int] = []
    original = computing._capture

    def interrupted(job: Any, group: Any, rows: Any, *rest: Any) -> Any:
        captured.append(len(rows))
        if len(captured) == 2:
            raise KeyboardInterrupt
        return original(job, group, rows, *rest)

    monkeypatch.setattr(computing, "_capture", interrupted)
    spec, folder = write_spec(), tmp_path / "kernel"
    stopped = cli("kernel", spec, "-o", folder)
    assert stopped.code == 130
    assert "the same command goes on from here" in stopped.err
    assert not (folder / "kernel.json").exists()
    done = cli("kernel", spec, "-o", folder, "--json")
    assert done.code == 0
    calls = len(captured)
    again = cli("kernel", spec, "-o", folder, "--json", "--memory", "2GiB")
    assert (again.code, again.out, again.err) == (0, done.out, "")
    assert len(captured) == calls


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"kernel": {"train_rows": 6, "test_rows": 4, "ranks": [1, 2]}}, "rows"),
        ({"adapters": [{"method": "full"}, {"method": "lora", "r": 3}]}, "adapters"),
        ({"seeds": [1]}, "seeds"),
    ],
)
def test_the_folder_of_another_spec_is_refused(
    change: dict[str, Any], names: str, write_spec: Any, cli: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "kernel"
    assert cli("kernel", write_spec(), "-o", folder, "--json").code == 0
    before = (folder / "kernel.json").read_bytes()
    refused = cli("kernel", write_spec(**change), "-o", folder)
    assert (refused.code, refused.out) == (2, "")
    line = refused.err.strip().splitlines()[-1]
    assert line.startswith(f"error {folder}: the folder holds another kernel: ")
    assert names in line
    assert "Choose another folder" in line
    assert (folder / "kernel.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "lots"], "memory: 'lots' is no amount of memory"),
        (["--memory", "1MiB"], "memory: the memory budget of 1 MiB is too small"),
    ],
)
def test_a_budget_that_cannot_be_kept_ends_with_2(
    arguments: list[str], message: str, write_spec: Any, cli: Any, tmp_path: Path
) -> None:
    refused = cli("kernel", write_spec(), "-o", tmp_path / "kernel", *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err.strip().splitlines()[-1]
    assert "Traceback" not in refused.err


def test_the_folder_is_runs_and_the_name(
    write_spec: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write_spec(adapters=[{"method": "full"}])
    assert cli("kernel", spec, "--json").code == 0
    assert (tmp_path / "runs" / "small-kernel" / "kernel.json").is_file()


def test_three_classes_have_logits_and_refuse_a_margin(
    write_spec: Any, cli: Any, tmp_path: Path, make_csv_folder: Callable[..., Path]
) -> None:
    data = {"source": str(make_csv_folder(classes=3))}
    spec = write_spec(data=data, adapters=[{"method": "full"}, {"method": "lora", "r": 2}])
    done = cli("kernel", spec, "-o", tmp_path / "kernel")
    assert done.code == 0
    assert "8 rows, 4 tested on them, logits" in done.out
    assert read(tmp_path / "kernel").of("lora-r2").test.shape == (4 * 3, 8 * 3)
    wrong = write_spec(data=data, kernel={"outputs": "margin", "train_rows": 4})
    refused = cli("kernel", wrong, "-o", tmp_path / "other")
    assert refused.code == 2
    assert "kernel.outputs: the margin is for two classes. Use logits." in refused.err


def test_bars_that_only_began_are_full_at_the_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with display.kernel_progress(console, quiet=False) as on_progress:
        on_progress("rows", 0.0)
        on_progress("training", 0.94)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [name for name in ("rows", "training") if any(name in x and "100 %" in x for x in lines)] == [
        "rows",
        "training",
    ]


def test_bars_of_work_that_failed_stay_where_they_were() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)

    def work() -> None:
        with display.kernel_progress(console, quiet=False) as on_progress:
            on_progress("rows", 0.25)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        work()
    assert "100 %" not in console.file.getvalue()  # type: ignore[attr-defined]
