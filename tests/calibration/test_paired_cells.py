"""Records of both kinds become cells; nothing is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from records_factory import Sweep

from foretaste.calibration import Cell, count, read_cells
from foretaste.calibration.cells import Sample, standard_error
from foretaste.errors import UserError
from foretaste.record import write_atomic


def find(cells: list[Cell], attack: str, arm: str, amount: str = "10 %") -> Cell:
    (found,) = [
        c for c in cells if (c.attack, c.arm) == (attack, arm) and c.amount.label in (amount, "clean")
    ]
    return found


def test_the_measured_mean_is_over_all_completed_seeds(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    for seed, accuracy in enumerate((0.8, 0.9, 0.7)):
        sweep.add("full", seed=seed, accuracy=accuracy + 0.05, flip=0.1)
        sweep.add("full", "trigger", rate=0.1, seed=seed, accuracy=accuracy, asr=0.5 + 0.1 * seed)
    sweep.add("full", "trigger", rate=0.1, seed=3, status="diverged")
    sweep.predict("full", "trigger", rate=0.1, seeds=[0], accuracy=0.77, asr=0.6)
    cells, problems = read_cells(tmp_path)
    assert not problems
    found = find(cells, "trigger", "full")
    assert found.kind == "backdoor"
    assert found.prediction is not None
    assert found.prediction.accuracy.mean == 0.77
    measured = found.measured
    assert measured.accuracy.by_seed == {"0": 0.8, "1": 0.9, "2": 0.7}
    assert measured.accuracy.mean == pytest.approx(0.8)
    assert measured.accuracy.error == pytest.approx(0.1 / 3**0.5)
    assert measured.target_rate.mean == pytest.approx(0.6)
    assert measured.margin.by_seed == pytest.approx({"0": 0.4, "1": 0.5, "2": 0.6})
    assert measured.accuracy_change.by_seed == pytest.approx({"0": -0.05, "1": -0.05, "2": -0.05})
    assert dict(measured.statuses) == {"completed": 3, "diverged": 1}


def test_cells_of_one_side_stay_and_are_counted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.add("full", seed=0)
    sweep.add("full", "label-flip", rate=0.1, status="diverged")
    sweep.add("full", "label-flip", rate=0.1, seed=1, status="crashed")
    sweep.add("full", "trigger", rate=0.1, collapsed=True)
    sweep.predict("full")
    sweep.predict("full", "label-flip", rate=0.1)
    sweep.predict("lora-r8", "label-flip", rate=0.1)
    write_atomic(tmp_path / "predicted" / "runs" / "broken.json", "{")
    cells, problems = read_cells(tmp_path, "name")
    assert len(problems) == 1
    assert {c.folder for c in cells} == {"name"}
    counts = count(cells)
    assert (counts.cells, counts.both, counts.not_measured, counts.not_predicted) == (4, 1, 2, 1)
    assert (counts.runs, counts.diverged, counts.failed, counts.collapsed) == (4, 1, 1, 1)
    flipped = find(cells, "label-flip", "full")
    assert flipped.kind == "flips"
    assert flipped.measured.accuracy.mean is None


def test_the_clean_cell_stands_once_and_counts_poison_seeds_once(tmp_path: Path) -> None:
    from foretaste.seeds import Seeds

    sweep = Sweep(tmp_path)
    for poison in (0, 1):
        sweep.add("full", seed=Seeds(data=0, poison=poison, init=0, order=0), accuracy=0.9)
    sweep.add("full", "trigger", rate=0.1)
    sweep.predict("full")
    cells, _ = read_cells(tmp_path)
    clean = [c for c in cells if c.kind == "clean"]
    assert len(clean) == 1
    assert (clean[0].measured.accuracy.n, clean[0].measured.runs) == (1, 1)


def test_predictions_that_differ_within_a_cell_are_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.predict("full", seeds=[0], accuracy=0.8)
    sweep.predict("full", seeds=[1], accuracy=0.8)
    assert read_cells(tmp_path)[0][0].prediction
    sweep.predict("full", seeds=[1], accuracy=0.7)
    with pytest.raises(UserError, match="different predictions"):
        read_cells(tmp_path)


def test_a_standard_error_needs_spread() -> None:
    assert standard_error([0.5]) is None
    assert standard_error([0.5, 0.5, 0.5]) is None
    assert standard_error([0.4, 0.6]) == pytest.approx(0.1)
    assert Sample().mean is None
    assert Sample({"0": 0.5, "1": 0.7}).minus(Sample({"1": 0.2, "2": 0.0})).by_seed == {"1": 0.5}
