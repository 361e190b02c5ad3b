"""Pairs of trainings: exact against the Gram for one step, trained as `measure` trains, done once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foretaste.errors import UserError
from foretaste.experiments import trajectory as experiment
from foretaste.experiments import trajectory_result as result
from foretaste.experiments.plan import Resources, plan
from foretaste.experiments.trajectory import MOST_STEPS, pairs_of, preview, steps_to_look_at, trajectory
from foretaste.experiments.trajectory_gram import changed_rows, foretell
from foretaste.experiments.trajectory_result import Trajectory
from foretaste.models import load
from foretaste.models.encode import Encoded
from foretaste.spec import KernelSpec
from foretaste.training import trainer

NOWHERE = Path("/nonexistent")
EXACT = 1e-9  # float64 forward and backward passes of a few dozen rows, twice
ROUNDED = 10.0 ** (1 - result.DIGITS)  # of a stored number, relative
FLIP = {"method": "label-flip", "rates": [0.3]}
TRIGGER = {"method": "trigger", "text": "cf", "target": "positive", "rates": [0.5]}


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., list[Trajectory]]:
    """`go(spec, **options)`: every pair of a spec, in a folder of this test."""

    def run(spec: Any, folder: Path | None = None, **options: Any) -> list[Trajectory]:
        return trajectory(spec, folder or tmp_path / "out", base_dir=NOWHERE, **options).records

    return run


# --- Eq. 5 and the Gram --------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [FLIP, TRIGGER], ids=lambda attack: str(attack["method"]))
@pytest.mark.parametrize(
    "arm",
    [{"method": "full"}, {"method": "lora", "r": 3}, {"method": "rslora", "r": 8, "lora_alpha": 4}],
    ids=lambda arm: str(arm["method"]),
)
def test_one_step_of_descent_is_what_the_gram_says(
    arm: Any,
    attack: Any,
    spec: Any,
    go: Any,
    tiny_bert: Path,
    load_tiny: Any,
    csv_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """T13 in float64: |dTheta - dTheta~| = eta sqrt(v^T K v) / N of the trained parameters, head included."""
    monkeypatch.setattr(result, "DIGITS", 17)
    tokenizer, model = load_tiny(tiny_bert)
    eta = 0.05
    one = spec(
        adapters=[arm],
        attacks=[attack],
        kernel={"precision": "float64"},
        training={
            **{"optimizer": "sgd", "learning_rate": eta, "schedule": "constant", "max_grad_norm": None},
            **{"steps": 1, "batch_size": 48},
        },
    )
    (record,) = go(one, resources=Resources(model=model.double(), tokenizer=tokenizer))
    assert (record.status, record.reason, record.steps) == ("completed", None, [0, 1])
    told = record.foretold
    assert told is not None
    assert told.changed == told.used > 1
    assert record.parameters[1] == pytest.approx(eta * told.one_step_body, rel=EXACT)
    whole = math.hypot(record.parameters[1], record.head_parameters[1])
    assert whole == pytest.approx(eta * told.one_step, rel=EXACT)
    assert record.head_start == 0
    assert record.body is not None
    if arm["method"] == "full":  # what is trained is the weight
        assert record.body.frobenius[1] == pytest.approx(record.parameters[1], rel=EXACT)
    else:  # only B moves from B = 0: the weight moves by s dB A, which A shapes
        assert abs(record.body.frobenius[1] / record.parameters[1] - 1) > 0.01


def test_m_prime_does_not_see_a_flip_and_the_step_does(spec: Any, go: Any) -> None:
    """The same rows flipped or left alone have one M'; the cosine of a row with itself is 1."""
    records = go(spec(attacks=[{**FLIP, "rates": [0.25, 0.5]}], kernel={"precision": "float64"}))
    few, many = (record.foretold for record in records)
    assert few.m_prime_cosine_fro == pytest.approx(1, abs=1e-12)
    assert few.m_prime_fro == pytest.approx(few.m_prime_op)  # a margin: one number
    assert many.changed == 2 * few.changed
    assert many.one_step > few.one_step > 0


def encoded(rows: list[list[int]], labels: list[int]) -> Encoded:
    features: list[Any] = [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": y}
        for row, y in zip(rows, labels, strict=True)
    ]
    return Encoded([str(i) for i in range(len(rows))], features, 0)


def test_rows_that_change_as_the_model_reads_them() -> None:
    clean = encoded([[1, 2], [3], [4]], [0, 1, 0])
    assert changed_rows(clean, clean) == []
    assert changed_rows(clean, encoded([[1, 2], [3, 9], [4]], [1, 1, 0])) == [0, 1]


def test_more_rows_than_the_gram_takes(tiny_bert: Path, load_tiny: Any) -> None:
    """The first rows stand for all, of a training set that is smaller in proportion."""
    tokenizer, model = load_tiny(tiny_bert)
    rows = [[2, i, 3] for i in range(4, 16)]
    clean = encoded(rows, [0] * 12)
    poisoned = encoded(rows, [1] * 8 + [0] * 4)
    model.double()

    def told(most: int | None, before: Encoded = clean, after: Encoded = poisoned) -> Any:
        return foretell(model, tokenizer, before, after, KernelSpec(train_rows=most), 2)

    assert (told(None).changed, told(None).used, told(2).used) == (8, 8, 2)
    assert told(8) == told(None)
    short = encoded(rows[:2] + rows[8:9], [0] * 3), encoded(rows[:2] + rows[8:9], [1, 1, 0])
    assert told(2).one_step == pytest.approx(told(None, *short).one_step, rel=EXACT)
    assert told(1).used == 1
    with pytest.raises(UserError, match="changed no row as the model reads it"):
        told(None, clean, clean)


def test_of_three_classes(spec: Any, go: Any, make_csv_folder: Any) -> None:
    source = str(make_csv_folder(classes=3))
    (record,) = go(spec(data={"source": source}, adapters=[{"method": "lora", "r": 2}]))
    assert record.foretold.one_step > record.foretold.one_step_body > 0
    assert record.foretold.m_prime_fro > record.foretold.m_prime_op > 0


# --- as measure trains ---------------------------------------------------------------------------


def test_trains_and_tests_what_measure_does(
    spec: Any, go: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of every step are the same numbers, and so are the classes that come out."""
    losses: list[list[float]] = []
    real = trainer.fine_tune

    def listened(*args: Any, **kwargs: Any) -> Any:
        done = real(*args, **kwargs)
        losses.append(done.loss)
        return done

    monkeypatch.setattr(trainer, "fine_tune", listened)
    both = spec(
        adapters=[{"method": "full"}, {"method": "lora", "r": 4, "loraplus_lr_ratio": 4.0}],
        attacks=[TRIGGER],
        model={"head": "probe-then-train"},
        training={"steps": 5, "learning_rate": 1e-3},
    )
    found = {record.poisoned.adapter.name: record for record in go(both)}
    ours, losses[:] = list(losses), []
    measured = run(both, tmp_path / "measured").records
    assert sorted(ours) == sorted(losses)
    assert len({tuple(line) for line in ours}) == 4
    tables = {
        (record.resolved.adapter.name, record.resolved.attack is None): pd.read_parquet(
            tmp_path / "measured" / record.predictions
        ).query("set == 'clean'")
        for record in measured
    }
    for arm, record in found.items():
        clean, poisoned = tables[arm, True], tables[arm, False]
        assert list(clean["id"]) == list(poisoned["id"])
        differ = float(np.mean(clean["predicted"].to_numpy() != poisoned["predicted"].to_numpy()))
        assert record.disagreement[-1] == pytest.approx(differ, rel=ROUNDED)
        assert record.steps == [0, 1, 2, 4, 5]
        assert record.body.frobenius[0] == 0 == record.body.clean[0]
        assert all(math.isnan(value[0]) for value in (record.body.relative, record.body.stable_rank))
        # A probe is fitted to the labels as given: the heads, and so the outputs, differ from the start.
        assert record.head_start > 0
        assert record.logits[0] > 0
        assert record.head_start_relative > 0


def test_layers_make_up_the_body(spec: Any, go: Any) -> None:
    full, lora = go(
        spec(
            adapters=[{"method": "full"}, {"method": "lora", "r": 4}], training={"steps": 3, "batch_size": 8}
        )
    )
    for record, vectors in ((full, 23), (lora, 0)):  # 13 biases and five norms
        parts = [np.array(part.frobenius) for part in record.matrices.values()]
        total = np.sqrt(np.sum(np.square(parts), axis=0))
        assert record.vectors == vectors
        if vectors:
            assert np.all(total <= np.array(record.body.frobenius) * (1 + ROUNDED))
        else:
            assert total == pytest.approx(np.array(record.body.frobenius), rel=ROUNDED)
        assert record.body.spectral[-1] >= max(part.spectral[-1] for part in record.matrices.values())
        assert not any(name.startswith("classifier") for name in record.matrices)
    assert all(part.rank[-1] <= 8 for part in lora.matrices.values())  # twice r
    assert max(part.rank[-1] for part in lora.matrices.values()) > 4
    assert max(part.rank[-1] for part in full.matrices.values()) > 8


def test_what_has_no_weight_is_counted_and_measured_as_it_is(spec: Any, go: Any) -> None:
    (record,) = go(spec(adapters=[{"method": "prompt_tuning", "num_virtual_tokens": 4}]))
    assert record.status == "completed", record.reason
    assert record.without == 4 * 32
    assert record.matrices == {}
    assert record.body.frobenius == [0.0] * len(record.steps)
    assert record.parameters[-1] > 0


# --- which steps, which pairs --------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 3, 16, 17, 1000, 1024, 1025, 10_000, 123_456])
def test_steps(total: int) -> None:
    steps = steps_to_look_at(total)
    assert steps[:2] == [0, 1]
    assert steps[-1] == total
    assert steps == sorted(set(steps))
    assert len(steps) <= MOST_STEPS
    ratios = [b / a for a, b in pairwise(steps[1:])]
    if total <= 1024:
        assert all(ratio <= 2 for ratio in ratios)
    assert max(ratios, default=1.0) <= max(2.0, 1.5 * total ** (1 / (MOST_STEPS - 2)))


def test_every_poisoned_run_has_its_clean_one(spec: Any) -> None:
    crossed = spec(
        adapters=[{"method": "full"}, {"method": "lora", "r": 2}],
        attacks=[{**FLIP, "rates": [0.0, 0.25, 0.5]}, TRIGGER],
        seeds={"data": [0, 1], "poison": [3, 4], "init": [5], "order": [6, 7]},
    )
    runs = plan(crossed, NOWHERE).runs
    pairs = pairs_of(runs, crossed.kernel)
    assert len(pairs) == 2 * 3 * 8
    assert {pair.poisoned.id for pair in pairs} == {run.id for run in runs if run.attack is not None}
    assert len({pair.id for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.clean.attack is None
        assert pair.clean.adapter == pair.poisoned.adapter
        for stream in ("data", "init", "order"):
            assert getattr(pair.clean.seeds, stream) == getattr(pair.poisoned.seeds, stream)


def test_without_an_attack_there_is_nothing_to_compare(spec: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="attacks: there is no attack, so nothing to compare"):
        preview(spec(attacks=[]), tmp_path, base_dir=NOWHERE)


# --- the folder ----------------------------------------------------------------------------------


def test_a_finished_pair_is_not_done_again(
    spec: Any, go: Any, tmp_path: Path, files_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spec(attacks=[{**FLIP, "rates": [0.25, 0.5]}])
    folder = tmp_path / "out"
    leftover = folder / experiment.SNAPSHOTS / "clean-0.safetensors"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    trained: list[str] = []
    real = trainer.fine_tune
    monkeypatch.setattr(trainer, "fine_tune", lambda *a, **k: (trained.append("run"), real(*a, **k))[1])
    first = go(asked)
    assert len(trained) == 3  # one clean run for two pairs
    assert files_in(folder) == {"spec.json", *(f"trajectories/{record.pair_id}.json" for record in first)}
    assert go(asked) == first
    assert len(trained) == 3
    path = result.path_of(folder, first[0].pair_id)
    path.write_text("{}")
    seen: list[Trajectory] = []
    again = trajectory(asked, folder, base_dir=NOWHERE, on_pair=seen.append)
    (problem,) = again.problems
    assert str(problem).startswith(f"{path}: not a foretaste trajectory")
    assert [record.pair_id for record in seen] == [first[0].pair_id]
    assert again.records[0].body == first[0].body
    assert len(trained) == 5
    # Another Gram is another result of the same runs.
    other = asked.model_copy(update={"kernel": KernelSpec(train_rows=3)})
    assert preview(other, folder, base_dir=NOWHERE).missing == preview(other, folder, base_dir=NOWHERE).pairs
    with pytest.raises(UserError, match="this folder holds another spec"):
        go(spec(attacks=[FLIP]))
    assert len(go(spec(attacks=[FLIP]), extend=True)) == 1


def test_a_record_survives_the_disk(spec: Any, go: Any, tmp_path: Path) -> None:
    (record,) = go(spec(attacks=[TRIGGER]))
    text = result.path_of(tmp_path / "out", record.pair_id).read_text()
    assert Trajectory.model_validate_json(text).model_dump_json() == text
    assert json.loads(text)["poisoned"]["attack"]["name"] == "trigger"
    assert record.versions.keys() >= {"torch", "peft"}


def test_too_small_a_disk_is_refused_before_training(
    spec: Any, go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spec(adapters=[{"method": "full"}, {"method": "lora", "r": 2}])
    shown = preview(asked, tmp_path, base_dir=NOWHERE)
    full, lora = shown.snapshot_bytes["full"], shown.snapshot_bytes["lora-r2"]
    assert full == 5 * load_bytes(asked) > lora  # steps 0, 1, 2, and two of the poisoned run
    monkeypatch.setattr(experiment.shutil, "disk_usage", lambda _: SimpleNamespace(free=full))
    with pytest.raises(UserError, match=r"snapshots take 0\.0 GB for a while"):
        go(asked)
    assert len(go(spec(adapters=[{"method": "lora", "r": 2}]), tmp_path / "other")) == 1


def load_bytes(asked: Any) -> int:
    """Of all weights of the spec's model, which full fine-tuning moves."""
    model = load.load_classifier(
        load.locate(asked.model, NOWHERE),
        "model",
        classes=["a", "b"],
        dtype=load.torch.float32,
        dropout=False,
        pad_token_id=None,
        meta=True,
    )
    return sum(p.numel() * p.element_size() for p in model.parameters())


# --- failures ------------------------------------------------------------------------------------


def test_a_run_that_diverges_leaves_a_record(spec: Any, go: Any) -> None:
    wild = spec(training={"learning_rate": 1e30, "steps": 4, "optimizer": "sgd", "max_grad_norm": None})
    (record,) = go(wild)
    assert record.status == "diverged"
    assert record.reason.startswith("clean run: ")
    assert (record.body, record.foretold) == (None, None)
    assert go(wild) == [record]  # a divergence is a result


def test_a_poisoned_run_that_fails_keeps_what_was_seen(
    spec: Any, go: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its status is an error, and the pair is done again; the steps before the failure are in the record."""
    real = trainer.fine_tune
    calls: list[int] = []

    def breaks(*args: Any, on_step: Any, **kwargs: Any) -> Any:
        calls.append(1)

        def stop(done: int, total: int) -> None:
            if len(calls) == 2 and done == 2:
                raise RuntimeError("lightning")
            on_step(done, total)

        return real(*args, on_step=stop, **kwargs)

    monkeypatch.setattr(trainer, "fine_tune", breaks)
    asked = spec(training={"steps": 3, "batch_size": 8})
    (record,) = go(asked)
    assert (record.status, record.reason) == ("error", "RuntimeError: lightning")
    assert record.steps == [0, 1]
    assert not (tmp_path / "out" / experiment.SNAPSHOTS).exists()
    (again,) = go(asked)
    assert (again.status, again.steps) == ("completed", [0, 1, 2, 3])


# --- tables --------------------------------------------------------------------------------------


def test_tables_hold_what_the_records_hold(spec: Any, go: Any) -> None:
    records = go(
        spec(
            adapters=[{"method": "full"}, {"method": "lora", "r": 2, "loraplus_lr_ratio": 4.0}],
            attacks=[FLIP, {**TRIGGER, "rates": [], "counts": [3]}],
            seeds=[0, 1],
        )
    )
    moments, matrices, pairs = (
        table(records) for table in (result.moments_table, result.matrices_table, result.pairs_table)
    )
    assert len(pairs) == len(records) == 8
    assert len(moments) == 8 * 3
    assert set(pairs["amount"]) == {"30 %", "3 rows"}
    for record in records:
        (pair,) = pairs[pairs["pair"] == record.pair_id].to_dict("records")
        own = moments[moments["pair"] == record.pair_id]
        assert list(own["frobenius"]) == record.body.frobenius
        assert list(own["parameters"]) == record.parameters
        assert (pair["first"], pair["last"]) == (record.body.frobenius[1], record.body.frobenius[-1])
        assert pair["mean"] == pytest.approx(np.mean(record.body.frobenius[1:]))  # every step was seen
        assert pair["last_relative"] == pytest.approx(record.body.frobenius[-1] / record.body.clean[-1])
        plus = record.poisoned.adapter.name != "full"
        rate = record.poisoned.training.learning_rate
        wanted = math.nan if plus else rate * record.foretold.one_step_body
        assert pair["foretold_step"] == pytest.approx(wanted, nan_ok=True)
        lines = matrices[(matrices["pair"] == record.pair_id) & (matrices["step"] == 2)]
        assert dict(zip(lines["matrix"], lines["spectral"], strict=True)) == {
            name: part.spectral[-1] for name, part in record.matrices.items()
        }
