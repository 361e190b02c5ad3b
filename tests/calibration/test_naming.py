"""One name stands for one thing, and one seed of a cell for one run, also in folders put together by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records_factory import Sweep

from foretaste.calibration import calibrate, read_cells
from foretaste.calibration.naming import refuse_mixed
from foretaste.calibration.places import Amount, clean_runs
from foretaste.errors import UserError
from foretaste.record import Layout, Record, write_atomic
from foretaste.report import build, load
from foretaste.seeds import Seeds
from foretaste.spec import RunSpec

Change = Callable[[RunSpec], dict[str, Any]]


def rewritten(sweep: Sweep, record: Record, change: Change, **more: Any) -> Record:
    """The record of another run that differs from a record's in some settings, written beside it."""
    run = record.resolved.model_copy(update=change(record.resolved))
    new = record.model_copy(update={"resolved": run, "run_id": run.id, **more})
    write_atomic(sweep.layout.record(run.id), new.model_dump_json())
    return new


def other_rank(run: RunSpec) -> dict[str, Any]:
    return {"adapter": run.adapter.model_copy(update={"config": {"r": 8}}), "seeds": Seeds.all(1)}


def other_rate(run: RunSpec) -> dict[str, Any]:
    return {"training": run.training.model_copy(update={"learning_rate": 0.01}), "seeds": Seeds.all(1)}


def other_text(run: RunSpec) -> dict[str, Any]:
    assert run.attack is not None
    return {"attack": run.attack.model_copy(update={"options": {"text": "now"}}), "seeds": Seeds.all(1)}


def bernoulli(run: RunSpec) -> dict[str, Any]:
    assert run.attack is not None
    return {"attack": run.attack.model_copy(update={"selection": "bernoulli"}), "seeds": Seeds.all(1)}


def longer(run: RunSpec) -> dict[str, Any]:
    request = run.model.request.model_copy(update={"max_length": 64})
    return {"model": run.model.model_copy(update={"request": request}), "seeds": Seeds.all(1)}


def other_rows(run: RunSpec) -> dict[str, Any]:
    return {"data": run.data.model_copy(update={"fingerprint": "e" * 16}), "seeds": Seeds.all(1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_rank, r"two arms are called 'mine'.*config\.r: null -> 8|config\.r: 8 -> null"),
        (other_rate, r"two arms are called 'mine'.*training\.learning_rate"),
        (other_text, r"two attacks are called 'trigger'.*text: "),
        (bernoulli, r"two attacks are called 'trigger'.*selection"),
        (longer, r"two models are called 'minilm'.*request\.max_length"),
        (other_rows, r"two data sets are called 'reviews'.*fingerprint"),
    ],
)
def test_a_name_that_stands_for_two_things_is_refused(tmp_path: Path, change: Change, words: str) -> None:
    """Also where the two have no seed in common: they would be averaged as two seeds of one."""
    sweep = Sweep(tmp_path)
    sweep.add("mine")
    poisoned = sweep.add("mine", "trigger", rate=0.1)
    sweep.predict("mine")
    calibrate([tmp_path])
    build(load([tmp_path]))
    second = rewritten(sweep, poisoned, change)
    for read in (read_cells, lambda folder: calibrate([folder]), lambda folder: build(load([folder]))):
        with pytest.raises(UserError, match=words) as caught:
            read(tmp_path)
        assert second.run_id in str(caught.value)
        assert "two folders" in str(caught.value)


def test_a_run_that_failed_without_a_result_stands_in_no_way(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    poisoned = sweep.add("mine", "trigger", rate=0.1)
    rewritten(sweep, poisoned, other_rate, status="crashed", clean=None, triggered={})
    read_cells(tmp_path)
    rewritten(sweep, poisoned, other_rate, status="diverged", clean=None, triggered={})
    with pytest.raises(UserError, match="two arms"):
        read_cells(tmp_path)


def test_a_prediction_of_another_arm_is_not_held_against_the_measurement(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.add("mine")
    (told,) = sweep.predict("mine")
    sweep.layout = Layout(tmp_path / "predicted")
    rewritten(sweep, told, other_rate)
    with pytest.raises(UserError, match="two arms are called 'mine'"):
        read_cells(tmp_path)


def test_two_runs_of_one_seed_of_one_cell_are_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    poisoned = sweep.add("mine", "trigger", rate=0.1)
    # Fewer rows than asked for, as from a file that was cut since: nothing that has a name differs.
    rewritten(sweep, poisoned, lambda run: {"data": run.data.model_copy(update={"train_rows": 999})})
    for read in (read_cells, lambda folder: build(load([folder]))):
        with pytest.raises(UserError, match="two runs are one seed of one cell"):
            read(tmp_path)


def test_what_extends_a_folder_is_not_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for seed in range(2):
        sweep.add("mine", seed=seed)
        sweep.add("mine", "trigger", rate=0.1, seed=seed)
        sweep.add("mine", "trigger", rate=0.2, seed=seed)
        sweep.add("mine", "trigger", count=5, seed=seed)
        sweep.add("other", seed=seed)
    sweep.add("mine", seed=Seeds(data=0, poison=7, init=0, order=0))
    wider = Sweep(tmp_path, attacks=["trigger", "label-flip", "instruction"])
    wider.add("mine")  # the clean run once more, now tested on two triggers
    wider.add("mine", "instruction", rate=0.1)
    refuse_mixed(wider.layout.read()[0], "folder")
    cells, _ = read_cells(tmp_path)
    (added,) = [cell for cell in cells if cell.attack == "instruction"]
    assert added.measured.margin.n == 1


def test_of_clean_runs_the_one_with_more_triggers_counts(tmp_path: Path) -> None:
    few = Sweep(tmp_path, attacks=["trigger"]).add("full")
    many = Sweep(tmp_path, attacks=["trigger", "instruction"]).add("full")
    for records in ([few, many], [many, few]):
        (kept,) = clean_runs(records).values()
        assert kept.run_id == many.run_id
    failed = many.model_copy(update={"status": "crashed"})
    for records in ([few, failed], [failed, few]):
        (kept,) = clean_runs(records).values()
        assert kept.run_id == few.run_id


def test_amounts_stand_clean_first_then_rates_then_counts() -> None:
    clean, rates, counts = Amount(None, None), [Amount(0.01, None), Amount(0.4, None)], [Amount(None, 1)]
    wanted = [clean, *rates, *counts, Amount(None, 12)]
    mixed = [wanted[place] for place in (4, 1, 3, 0, 2)]
    assert sorted(mixed, key=lambda amount: amount.order) == wanted
    assert [amount.unit for amount in wanted] == [0, 1, 1, 2, 2]
