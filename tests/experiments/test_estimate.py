"""How long a sweep will take: every pass over the test rows counts, further forms of a trigger included."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from foretaste import attacks
from foretaste.errors import UserError
from foretaste.experiments import estimate
from foretaste.experiments.plan import plan
from foretaste.spec import RunSpec, Trigger

SHAPE = estimate.Shape(
    parameters=1_000, total_parameters=2_000, hidden=32, train_tokens=7.0, test_tokens=11.0
)
FLOPS = 1e6
WORDS = ["apple", "banana", "orange", "cf"]


def runs_of(spec: Any, listed: list[dict[str, Any]]) -> dict[str, RunSpec]:
    runs = plan(spec(attacks=listed), Path()).runs
    return {run.attack.name if run.attack else "clean": run for run in runs}


def seconds(run: RunSpec, base_dir: Path = Path()) -> float:
    return estimate.seconds([run], SHAPE, FLOPS, base_dir)


def expected(run: RunSpec, passes: int) -> float:
    """The sum by hand: two steps of eight rows, all parameters; then 24 test rows so many times."""
    assert (run.training.steps, run.training.batch_size, run.data.test_rows) == (2, 8, 24)
    training = 2 * 8 * SHAPE.train_tokens * 6.0
    testing = passes * 24 * SHAPE.test_tokens * 2.0
    return (training + testing) * SHAPE.parameters / (FLOPS * estimate.EFFICIENCY) + estimate.OVERHEAD


def test_every_form_is_a_pass(spec: Any) -> None:
    runs = runs_of(
        spec,
        [
            {"method": "label-flip", "counts": [4]},
            {"method": "trigger", "counts": [4]},
            {"method": "instruction", "counts": [4]},
            {"method": "multi-trigger", "counts": [4], "words": WORDS},
        ],
    )
    # One clean pass; one for the trigger as trained; one for held-out texts, or for 1, 2 and 3 of 4 words.
    passes = {"label-flip": 1, "trigger": 2, "instruction": 3, "multi-trigger": 5}
    for name, number in passes.items():
        assert seconds(runs[name]) == pytest.approx(expected(runs[name], number), rel=1e-12)
    everything = 1 + sum(number - 1 for number in passes.values())
    assert seconds(runs["clean"]) == pytest.approx(expected(runs["clean"], everything), rel=1e-12)


def test_an_instruction_without_paraphrases_has_no_form(spec: Any) -> None:
    run = runs_of(spec, [{"method": "instruction", "counts": [4], "held_out": []}])["instruction"]
    assert seconds(run) == pytest.approx(expected(run, 2), rel=1e-12)


def test_runs_add_up(spec: Any) -> None:
    runs = list(runs_of(spec, [{"method": "multi-trigger", "counts": [4]}]).values())
    together = estimate.seconds(runs, SHAPE, FLOPS, Path())
    assert together == pytest.approx(sum(seconds(run) for run in runs), rel=1e-12)
    assert estimate.seconds([], SHAPE, FLOPS, Path()) == 0.0


def test_files_of_attacks_are_found_from_the_specs_folder(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "writer")
    monkeypatch.setenv("FORETASTE_CACHE", str(tmp_path / "cache"))
    run = runs_of(spec, [{"method": "trigger", "counts": [1]}])["trigger"]
    options = {"rewriter": "model", "model": "writer", "max_new_tokens": 1}
    built: Any = attacks.build("style", options, run.data.classes, base_dir=tmp_path)
    style = Trigger(name="style", method="style", options=built.options.model_dump(mode="json"))
    styled = run.model_copy(update={"triggers": [style]})
    assert seconds(styled, tmp_path) == pytest.approx(expected(run, 2), rel=1e-12)
    with pytest.raises(UserError, match="writer"):
        seconds(styled, tmp_path / "cache")
