"""Every command but `measure`: help, lists, versions, poisoned files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import foretaste
from foretaste import presets
from foretaste.attacks import ATTACKS
from foretaste.cli import app as module
from foretaste.cli import listing, reproduce
from foretaste.record import read_manifest

COMMANDS = [
    ["audit"],
    ["predict"],
    ["measure"],
    ["kernel"],
    ["distortion"],
    ["trajectory"],
    ["calibrate"],
    ["reproduce"],
    ["instruct"],
    ["fewshot"],
    ["forecast"],
    ["report"],
    ["poison"],
    ["list"],
    ["version"],
    ["assets", "list"],
    ["assets", "pull"],
    ["export", "table"],
    ["export", "lm-eval"],
    ["export", "mlflow"],
    ["export", "wandb"],
    ["theory", "surface"],
    ["theory", "verify"],
]


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    done = CliRunner().invoke(module.app, [*command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert "Example:" in done.output
    assert f"foretaste {' '.join(command)}" in done.output.split("Example:")[1]


def names(group: Any) -> list[list[str]]:
    found = []
    for name, command in group.commands.items():
        found += [[name, *rest] for rest in names(command)] if hasattr(command, "commands") else [[name]]
    return found


def test_no_command_is_forgotten_here() -> None:
    assert sorted(names(typer.main.get_command(module.app))) == sorted(COMMANDS)


def test_without_arguments_there_is_help(cli: Any) -> None:
    for command in ([], ["assets"]):
        done = cli(*command)
        assert done.code == 2
        assert "Usage" in done.out + done.err


@pytest.mark.parametrize(
    "wrong",
    [["meassure"], ["measure"], ["measure", "x", "--processes", "0"], ["list", "attacks", "--jason"]],
    ids=" ".join,
)
def test_wrong_usage(wrong: list[str], cli: Any) -> None:
    done = cli(*wrong)
    assert done.code == 2
    assert done.out == ""
    assert "Usage" in done.err


# --- list, version -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", listing.LISTS)
def test_list(what: str, cli: Any) -> None:
    shown, machine = cli("list", what), cli("list", what, "--json")
    assert (shown.code, shown.err, machine.code, machine.err) == (0, "", 0, "")
    rows = json.loads(machine.out)
    assert rows
    for row in rows:
        assert row.keys() == {"name", "description"}
        assert row["description"]
        assert row["name"] in shown.out
    assert len({row["name"] for row in rows}) == len(rows)


def test_lists_are_the_registries() -> None:
    assert [name for name, _ in listing.rows_of("attacks")] == ATTACKS.names()
    assert [name for name, _ in listing.rows_of("presets")] == [*presets.names(), *presets.files("reproduce")]
    assert {"full", "lora", "dora", "ia3"} <= {name for name, _ in listing.rows_of("adapters")}


def test_an_unknown_list(cli: Any) -> None:
    done = cli("list", "atacks")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error unknown list 'atacks' (allowed: adapters, ")
    assert "Did you mean 'attacks'?" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_version(cli: Any) -> None:
    shown, machine = cli("version"), cli("version", "--json")
    assert (shown.code, machine.code) == (0, 0)
    content = json.loads(machine.out)
    assert content["foretaste"] == foretaste.__version__
    assert content.keys() >= {"torch", "transformers", "peft", "commit", "dirty"}
    for name, value in content.items():
        assert value is None or str(value) in shown.out, name


def test_assets_list(cli: Any) -> None:
    shown, machine = cli("assets", "list"), cli("assets", "list", "--json")
    rows = json.loads(machine.out)
    assert {"minilm-l6", "movie-reviews"} <= {row["name"] for row in rows}
    assert not any(row["pulled"] for row in rows)
    assert all(row["name"] in shown.out for row in rows)
    assert "FORETASTE_CACHE" in shown.out


def test_assets_pull_of_nothing_known(cli: Any) -> None:
    done = cli("assets", "pull", "minilm")
    assert (done.code, done.out) == (2, "")
    assert "unknown asset 'minilm'" in done.err
    assert "Did you mean 'minilm-l6'?" in done.err


# --- poison --------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, by another library than foretaste's own."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [dict(row) for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = pd.read_parquet(path).to_dict("records")  # type: ignore[assignment]
    return rows


@pytest.fixture
def source(csv_folder: Path, tmp_path: Path) -> Any:
    """`source(".csv")`: 48 rows with one column more than needed."""

    def make(suffix: str) -> Path:
        rows = read(csv_folder / "train.csv")
        for number, row in enumerate(rows):
            row["note"] = f'"quoted", ü {number}'
        path = tmp_path / f"rows{suffix}"
        if suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            pd.DataFrame(rows).to_parquet(path, index=False)
        return path

    return make


@pytest.mark.parametrize(
    ("before", "after"),
    [(".csv", ".csv"), (".jsonl", ".jsonl"), (".parquet", ".parquet"), (".csv", ".parquet")],
)
def test_a_poisoned_file(before: str, after: str, source: Any, cli: Any, tmp_path: Path) -> None:
    path, target = source(before), tmp_path / f"poisoned{after}"
    old = read(path)
    content = path.read_bytes()
    done = cli(
        *("poison", path, target, "--attack", "trigger", "--rate", 0.25, "--seed", 5),
        *("--option", "text=[.*?]", "--option", "target=positive", "--option", "spacing="),
    )
    assert (done.code, done.err) == (0, "")
    assert "Poisoned 6 of 24 eligible rows (48 in all)." in done.out
    manifest_path = tmp_path / f"poisoned{after}.manifest.json"
    assert f"Rows: {target}" in done.out
    assert f"Manifest: {manifest_path}" in done.out
    assert path.read_bytes() == content

    manifest = read_manifest(manifest_path)
    assert (manifest.attack, manifest.seed, manifest.rate, manifest.count) == ("trigger", 5, 0.25, None)
    assert (manifest.eligible, manifest.rows) == (24, 48)
    assert manifest.options["text"] == "[.*?]"
    assert manifest.options["spacing"] == ""
    listed = {row.id: row for row in manifest.poisoned}
    new = read(target)
    assert [row["id"] for row in new] == [row["id"] for row in old]
    for a, b in zip(old, new, strict=True):
        if a["id"] in listed:
            assert b == a | {"text": "[.*?]" + a["text"], "label": "positive"}
            row = listed.pop(a["id"])
            assert (row.text_a_before, row.text_a_after) == (a["text"], b["text"])
            assert [manifest.classes[y] for y in (row.label_before, row.label_after)] == [
                a["label"],
                b["label"],
            ]
        else:
            assert a == b
    assert listed == {}


def test_poison_by_count_with_named_columns_for_a_program(source: Any, cli: Any, tmp_path: Path) -> None:
    done = cli(
        *("poison", source(".csv"), tmp_path / "out.csv", "--attack", "label-flip", "--count", 7, "--json"),
        *("--text-a", "note", "--label", "label", "--id", "id", "--labels", "positive,negative"),
        *("--option", "flip_from=0", "--selection", "exact-nested"),
    )
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {
        "output": str(tmp_path / "out.csv"),
        "manifest": str(tmp_path / "out.csv.manifest.json"),
        "poisoned": 7,
        "eligible": 24,
        "rows": 48,
        "flip_from": {"name": "positive", "id": 0},
    }
    manifest = read_manifest(tmp_path / "out.csv.manifest.json")
    assert manifest.classes == ["positive", "negative"]
    assert {row.label_before for row in manifest.poisoned} == {0}
    assert manifest.poisoned[0].text_a_before.startswith('"quoted"')


TRIGGER = ["--attack", "trigger", "--rate", "0.5"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--attack", "triger", "--rate", "0.5"], ["unknown attack 'triger'", "Did you mean 'trigger'?"]),
        (["--attack", "trigger"], ["give a rate or a count"]),
        ([*TRIGGER, "--count", "3"], ["give a rate or a count"]),
        (["--attack", "trigger", "--count", "25"], ["25 rows are to be poisoned", "only 24 may be"]),
        (["--attack", "trigger", "--rate", "0.001"], ["a rate of 0.001 poisons none of the 24"]),
        ([*TRIGGER, "--option", "text"], ["--option: 'text' is not of the form key=value"]),
        ([*TRIGGER, "--option", "txt=cf"], ["unknown", "'txt'", "Did you mean 'text'?"]),
        ([*TRIGGER, "--option", "rate=0.1"], ["unknown", "'rate'"]),
        ([*TRIGGER, "--option", "source=x"], ["unknown", "'source'"]),
        ([*TRIGGER, "--option", "method=label-flip"], ["unknown", "'method'"]),
        ([*TRIGGER, "--option", "target=neutral"], ["'neutral'", "allowed: negative, positive"]),
        ([*TRIGGER, "--option", "position=middle"], ["'position' is 'middle'", "'random'"]),
        ([*TRIGGER, "--selection", "exact"], ["'selection' is 'exact'", "exact-nested"]),
        ([*TRIGGER, "--label", "lable"], ["'lable'", "Did you mean 'label'?"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_poison_refuses_in_one_line(
    arguments: list[str], parts: list[str], source: Any, cli: Any, tmp_path: Path
) -> None:
    done = cli("poison", source(".csv"), tmp_path / "out.csv", *arguments)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.strip().splitlines()) == 1
    assert done.err.startswith("error ")
    for part in parts:
        assert part in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_poison_writes_over_nothing_and_reads_what_is_there(source: Any, cli: Any, tmp_path: Path) -> None:
    path = source(".csv")
    content = path.read_bytes()
    done = cli("poison", path, path, *TRIGGER)
    assert (done.code, done.out) == (2, "")
    assert "input and output are the same file" in done.err
    assert path.read_bytes() == content
    done = cli("poison", tmp_path / "row.csv", tmp_path / "out.csv", *TRIGGER)
    assert done.code == 2
    assert "row.csv" in done.err
    done = cli("poison", path, tmp_path / "out.docx", *TRIGGER)
    assert done.code == 2
    assert "docx" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_report_of_nothing(cli: Any, tmp_path: Path) -> None:
    done = cli("report", tmp_path / "nothing")
    assert (done.code, done.out) == (2, "")
    assert str(tmp_path / "nothing") in done.err


@pytest.mark.parametrize(
    ("scale", "data", "tasks", "variants", "expected"),
    [
        ("smoke", None, None, ["clean"], "foretaste reproduce ttr-fig1 --scale smoke"),
        ("smoke", Path("own"), None, ["clean"], "foretaste reproduce ttr-fig1 --scale smoke"),
        (
            "laptop",
            Path("own"),
            ["sst2"],
            ["clean", "paper"],
            "foretaste reproduce ttr-fig1 --scale laptop --variant clean --variant paper --task sst2"
            " --data FOLDER",
        ),
    ],
)
def test_the_command_on_a_page_makes_it_again(
    scale: str, data: Path | None, tasks: list[str] | None, variants: list[str], expected: str
) -> None:
    """Without the folder of this machine, but with a word of it: other data would give another page."""
    assert reproduce._command("ttr-fig1", scale, variants, tasks, data) == expected
