"""`foretaste audit --fail-if` as a build meets it: exit codes, the table, the JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretaste.experiments import audit as experiment
from foretaste.record import Layout

QUICK = {"train_rows": 16, "held_out": 16, "entries": 2048}
ALONE = ("--processes", 1, "--threads", 1)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page without its figures as files, which take seconds each."""
    monkeypatch.setattr("foretaste.report.figures.theme.save", lambda *_: None)


@pytest.fixture
def audited(write_spec: Any, cli: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A spec with a trigger and flips, and the folder in which all of it is done."""
    spec = write_spec(
        attacks=[
            {"method": "trigger", "text": "cf", "target": "positive", "rates": [0.5]},
            {"method": "label-flip", "rates": [0.5]},
        ],
        predict=QUICK,
    )
    done = cli("audit", spec, "-o", tmp_path / "out", *ALONE)
    assert done.code == 0, done.err
    return spec, tmp_path / "out"


def test_exit_codes_and_what_is_shown(
    audited: tuple[Path, Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = audited
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}

    met = cli("audit", spec, "-o", folder, "--fail-if", "clean_accuracy>=0", "--fail-if", "asr>=0", *ALONE)
    assert met.code == 3
    words = " ".join(met.out.split())
    assert "FAIL clean_accuracy>=0.0 (accuracy on clean test rows, mean over seeds) met by 3 of 3" in words
    assert "FAIL asr>=0.0 (attack success rate, mean over seeds) met by 1 of 1 measured cells" in words
    assert "95 % interval" in words
    assert "(one seed)" in words

    passed = cli("audit", spec, "-o", folder, "--fail-if", "asr_margin>1", *ALONE)
    assert passed.code == 0
    words = " ".join(passed.out.split())
    assert "pass asr_margin>1.0" in words
    assert "not met: 0 of 1 measured cells" in words
    assert "closest: full, trigger, 50 % at" in words

    both = cli("audit", spec, "-o", folder, "--fail-if", "asr>1", "--fail-if", "asr>=0", "--json", *ALONE)
    assert (both.code, both.err) == (3, "")
    content = json.loads(both.out)
    assert [item["is_met"] for item in content["fail_if"]] == [False, True]
    record = next(
        record
        for record in Layout(folder).read()[0]
        if record.resolved.attack and record.resolved.attack.name == "trigger"
    )
    (row,) = content["fail_if"][1]["met"]
    (own,) = record.triggered.values()
    assert row["value"] == pytest.approx(own.target_rate, abs=1e-12)
    assert (row["arm"], row["attack"], row["seeds"], row["low"]) == ("full", "trigger", 1, None)
    plain = cli("audit", spec, "-o", folder, "--json", *ALONE)
    assert plain.code == 0
    assert "fail_if" not in json.loads(plain.out)
    # Nothing was trained again.
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()} == before


def test_only_the_specs_own_runs_are_held_against_it(
    audited: tuple[Path, Path], write_spec: Any, cli: Any
) -> None:
    _, folder = audited
    smaller = write_spec(attacks=[{"method": "label-flip", "rates": [0.5]}], predict=QUICK)
    done = cli("audit", smaller, "-o", folder, "--extend", "--fail-if", "clean_accuracy>=0", "--json", *ALONE)
    assert done.code == 3
    assert {row["attack"] for row in json.loads(done.out)["fail_if"][0]["met"]} == {"clean", "label-flip"}


def test_a_failed_run_ends_with_1_and_a_condition_that_is_met_with_3(
    write_spec: Any, cli: Any, tmp_path: Path
) -> None:
    spec = write_spec(
        adapters=[{"method": "full", "training": {"learning_rate": 1e38}}, {"method": "lora", "r": 2}],
        predict=QUICK,
    )
    folder = tmp_path / "out"
    passed = cli("audit", spec, "-o", folder, "--fail-if", "clean_accuracy<0", *ALONE)
    assert passed.code == 1
    assert "without a value full, clean, clean" in " ".join(passed.out.split())
    met = cli("audit", spec, "-o", folder, "--fail-if", "clean_accuracy>=0", *ALONE)
    assert met.code == 3
    # Every run diverged: nothing was checked, which must not pass for a gate that is open.
    spec = write_spec(adapters=[{"method": "full", "training": {"learning_rate": 1e38}}], predict=QUICK)
    nothing = cli(
        "audit", spec, "-o", tmp_path / "other", "--fail-if", "clean_accuracy<0.5", "--json", *ALONE
    )
    assert nothing.code == 2
    assert "nothing was checked by 'clean_accuracy<0.5'" in " ".join(nothing.err.split())
    assert json.loads(nothing.out)["fail_if"][0]["is_met"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fail-if", "asr_margn>0.2"], "Did you mean 'asr_margin'?"),
        (["--fail-if", "asr_margin"], "METRIC OPERATOR NUMBER"),
        (["--fail-if", "clean_accuracy<80"], "write 0.2 for 20 %"),
        (["--fail-if", "asr>0.5"], "the spec has no attack with a trigger"),
        (["--fail-if", "clean_accuracy<0.5", "--measure", "none"], "nothing is measured"),
    ],
)
def test_a_wrong_condition_is_refused_before_anything_starts(
    arguments: list[str],
    says: str,
    write_spec: Any,
    cli: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it started")

    monkeypatch.setattr(experiment, "audit", never)
    done = cli("audit", write_spec(predict=QUICK), "-o", tmp_path / "out", *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()
