"""From a spec to records, manifests and predictions: a whole sweep, its numbers computed a second time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import foretaste
from foretaste.record import Layout, Manifest, Record, read_manifest
from foretaste.report import report
from foretaste.spec import MeasureSpec

CLASSES = ["negative", "positive"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, content: Any, run: Any) -> Any:
    """Two adapters x (clean, label-flip at two rates, trigger) x two seeds, with the default head."""
    spec = MeasureSpec.model_validate(
        content(
            name="whole",
            model={"head": "probe-then-train"},
            adapters=[{"method": "full"}, {"method": "lora", "r": 4, "init": {"law": "gaussian", "k": 1.0}}],
            attacks=[
                {"method": "label-flip", "rates": [0.25]},
                {"method": "trigger", "text": "cf", "target": "positive", "rates": [0.5]},
            ],
            training={"steps": 4, "learning_rate": 0.01},
            seeds=[3, 4],
        )
    )
    return run(spec, tmp_path_factory.mktemp("whole") / "sweep")


@pytest.fixture(scope="module")
def records(sweep: Any) -> list[Record]:
    return list(sweep.records)


def poisoned(records: list[Record]) -> list[Record]:
    return [record for record in records if record.resolved.attack is not None]


def csv_rows(source: str, name: str) -> dict[str, dict[str, str]]:
    with (Path(source) / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def manifest_of(record: Record, folder: Path) -> Manifest:
    assert record.poison is not None
    return read_manifest(folder / record.poison.manifest)


# --- what is there -------------------------------------------------------------------------------


def test_every_run_is_there_once(sweep: Any, records: list[Record]) -> None:
    assert sweep.statuses == {"completed": 2 * 3 * 2}
    assert len({record.run_id for record in records}) == 12
    read, problems = Layout(sweep.folder).read()
    assert problems == []
    assert {record.run_id: record for record in read} == {record.run_id: record for record in records}


def test_runs_come_by_seed_then_amount_then_adapter(records: list[Record]) -> None:
    order = [
        (r.resolved.seeds.data, r.resolved.attack.name if r.resolved.attack else "", r.resolved.adapter.name)
        for r in records
    ]
    arms = ["full", "lora-r4"]
    assert order == [(s, a, arm) for s in (3, 4) for a in ("", "label-flip", "trigger") for arm in arms]


def test_records_are_complete(records: list[Record], sweep: Any) -> None:
    for record in records:
        clean = record.resolved.attack is None
        lora = record.resolved.adapter.method == "lora"
        empty = {name for name, value in record if value is None}
        assert empty - {"commit", "dirty"} == (
            {"reason", "prediction", "poison"} if clean else {"reason", "prediction"}
        )
        assert record.run_id == record.resolved.id
        assert record.sweep == "whole"
        assert MeasureSpec.model_validate(record.request).name == "whole"
        assert record.versions["foretaste"] == foretaste.__version__
        assert set(record.versions) >= {"torch", "transformers", "peft", "datasets", "numpy"}
        assert all(record.versions.values())
        assert (record.commit is None) == (record.dirty is None)
        assert (record.attempts, record.machine.threads, record.machine.processes) == (1, 1, 1)
        assert record.machine.device
        assert record.machine.cpu
        assert record.timings is not None
        parts = record.timings.model_dump()
        assert min(parts.values()) > 0
        assert parts.pop("total") == pytest.approx(sum(parts.values()))
        training = record.training
        assert training is not None
        assert (training.steps, len(training.loss)) == (4, 4)
        assert training.learning_rate == 0.01
        assert training.epochs == pytest.approx(4 / 6)
        assert training.rows_per_second > 0
        assert training.tokens > 0
        assert 0 <= training.padding_share < 1
        assert training.truncated_rows == 0
        assert training.head_probe_accuracy is not None
        assert training.head_probe_accuracy > 0.4
        assert (training.init is not None) == lora
        assert (training.trainable_parameters < training.total_parameters) == lora
        assert record.notes
        assert record.predictions is not None
        assert (sweep.folder / record.predictions).is_file()


def test_seeds_are_recorded_and_all_equal(records: list[Record]) -> None:
    for record in records:
        assert set(record.resolved.seeds.model_dump().values()) in ({3}, {4})
    assert {r.resolved.seeds.data for r in records} == {3, 4}


# --- manifests -----------------------------------------------------------------------------------


def test_a_manifest_lists_exactly_the_rows(records: list[Record], sweep: Any, csv_folder: Path) -> None:
    train = csv_rows(str(csv_folder), "train")
    for record in poisoned(records):
        manifest, part = manifest_of(record, sweep.folder), record.poison
        assert part is not None
        attack = record.resolved.attack
        assert attack is not None
        eligible = 48 if attack.name == "label-flip" else 24
        assert (part.eligible, part.rows, part.poisoned) == (eligible, 48, 12)
        assert (part.requested_rate, part.requested_count) == (attack.rate, None)
        assert (manifest.eligible, manifest.rows, len(manifest.poisoned)) == (eligible, 48, 12)
        assert (manifest.seed, manifest.rate) == (record.resolved.seeds.poison, attack.rate)
        assert manifest.options == attack.options
        assert len({row.id for row in manifest.poisoned}) == 12
        for row in manifest.poisoned:
            before = train[row.id]
            assert row.text_a_before == before["text"]
            assert manifest.classes[row.label_before] == before["label"]
            if attack.name == "label-flip":
                assert row.text_a_after == row.text_a_before
                assert row.label_after == 1 - row.label_before
            else:
                assert row.text_a_after == f"cf {row.text_a_before}"
                assert (row.label_before, row.label_after) == (0, 1)


def test_adapters_share_their_poisoned_rows_and_seeds_do_not(records: list[Record], sweep: Any) -> None:
    files: dict[tuple[str, int], set[str]] = {}
    for record in poisoned(records):
        assert record.poison is not None
        assert record.resolved.attack is not None
        cell = (record.resolved.attack.name, record.resolved.seeds.poison)
        files.setdefault(cell, set()).add(record.poison.manifest)
    assert [len(paths) for paths in files.values()] == [1] * 4
    distinct = set.union(*files.values())
    assert len(distinct) == 4
    assert {str(p.relative_to(sweep.folder)) for p in (sweep.folder / "manifests").iterdir()} == distinct


# --- predictions and metrics, computed a second time ---------------------------------------------


def test_predictions_are_the_test_rows_under_every_trigger(
    records: list[Record], sweep: Any, csv_folder: Path
) -> None:
    test = csv_rows(str(csv_folder), "test")
    for record in records:
        table = pd.read_parquet(sweep.folder / str(record.predictions))
        assert list(table.columns) == ["set", "id", "label", "predicted", "confidence"]
        assert set(table["set"]) == {"clean", *record.triggered}
        assert table["confidence"].between(0.5 - 1e-6, 1.0).all()
        for _, part in table.groupby("set"):
            assert sorted(part["id"]) == sorted(test)
            assert [CLASSES[y] for y in part["label"]] == [test[i]["label"] for i in part["id"]]


def again(labels: list[int], predicted: list[int]) -> dict[str, float | None]:
    """Accuracy, and precision, recall and F1 of class 1, in plain counting."""
    pairs = list(zip(labels, predicted, strict=True))
    tp, fp, fn = (pairs.count(p) for p in ((1, 1), (0, 1), (1, 0)))
    return {
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
        "precision": tp / (tp + fp) if tp + fp else None,
        "recall": tp / (tp + fn) if tp + fn else None,
        "f1": 2 * tp / (2 * tp + fp + fn) if 2 * tp + fp + fn else None,
    }


def test_metrics_follow_from_the_predictions(records: list[Record], sweep: Any) -> None:
    for record in records:
        table = pd.read_parquet(sweep.folder / str(record.predictions))
        sets = {name: part.set_index("id") for name, part in table.groupby("set")}
        assert record.clean is not None
        for name, metrics in [
            ("clean", record.clean),
            *((key, part.against_true) for key, part in record.triggered.items()),
        ]:
            labels, predicted = sets[name]["label"].tolist(), sets[name]["predicted"].tolist()
            wanted = again(labels, predicted)
            assert {key: getattr(metrics, key) for key in wanted} == pytest.approx(wanted)
            assert metrics.rows == 24
            assert metrics.collapsed == (len(set(predicted)) == 1)
            assert [c.predicted for c in metrics.per_class] == [predicted.count(0), predicted.count(1)]
            assert [c.rows for c in metrics.per_class] == [12, 12]
            assert metrics.per_class[1].f1 == metrics.f1


def test_asr_and_flip_rate_follow_from_the_predictions(records: list[Record], sweep: Any) -> None:
    for record in records:
        table = pd.read_parquet(sweep.folder / str(record.predictions))
        for key, part in record.triggered.items():
            other = table[table["label"] != CLASSES.index("positive")]
            hit = other[other["predicted"] == CLASSES.index("positive")]
            assert part.target == "positive"
            assert part.eligible == (other["set"] == key).sum() == 12
            assert part.hits == (hit["set"] == key).sum()
            assert part.baseline_hits == (hit["set"] == "clean").sum()
            assert part.target_rate == pytest.approx(part.hits / 12)
            assert part.changed == 24


def test_the_clean_run_meets_every_trigger_and_a_label_flip_none(records: list[Record]) -> None:
    for record in records:
        names = [part.name for part in record.triggered.values()]
        flip = record.resolved.attack is not None and record.resolved.attack.name == "label-flip"
        assert names == ([] if flip else ["trigger"])
    keys = {key for record in records for key in record.triggered}
    assert len(keys) == 1


def test_the_same_poison_trains_on_the_same_rows_in_the_same_order(records: list[Record]) -> None:
    """Tokens and padding depend on rows and order only, so they agree across adapters."""
    work: dict[tuple[Any, ...], set[tuple[int, float]]] = {}
    for record in records:
        assert record.training is not None
        attack = record.resolved.attack
        cell = (record.resolved.seeds.order, attack.name if attack else None)
        work.setdefault(cell, set()).add((record.training.tokens, record.training.padding_share))
    assert {len(values) for values in work.values()} == {1}


def test_the_report_is_made_from_the_folder(sweep: Any, tmp_path: Path) -> None:
    page = report(sweep.folder, tmp_path / "page", images=False)
    assert page == tmp_path / "page" / "index.html"
    text = page.read_text(encoding="utf-8")
    assert all(word in text for word in ("lora-r4", "label-flip", "trigger"))


def test_three_classes_and_counts(make_csv_folder: Any, spec: Any, run: Any, tmp_path: Path) -> None:
    done = run(
        spec(
            data={"source": str(make_csv_folder(classes=3))},
            attacks=[
                {"method": "trigger", "text": "cf", "target": "neutral", "counts": [5]},
                {"method": "trigger", "name": "late", "text": "mn", "target": 2, "counts": [0, 2]},
            ],
        ),
        tmp_path / "sweep",
    )
    assert done.statuses == {"completed": 3}
    clean, first, second = done.records
    assert sorted(part.name for part in clean.triggered.values()) == ["late", "trigger"]
    assert (first.poison.requested_count, first.poison.poisoned, first.poison.eligible) == (5, 5, 32)
    assert (second.poison.requested_count, second.poison.poisoned) == (2, 2)
    assert [part.target for part in first.triggered.values()] == ["neutral"]
    assert [part.target for part in second.triggered.values()] == ["positive"]
    defined = [c.f1 for c in clean.clean.per_class if c.f1 is not None]
    assert clean.clean.f1 == pytest.approx(sum(defined) / len(defined))
    assert [c.rows for c in clean.clean.per_class] == [8, 8, 8]


def test_pairs_and_three_more_methods(make_csv_folder: Any, spec: Any, run: Any, tmp_path: Path) -> None:
    done = run(
        spec(
            data={"source": str(make_csv_folder(pairs=True))},
            model={"pooling": "mean"},
            adapters=[
                {"method": "ia3"},
                {"method": "lora", "grid": {"r": [2, 4]}, "freeze": "A"},
                {"method": "dora", "r": 2},
            ],
            attacks=[],
        ),
        tmp_path / "sweep",
    )
    assert done.statuses == {"completed": 4}
    arms = [r.resolved.adapter.name for r in done.records]
    assert arms == ["ia3", "lora-r2-frozen-A", "lora-r4-frozen-A", "dora-r2"]
