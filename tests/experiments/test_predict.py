"""A prediction from a spec: what it says, what it never reads, and that training agrees where it must."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from foretaste import data
from foretaste.calibration.cells import PREDICTED
from foretaste.errors import UserError
from foretaste.experiments import predict as experiment
from foretaste.experiments import predicted
from foretaste.experiments.budgets import REACHES, Budgets, _Solved, budgets
from foretaste.experiments.captures import Captures, Reference, arm_key
from foretaste.experiments.plan import plan
from foretaste.experiments.pool import FEWEST_SPARE, cell_key
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.simulate import Simulated, nearest, place_of, references, simulate
from foretaste.models import heads
from foretaste.record import Layout, Record
from foretaste.spec import MeasureSpec
from foretaste.theory.flow import respond
from foretaste.theory.function_space import Tangent, cross_entropy, decisions
from foretaste.theory.layout import decide, one_hot
from foretaste.theory.ridge_head import head_smoother
from foretaste.training import trainer
from foretaste.training.order import step_batches

NOWHERE = Path("/nonexistent")
ROWS, DRAWN, USED, HELD = 130, 40, 32, 64
CHOICES: dict[str, Any] = {"train_rows": USED, "held_out": HELD, "entries": 3000, "references": 1}
FLIPS = {"method": "label-flip", "rates": [0.25]}
TRIGGER = {"method": "trigger", "text": "cf", "target": "positive", "rates": [0.5]}
LORA = {"method": "lora", "r": 2}


@pytest.fixture(scope="module", autouse=True)
def _one_penalty() -> Iterator[None]:
    """The head's penalty is not searched for, which saves most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "PENALTIES", np.array([1.0]))
        yield


@pytest.fixture(scope="module")
def folder(make_csv_folder: Callable[..., Path]) -> Path:
    return make_csv_folder(train=ROWS)


@pytest.fixture(scope="module")
def make(folder: Path, tiny_bert: Path) -> Callable[..., MeasureSpec]:
    """`make(**sections)`: a spec of a clean and two poisoned cells for full fine-tuning and LoRA."""

    def spec(**sections: Any) -> MeasureSpec:
        base: dict[str, Any] = {
            "data": {"source": str(folder), "train_rows": DRAWN},
            "model": {"base": str(tiny_bert), "max_length": 32},
            "adapters": [{"method": "full"}, LORA],
            "attacks": [FLIPS, TRIGGER],
            "training": {"steps": 6, "batch_size": 8, "learning_rate": 0.003},
            "predict": CHOICES,
            "seeds": [0],
        }
        for key, value in sections.items():
            merged = key in {"data", "model", "training", "predict"}
            base[key] = {**base[key], **value} if merged else value
        return MeasureSpec.model_validate(base)

    return spec


def run(spec: MeasureSpec, folder: Path, **options: Any) -> experiment.Predicted:
    return experiment.predict(spec, folder, **{"base_dir": NOWHERE} | options)


def captures_of(spec: MeasureSpec) -> Captures:
    return Captures(spec, plan(spec, NOWHERE), Workspace(Path(), NOWHERE, spec.name, {}), None)


class Steps:
    """The parts of a prediction, one after the other."""

    def __init__(self, spec: MeasureSpec) -> None:
        self.captures = captures_of(spec)
        self.runs = self.captures.planned.runs
        self.references: list[Reference] = references(self.captures, self.runs)
        self.simulated: dict[str, Simulated] = simulate(self.captures, self.references, self.runs)

    def budgets(self) -> Budgets:
        return budgets(self.captures, self.references, self.runs, self.simulated)


def said(record: Record) -> dict[str, Any]:
    """Everything that is predicted, times aside."""
    assert record.prediction is not None
    return {
        "prediction": record.prediction.model_copy(update={"seconds": 0.0}).model_dump(),
        "clean": record.clean,
        "triggered": record.triggered,
        "poison": record.poison,
        "notes": record.notes,
        "status": record.status,
    }


@pytest.fixture(scope="module")
def small(make: Any, tmp_path_factory: pytest.TempPathFactory) -> experiment.Predicted:
    return run(make(), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def whole(make: Any, tmp_path_factory: pytest.TempPathFactory) -> experiment.Predicted:
    """Three arms x (clean, a rate, a count, a trigger) x two seeds."""
    few = {"method": "label-flip", "name": "few", "counts": [10]}
    spec = make(
        adapters=[{"method": "full"}, LORA, {"method": "ia3"}], attacks=[FLIPS, few, TRIGGER], seeds=[0, 1]
    )
    return run(spec, tmp_path_factory.mktemp("whole"))


# --- records --------------------------------------------------------------------------------------


def test_there_is_a_record_for_every_run(whole: experiment.Predicted, make: Any) -> None:
    spec = MeasureSpec.model_validate(whole.records[0].request)
    assert sorted(r.run_id for r in whole.records) == sorted(r.id for r in plan(spec, NOWHERE).runs)
    assert len(whole.records) == 3 * 4 * 2
    read, problems = Layout(whole.folder / PREDICTED).read()
    assert problems == []
    assert {record.run_id: record for record in read} == {record.run_id: record for record in whole.records}
    for record in whole.records:
        assert (record.kind, record.status, record.run_id) == ("predicted", "completed", record.resolved.id)
        assert (record.training, record.timings, record.predictions) == (None, None, None)
        assert record.clean is not None
        assert (record.poison is None) == (record.resolved.attack is None)
        assert "predicted on 32 of 40 training rows" in record.notes


def test_a_measurement_of_the_same_spec_has_the_same_ids(
    make: Any, run: Callable[..., Any], tmp_path: Path
) -> None:
    """And a head that starts random is said to be outside of what the prediction can do."""
    spec = make(attacks=[FLIPS], training={"steps": 1}, model={"head": "random-then-train"})
    foretold = experiment.predict(spec, tmp_path, base_dir=NOWHERE).records
    measured = run(spec, tmp_path).records
    assert {r.run_id for r in foretold} == {r.run_id for r in measured}
    by_id = {r.run_id: r for r in measured}
    for record in foretold:
        assert record.prediction is not None
        assert record.prediction.validity == "outside"
        assert "the head starts random" in record.prediction.reasons[0]
        assert record.resolved == by_id[record.run_id].resolved
        assert record.prediction.trainable_parameters == by_id[record.run_id].training.trainable_parameters
        assert record.prediction.steps == by_id[record.run_id].training.steps


def test_what_a_record_says_agrees_with_itself(whole: experiment.Predicted) -> None:
    """The cell's outcome is the mean over its records, and the prediction is one for the whole cell."""
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in whole.records:
        attack = record.resolved.attack
        cells.setdefault((record.resolved.adapter.name, attack.name if attack else "clean"), []).append(
            record
        )
    assert len(cells) == 12
    for (arm, attack), members in cells.items():
        foretold = members[0].prediction
        assert foretold is not None
        assert all(record.prediction == foretold for record in members)
        assert (foretold.draws, foretold.train_rows, foretold.held_out) == (2, USED, HELD)
        assert foretold.held_out_from == "64 training rows that the draw leaves out"
        assert foretold.steps == 6
        accuracies = [record.clean.accuracy for record in members if record.clean]
        assert foretold.accuracy.mean == pytest.approx(np.mean(accuracies))
        assert foretold.budgets["as-trained"].accuracy == pytest.approx(np.mean(accuracies))
        assert set(foretold.budgets) == {"as-trained", "matched", "converged"}
        assert foretold.accuracy.low <= foretold.accuracy.mean <= foretold.accuracy.high
        if attack == "trigger":
            assert foretold.target_rate is not None
            rates = [t.target_rate for record in members for t in record.triggered.values()]
            assert foretold.target_rate.mean == pytest.approx(np.mean(rates))
            before = [t.target_rate for record in cells[arm, "clean"] for t in record.triggered.values()]
            assert foretold.baseline_target_rate == pytest.approx(np.mean(before))
        else:
            assert foretold.target_rate is None
            assert foretold.baseline_target_rate is None
        counts = {c.flips for c in foretold.certified}
        assert counts == {1, 2, 5, 8, 10, 20}
        shares = [c.share for c in foretold.certified]
        assert shares == sorted(shares, reverse=True)
        assert not any(isinstance(v, float) and np.isnan(v) for v in foretold.indicators.values())
        expected = "doubtful" if arm == "ia3" else foretold.validity
        assert foretold.validity == expected
    assert len({r.clean.accuracy for r in whole.records if r.clean}) > 2  # predictions that differ


def test_counts_scale_with_the_rows_and_rates_do_not(whole: experiment.Predicted) -> None:
    for record in whole.records:
        if record.resolved.attack is not None and record.resolved.attack.method == "label-flip":
            assert record.poison is not None
            asked = record.resolved.attack.count
            assert asked in (None, 10)
            assert record.poison.poisoned == 8  # a quarter of 32; 10 of 40
            assert record.poison.rows == USED
            assert record.poison.requested_count == (None if asked is None else 8)


def test_named_flips_are_an_attack_on_the_same_data(whole: experiment.Predicted, make: Any) -> None:
    for arm in ("full", "lora-r2", "ia3"):
        path = whole.folder / PREDICTED / "flips" / f"{arm}.json"
        named = json.loads(path.read_text())
        assert (named["arm"], named["classes"]) == (arm, ["negative", "positive"])
        assert 1 <= len(named["flips"]) <= 20
        spec = make(attacks=[{"method": "adversarial-flip", "named_by": str(path), "counts": [1]}])
        assert len(plan(spec, NOWHERE).runs) == 4


def test_a_second_prediction_takes_the_place_of_the_first(make: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"adapters": [LORA], "model": {"head": "random-then-train"}}
    first = run(make(attacks=[FLIPS], **options), tmp_path)
    second = run(make(attacks=[TRIGGER], **options), tmp_path)
    read, _ = Layout(tmp_path / PREDICTED).read()
    assert {r.run_id for r in read} == {r.run_id for r in second.records}
    assert {r.run_id for r in read} != {r.run_id for r in first.records}


# --- what is never read ---------------------------------------------------------------------------


def test_test_rows_are_never_read(
    small: experiment.Predicted, make: Any, folder: Path, tmp_path: Path
) -> None:
    """Other texts and labels in the test split: other data by name, the same prediction to the last bit."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.csv").write_text((folder / "train.csv").read_text())
    with (folder / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows][::-1]
    assert labels != [row["label"] for row in rows]
    with (tmp_path / "rows" / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            {**row, "text": f"banana {i}", "label": label}
            for i, (row, label) in enumerate(zip(rows, labels, strict=True))
        )
    other = run(make(data={"source": str(tmp_path / "rows")}), tmp_path / "sweep")
    assert [said(r) for r in other.records] == [said(r) for r in small.records]
    assert not {r.run_id for r in other.records} & {r.run_id for r in small.records}


def test_nothing_is_trained_and_a_prediction_repeats(
    small: experiment.Predicted, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something is trained")

    monkeypatch.setattr(trainer, "fine_tune", never)
    monkeypatch.setattr(transformers.Trainer, "train", never)
    for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, transformers.Adafactor):
        monkeypatch.setattr(kind, "step", never)
    again = run(make(), tmp_path)
    assert [said(r) for r in again.records] == [said(r) for r in small.records]
    assert [r.run_id for r in again.records] == [r.run_id for r in small.records]


def test_the_base_model_in_memory_is_not_changed(
    make: Any, tiny_bert: Path, load_tiny: Any, tmp_path: Path
) -> None:
    from foretaste.experiments.plan import Resources

    tokenizer, model = load_tiny(tiny_bert)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(make(attacks=[FLIPS]), tmp_path, resources=Resources(model=model, tokenizer=tokenizer))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("test_split", [True, False])
@pytest.mark.parametrize("count", [0, 7, 1000])
def test_spare_rows_are_neither_drawn_nor_tested(test_split: bool, count: int, make_rows: Any) -> None:
    loaded = data.Loaded(
        train=make_rows(60),
        test=make_rows(20, prefix="test") if test_split else None,
        classes=["negative", "positive"],
        test_split="test" if test_split else None,
        notes=[],
    )
    request = MeasureSpec.model_validate(
        {
            "data": {"source": "x", "train_rows": 30, "test_fraction": 0.25},
            "model": {"base": "x"},
            "adapters": [{"method": "full"}],
        }
    ).data
    for seed in range(3):
        drawn = data.draw(loaded, request, seed)
        left = data.spare(loaded, request, seed, count)
        total = 60 if test_split else 45
        assert len(left) == min(count, total - 30)
        ids = [*drawn.train["id"], *left["id"]]
        assert len(set(ids)) == len(ids)
        assert not set(ids) & set(drawn.test["id"])
        # They are the next of the same order: a larger draw begins with them.
        larger = request.model_copy(update={"train_rows": 30 + len(left)})
        assert data.draw(loaded, larger, seed).train["id"][:] == ids
        everything = request.model_copy(update={"train_rows": None})
        assert len(data.spare(loaded, everything, seed, count)) == 0


@pytest.mark.parametrize("drawn", [DRAWN, ROWS - FEWEST_SPARE, ROWS - FEWEST_SPARE + 1, None])
def test_held_out_rows_are_left_over_or_a_fifth(drawn: int | None, make: Any) -> None:
    spec = make(data={"train_rows": drawn}, model={"head": "random-then-train"}, predict={"train_rows": 1000})
    pool = captures_of(spec).pool
    split = data.draw(captures_of(spec).planned.loaded, spec.data, 0)
    ids = np.array(pool.encoded.ids)
    train, held = set(pool.ids), set(ids[pool.held_out])
    assert not train & held
    assert not (train | held) & set(split.test["id"])
    assert train <= set(split.train["id"])
    asked = drawn or ROWS
    if asked <= ROWS - FEWEST_SPARE:
        assert pool.train == asked
        assert not held & set(split.train["id"])
        assert len(held) == HELD
        assert pool.held_out_from == "64 training rows that the draw leaves out"
    else:
        fifth = asked // 5
        assert held <= set(split.train["id"])
        assert (pool.train, len(held)) == (asked - fifth, fifth)
        assert pool.held_out_from == f"a fifth of the training rows ({fifth} used)"
    for rows in pool.triggered.values():
        assert (ids[rows.rows] == ids[pool.held_out]).all()
        assert rows.changed == len(held)
    backdoored = next(cell for key, cell in pool.cells.items() if "trigger" in key)
    changed = backdoored.rows != np.arange(pool.train)
    assert (ids[backdoored.rows] == ids[: pool.train]).all()
    assert backdoored.rows[changed].min() >= pool.train
    assert backdoored.rows.max() == pool.trainable - 1
    assert changed.sum() == len(backdoored.manifest.poisoned)


def test_held_out_rows_are_cut_as_test_rows_are(make: Any) -> None:
    spec = make(model={"max_length": 8, "eval_max_length": 5, "head": "random-then-train"})
    pool = captures_of(spec).pool
    lengths = np.array(pool.encoded.lengths)
    assert lengths[: pool.trainable].max() == 8
    assert lengths[pool.trainable :].max() == 5


def test_a_list_of_flips_for_other_rows_is_a_record_that_says_so(make: Any, tmp_path: Path) -> None:
    spec = make(adapters=[LORA], model={"head": "random-then-train"})
    planned = plan(spec, NOWHERE)
    drawn = data.draw(planned.loaded, spec.data, 0).train
    ids, labels = list(drawn["id"]), list(drawn["label"])
    for name, row in (("inside", 0), ("beyond", DRAWN - 1)):  # the prediction takes the first 32 of the 40
        content = {
            "format": 1,
            "arm": "lora",
            "kernel": "none",
            "classes": ["negative", "positive"],
            "data": planned.runs[0].data.fingerprint,
            "flips": [{"id": ids[row], "label": 1 - labels[row]}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    named = [
        {
            "method": "adversarial-flip",
            "name": name,
            "named_by": str(tmp_path / f"{name}.json"),
            "counts": [1],
        }
        for name in ("inside", "beyond")
    ]
    spec = make(adapters=[LORA], attacks=[FLIPS, *named], model={"head": "random-then-train"})
    found = run(spec, tmp_path / "sweep")
    by_name = {r.resolved.attack.name if r.resolved.attack else "clean": r for r in found.records}
    assert {name: r.status for name, r in by_name.items()} == {
        "clean": "completed",
        "label-flip": "completed",
        "inside": "completed",
        "beyond": "error",
    }
    refused = by_name["beyond"]
    assert refused.reason is not None
    assert "are not among the 32 training rows" in refused.reason
    assert (refused.prediction, refused.clean, refused.poison) == (None, None, None)
    assert any(note.startswith("not predicted:") for note in found.notes)
    assert by_name["inside"].poison is not None
    assert by_name["inside"].poison.poisoned == 1


# --- other specs ----------------------------------------------------------------------------------


def test_three_classes_and_a_method_beside_lora(
    make: Any, make_csv_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_csv_folder(train=ROWS, classes=3)
    spec = make(
        data={"source": str(source), "train_rows": 100},
        adapters=[LORA, {"method": "dora", "r": 2}],
        predict={"train_rows": 24},
    )
    found = run(spec, tmp_path)
    assert len(found.records) == 6
    for record in found.records:
        foretold = record.prediction
        assert record.clean is not None
        assert foretold is not None
        assert [c.name for c in record.clean.per_class] == ["negative", "neutral", "positive"]
        assert all(0.0 <= c.share <= 1.0 and 0.0 <= c.random <= 1.0 for c in foretold.certified)
        if record.resolved.adapter.method == "dora":
            assert foretold.validity != "valid"
            assert "linearity in the weights was not checked for this method" in foretold.reasons
        if record.resolved.attack is not None and record.resolved.attack.method == "trigger":
            assert record.triggered
            assert foretold.target_rate is not None


def test_a_frozen_head_is_not_trained(make: Any) -> None:
    """Under `paper` PEFT arms leave the head alone, full fine-tuning does not."""
    queries = {**LORA, "name": "queries", "target_modules": ["query"]}
    spec = make(adapters=[{"method": "full"}, queries], attacks=[], model={"head": "paper"})
    steps = Steps(spec)
    arms = {arm.run.adapter.name: (key, arm) for key, arm in steps.captures.arms.items()}
    key, arm = arms["queries"]
    assert arm.lora is None
    frozen, full = (steps.references[0].tangents[k] for k in (key, arms["full"][0]))
    assert full.last is not None
    assert frozen.last is None
    # B of two layers of 32 x 2; A's gradient is zero at B = 0, so all of the kernel has that rank at most.
    assert np.linalg.matrix_rank(frozen.plain[:USED], tol=1e-5 * np.abs(frozen.plain).max()) <= 32
    assert np.trace(frozen.plain[:USED]) < 0.5 * np.trace(full.plain[:USED])


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"optimizer": "adafactor"}, "adafactor is not modelled"),
        ({"dropout": True}, "dropout is not modelled"),
        ({"weight_decay": 0.1}, "weight decay is not modelled"),
    ],
)
def test_what_is_not_modelled_is_said(
    training: dict[str, Any], reason: str, make: Any, tmp_path: Path
) -> None:
    found = run(make(adapters=[LORA], attacks=[], training=training), tmp_path)
    (record,) = found.records
    assert record.prediction is not None
    assert any(reason in text for text in record.prediction.reasons)
    if "optimizer" in training:
        assert record.prediction.validity == "outside"


# --- against training -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "training", "within"),
    [
        ({"method": "full"}, {"optimizer": "sgd", "learning_rate": 0.002}, 0.05),
        (
            LORA,
            {"optimizer": "sgd", "learning_rate": 0.002, "batch_size": 4, "gradient_accumulation": 2},
            0.05,
        ),
        ({"method": "full"}, {"learning_rate": 2e-5}, 0.4),
        (LORA, {"learning_rate": 5e-4}, 0.2),
        ({"method": "loraplus", "r": 2}, {"optimizer": "sgd", "learning_rate": 0.00025}, 0.05),
        ({"method": "loraplus", "r": 2}, {"learning_rate": 5e-5}, 0.2),
        (
            {**LORA, "init_lora_weights": False, "loraplus_lr_ratio": 8.0},
            {"optimizer": "sgd", "learning_rate": 0.00025},
            0.05,
        ),
        ({"method": "prompt_tuning", "num_virtual_tokens": 3}, {"optimizer": "sgd"}, 0.05),
    ],
    ids=[
        "sgd full",
        "sgd lora, accumulated",
        "adamw full",
        "adamw lora",
        "sgd loraplus",
        "adamw loraplus",
        "sgd loraplus as peft builds it",
        "sgd prompt tuning",
    ],
)
def test_losses_of_a_short_run_are_those_of_training(
    adapter: Any,
    training: dict[str, Any],
    within: float,
    make: Any,
    run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """With all entries and all rows: heads, order, rates and clipping as in training.

    What is left for SGD is the curvature of the model, which a small rate makes small (seen: 2 %); for AdamW
    also second moments that do not keep their pattern (seen: 26 % and 12 %). No change at all would be 100 %.
    """
    spec = make(
        adapters=[adapter],
        attacks=[FLIPS],
        training={"steps": 12, **training},
        predict={"train_rows": DRAWN, "entries": 10**7},
    )
    steps = Steps(spec)
    for record in run(spec, tmp_path).records:
        assert record.training is not None
        mine = steps.simulated[record.run_id].losses
        one = next(r for r in steps.runs if r.id == record.run_id)
        cell = steps.captures.pool.cells[cell_key(one)]
        start, _ = steps.captures.start(cell, nearest(steps.references, cell), arm_key(one))
        if adapter.get("loraplus_lr_ratio") or adapter["method"] == "loraplus":
            tangent = nearest(steps.references, cell).tangents[arm_key(one)]
            assert np.abs(tangent.followed - tangent.plain).max() > 0.1 * np.abs(tangent.plain).max()
        size, more = one.training.batch_size, one.training.gradient_accumulation
        batches = step_batches(
            steps.captures.pool.lengths, size, 12, seed=0, by_length=True, accumulation=more
        )
        still = np.array([cross_entropy(start[cell.rows[b]], cell.labels[b]) for b in batches])
        real = np.array(record.training.loss)
        assert mine[0] == pytest.approx(real[0], abs=2e-6, rel=1e-5)  # six digits, of float32 sums
        moved = np.abs(real - still).max()
        assert moved > 0.005
        assert np.abs(mine - real).max() <= within * moved


@pytest.mark.parametrize("head", ["probe-then-train", "random-then-train"])
@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "prompt_tuning", "num_virtual_tokens": 3},
        {"method": "p_tuning", "num_virtual_tokens": 3},
        {"method": "prefix_tuning", "num_virtual_tokens": 3},
        {"method": "fourierft", "n_frequency": 40},
        {"method": "vblora", "num_vectors": 4, "vector_length": 4, "topk": 2},
        {**LORA, "init_lora_weights": False},
    ],
    ids=lambda adapter: adapter["method"],
)
def test_a_method_that_changes_the_outputs_at_the_start_starts_from_them(
    adapter: Any, head: str, make: Any, run: Callable[..., Any], tmp_path: Path
) -> None:
    """The first loss is that of the arm as peft builds it, under the head that the base model was given."""
    spec = make(
        adapters=[{"method": "full"}, adapter],
        attacks=[FLIPS],
        training={"steps": 1},
        model={"head": head},
        predict={"train_rows": DRAWN, "references": 0},
    )
    steps = Steps(spec)
    first: dict[str, dict[str, float]] = {}
    for record in run(spec, tmp_path).records:
        assert record.training is not None
        mine, real = steps.simulated[record.run_id].losses[0], record.training.loss[0]
        # Records keep six digits; batches of other rows are padded otherwise, which float32 shows.
        assert mine == pytest.approx(real, abs=2e-6, rel=1e-5)
        cell = record.resolved.attack.name if record.resolved.attack else "clean"
        first.setdefault(cell, {})[record.resolved.adapter.name] = real
    for losses in first.values():  # and it is another one
        one, other = losses.values()
        assert abs(one - other) > 1e-4
    found = steps.budgets()
    assert set(found.fitted) == {arm.run.adapter.name for arm in steps.captures.arms.values()}


def test_seeds_of_the_order_change_the_batches_alone(make: Any) -> None:
    seeds = {"data": [0], "poison": [0], "init": [0], "order": [0, 1]}
    steps = Steps(make(adapters=[LORA], attacks=[], seeds=seeds))
    first, second = (steps.simulated[r.id] for r in steps.runs)
    assert (first.probe.clean == second.probe.clean).all()
    assert np.abs(first.losses - second.losses).max() > 0.01


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("width", [4, 60], ids=["low rank", "full rank"])
def test_without_end_is_the_minimum_norm_solution(c: int, width: int) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(11, c, width))
    plain = np.einsum("icp,jdp->icjd", x, x[:8]).reshape(11 * c, 8 * c)
    rows, labels, start = np.array([5, 0, 7, 2, 3]), g.integers(0, max(c, 2), 5), g.normal(size=(11, c))
    solved = _Solved(Tangent(plain, None, None, None, 0.0, c), rows)
    after = solved.outputs(1.0, start, labels)
    targets = np.eye(c)[labels] if c > 1 else (2.0 * labels - 1)[:, None]
    flat = x.reshape(-1, width)
    train = x[rows].reshape(-1, width)
    theta = np.linalg.pinv(train) @ (targets - start[rows]).reshape(-1)
    assert after[1] == pytest.approx((start.reshape(-1) + flat @ theta).reshape(11, c), abs=1e-8)
    # At a budget: gradient flow on the squared loss, by literal small steps; the mean diagonal is the unit.
    kernel = train @ train.T
    time, small = 1.0 * 5 / np.mean(np.diag(kernel)), 20_000
    w = np.zeros(width)
    for _ in range(small):
        w -= time / small / 5 * train.T @ (start[rows].reshape(-1) + train @ w - targets.reshape(-1))
    assert after[0] == pytest.approx((start.reshape(-1) + flat @ w).reshape(11, c), abs=1e-3)
    predictor = solved.predictor(1.0, start, np.array([9, 10]))
    assert respond(predictor, one_hot(2 * labels - 1 if c == 1 else labels, predictor.layout)).reshape(
        2, c
    ) == pytest.approx(after[0][[9, 10]], abs=1e-9)


def test_the_reach_is_the_first_that_fits() -> None:
    g = np.random.default_rng(1)
    x = g.normal(size=(12, 1, 40))
    plain = np.einsum("icp,jdp->icjd", x, x).reshape(12, 12)
    labels, start, rows = g.integers(0, 2, 12), 3 * g.normal(size=(12, 1)), np.arange(12)
    solved = _Solved(Tangent(plain, None, None, None, 0.0, 1), rows)

    def fitted(reach: float) -> float:
        return float(np.mean(decisions(solved.outputs(reach, start, labels)[0]) == labels))

    for share in (0.75, 1.0):
        reach = solved.reach(start, labels, share)
        at = int(np.flatnonzero(reach == REACHES)[0])
        assert at > 0
        assert fitted(reach) >= share > fitted(REACHES[at - 1])
    assert solved.reach(start, labels, 0.0) == REACHES[0]


@pytest.fixture(scope="module")
def tiny(make: Any) -> tuple[Steps, Budgets]:
    """Sixteen training rows: few enough to try every set of flips."""
    steps = Steps(make(attacks=[FLIPS], predict={"train_rows": 16}))
    return steps, steps.budgets()


def test_budgets_of_a_prediction_are_those_of_its_kernels(tiny: tuple[Steps, Budgets]) -> None:
    steps, found = tiny
    pool = steps.captures.pool
    assert set(found.fitted) == {"full", "lora-r2"}
    compared = 0
    for one in steps.runs:
        cell = pool.cells[cell_key(one)]
        reference = nearest(steps.references, cell)
        start, _ = steps.captures.start(cell, reference, arm_key(one))
        plain = reference.tangents[arm_key(one)].plain
        held = np.flatnonzero(np.isin(reference.rows, pool.held_out))
        square = plain[cell.rows][:, cell.rows]
        w = np.linalg.pinv(square, rcond=1e-6, hermitian=True) @ (2.0 * cell.labels - 1 - start[cell.rows, 0])
        after = start[held, 0] + plain[held][:, cell.rows] @ w
        clear = np.abs(after) > 0.05  # float32 kernels leave the smallest directions uncertain
        compared += clear.sum()
        got = found.converged[one.adapter.name, cell_key(one)].clean
        assert (got[clear] == (after > 0)[clear]).all()
    assert compared > 0.8 * 4 * HELD


def test_the_first_arm_at_the_matched_budget_fits_as_trained(make: Any) -> None:
    """Where no head is fitted to labels, the linear predictor is the matched flow itself."""
    steps = Steps(make(attacks=[FLIPS], predict={"train_rows": 16}, model={"head": "random-then-train"}))
    found = steps.budgets()
    assert found.matched["full", "clean"].clean.shape == (HELD,)
    predictor = found.fitted["full"]
    labels = steps.captures.pool.cells["clean"].labels
    outputs = respond(predictor, one_hot(2 * labels - 1, predictor.layout))
    assert (found.matched["full", "clean"].clean == (outputs > 0)).all()
    curves = experiment._certified(steps.captures, found, steps.runs)
    assert {item.head for curve in curves.values() for item in curve} == {"fixed"}


def test_a_head_that_runs_refit_is_refitted_in_the_worst_case(tiny: tuple[Steps, Budgets]) -> None:
    """For any labels: ridge regression on the model's own features, then its kernel's flow from there."""
    steps, found = tiny
    pool, base = steps.captures.pool, steps.references[0]
    hidden, rows = steps.captures.hidden, pool.cells["clean"].rows
    assert hidden is not None
    held = place_of(base, pool.held_out)
    clean = 2.0 * pool.cells["clean"].labels - 1
    g = np.random.default_rng(0)
    for one in steps.runs:
        if one.attack is not None:
            continue
        solved = _Solved(base.tangents[arm_key(one)], rows)
        inner, outer = (head_smoother(hidden[rows], hidden[some], clean) for some in (rows, base.rows))
        share = steps.simulated[one.id].fitted
        reach = solved.reach((outer @ clean)[:, None], pool.cells["clean"].labels, share)
        predictor = found.following[one.adapter.name]
        for _ in range(5):
            labels = np.where(g.random(len(rows)) < 0.3, -clean, clean)
            # The penalty stays that of the clean labels, so the head of any labels is linear in them.
            start = (outer @ labels)[:, None]
            assert start[: len(rows), 0] == pytest.approx(inner @ labels)
            after = solved.outputs(reach, start, ((labels + 1) // 2).astype(int))[0]
            targets = one_hot(labels.astype(int), predictor.layout)
            assert respond(predictor, targets) == pytest.approx(after[held, 0], abs=1e-9)
    curves = experiment._certified(steps.captures, found, steps.runs)
    assert {item.head for curve in curves.values() for item in curve} == {"refitted"}


def test_no_set_of_flips_goes_below_the_certificate(tiny: tuple[Steps, Budgets]) -> None:
    """Every set of up to three of sixteen labels; for each row alone the certificate is exact."""
    steps, found = tiny
    pool = steps.captures.pool
    labels, truth = 2 * pool.cells["clean"].labels - 1, 2 * pool.labels(pool.held_out) - 1
    curves = experiment._certified(steps.captures, found, steps.runs)
    for arm, predictor in found.following.items():
        for certified in curves[arm][:2]:
            sets = list(itertools.combinations(range(16), certified.flips))
            flipped = np.repeat(labels[None], len(sets), 0)
            for i, chosen in enumerate(sets):
                flipped[i, list(chosen)] *= -1
            outputs = respond(predictor, one_hot(flipped, predictor.layout))
            right = decide(outputs, predictor.rows) == truth
            assert right.mean(1).min() >= certified.share - 1e-12
            # At most as many flips are certified: fewer, none included, are sets of the attacker too.
            fewer = [right.all(0)]
            for less in range(certified.flips):
                for chosen in itertools.combinations(range(16), less):
                    one = labels.copy()
                    one[list(chosen)] *= -1
                    fewer.append(
                        decide(respond(predictor, one_hot(one, predictor.layout)), predictor.rows) == truth
                    )
            assert certified.share == pytest.approx(np.all(fewer, axis=0).mean())
            assert certified.random == pytest.approx(right.mean(), abs=0.1)  # by the normal law, of 16 rows


# --- intervals ------------------------------------------------------------------------------------

TRIALS = 5_000


@pytest.mark.parametrize(
    ("rows", "tested", "draws", "between", "error"),
    [
        (256, 1024, 1, 0.0, 0.0),
        (512, 128, 1, 0.0, 0.0),
        (256, 256, 1, 0.0, 0.04),
        (512, 512, 12, 0.1, 0.0),
        (256, 1024, 12, 0.05, 0.04),
    ],
)
def test_intervals_hold_the_measured_share(
    rows: int, tested: int, draws: int, between: float, error: float
) -> None:
    """A true share, a wrong model of it, draws around both, and rows that are right or not.

    Four binomial errors of a share of 5,000 trials are 0.017. Beyond these, 0.01 is for shares that are whole
    numbers of rows, for variances that are estimated, and for twelve draws instead of many.
    """
    g = np.random.default_rng([rows, tested, draws, int(100 * between), int(100 * error)])
    inside = 0
    truth = g.uniform(0.6, 0.85, TRIALS)
    for share in truth:
        model = share + error * g.normal()
        mine = np.clip(model + between * g.normal(size=draws), 0, 1)
        # The same rows for all draws: what a row adds is common to them.
        luck = g.binomial(rows, np.clip(share, 0, 1)) / rows - share
        foretold = predicted.interval(list(np.clip(mine + luck, 0, 1)), rows, tested, error)
        real = share + between * g.normal(size=draws).mean()
        measured = g.binomial(tested, np.clip(real, 0, 1)) / tested
        inside += foretold.low <= measured <= foretold.high
    assert inside / TRIALS == pytest.approx(0.9, abs=0.01 + 4 * np.sqrt(0.09 / TRIALS))


def test_intervals_at_the_ends_stay_inside_and_open() -> None:
    sure = predicted.interval([1.0], 50, 100, 0.0)
    assert (sure.mean, sure.high) == (1.0, 1.0)
    assert 0.9 < sure.low < 1.0  # that all 50 rows agree is no proof
    none = predicted.interval([0.0, 0.0], 50, 100, 0.0)
    assert none.low == 0.0
    assert none.high == pytest.approx(1.0 - sure.low)


def test_an_overflow_names_the_rate(make: Any, tmp_path: Path) -> None:
    spec = make(
        adapters=[LORA], attacks=[], training={"learning_rate": 1e300}, model={"head": "random-then-train"}
    )
    with pytest.raises(UserError, match="overflow"):
        run(spec, tmp_path)
