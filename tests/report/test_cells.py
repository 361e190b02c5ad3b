"""Tables equal what is computed directly from the records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from records_factory import Sweep

from foretaste import statistics
from foretaste.errors import UserError
from foretaste.record import Layout, Record, write_atomic
from foretaste.report import Frames, build, load
from foretaste.seeds import Seeds


def cell(frames: Frames, **where: object) -> dict[str, object]:
    chosen = frames.cells
    for name, value in where.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0].to_dict()


def records(folder: Path, arm: str, attack: str | None, rate: float | None) -> dict[str, Record]:
    found, _ = Layout(folder).read()
    found.sort(key=lambda r: r.resolved.seeds.label())
    return {
        r.resolved.seeds.label(): r
        for r in found
        if r.resolved.adapter.name == arm
        and (r.resolved.attack.name if r.resolved.attack else None) == attack
        and (r.resolved.attack.rate if r.resolved.attack else None) == rate
    }


def test_one_row_a_run(frames: Frames, small: Path) -> None:
    found, _ = Layout(small).read()
    assert len(frames.runs) == len(found)
    assert dict(zip(frames.runs["run_id"], frames.runs["status"], strict=True)) == {
        r.run_id: r.status for r in found
    }


def test_cell_summaries_equal_direct_computation(frames: Frames, small: Path) -> None:
    runs = records(small, "lora-r8", "trigger", 0.1)
    clean = records(small, "lora-r8", None, None)
    row = cell(frames, arm="lora-r8", attack="trigger", amount="10 %")
    accuracy = statistics.summary([r.clean.accuracy for r in runs.values() if r.clean])
    assert row["clean_accuracy_mean"] == accuracy.mean
    assert (row["clean_accuracy_low"], row["clean_accuracy_high"]) == (
        accuracy.interval.low,
        accuracy.interval.high,
    )
    rates = {seed: next(iter(r.triggered.values())).target_rate for seed, r in runs.items()}
    key = next(iter(runs["0"].triggered))
    flips = {seed: r.triggered[key].target_rate for seed, r in clean.items()}
    assert row["asr_mean"] == pytest.approx(np.mean(list(rates.values())))
    assert row["flip_rate_mean"] == pytest.approx(np.mean(list(flips.values())))
    differences = [rates[seed] - flips[seed] for seed in rates]  # type: ignore[operator]
    assert row["asr_minus_flip_median"] == pytest.approx(np.median(differences))


def test_clean_runs_are_amount_zero_of_every_attack(frames: Frames) -> None:
    clean = frames.cells[frames.cells["amount"] == "clean"]
    assert set(clean["attack"]) == {"label-flip", "trigger"}
    assert (clean["rate"] == 0).all()
    assert (clean["count"] == 0).all()
    row = cell(frames, arm="full", attack="trigger", amount="clean")
    assert np.isnan(row["asr_mean"])  # type: ignore[call-overload]
    assert row["asr_reason"] == "clean run: nothing was poisoned"
    assert (
        cell(frames, arm="full", attack="label-flip", amount="10 %")["asr_reason"]
        == "this attack has no trigger"
    )


def test_failed_runs_are_counted_and_collapsed_ones_flagged(frames: Frames) -> None:
    failed = cell(frames, arm="full", attack="trigger", amount="10 %")
    assert (failed["runs"], failed["completed"], failed["diverged"], failed["clean_accuracy_n"]) == (
        3,
        2,
        1,
        2,
    )
    row = cell(frames, arm="lora-r8", attack="label-flip", amount="10 %")
    assert row["collapsed"] == 1
    assert row["clean_accuracy_mean"] < row["clean_accuracy_mean_without_collapsed"]  # type: ignore[operator]


def test_paired_differences_equal_direct_computation(frames: Frames, small: Path) -> None:
    full, lora = (records(small, arm, "label-flip", 0.001) for arm in ("full", "lora-r64"))
    a, b = ([r.clean.accuracy for r in runs.values() if r.clean] for runs in (lora, full))
    expected = statistics.paired_difference(a, b, rng=np.random.default_rng(0))
    pairs = frames.pairs[frames.pairs["metric"] == "clean_accuracy"]
    row = pairs[
        (pairs["arm"] == "lora-r64") & (pairs["attack"] == "label-flip") & (pairs["amount"] == "0.1 %")
    ].iloc[0]
    assert (row["reference"], row["n"]) == ("full", 3)
    assert row["mean"] == pytest.approx(expected.mean)
    assert (row["low"], row["high"], row["p"]) == (expected.t.low, expected.t.high, expected.p)
    assert row["verdict"] == "not resolved by 3 seeds"
    assert list(pairs["p_holm"]) == pytest.approx(list(statistics.holm(pairs["p"].to_numpy())))
    assert np.isfinite(row["rows_low"])
    assert row["rows"] == 200


def test_a_clean_comparison_is_made_once(frames: Frames) -> None:
    pairs = frames.pairs
    clean = pairs[(pairs["amount"] == "clean") & (pairs["metric"] == "clean_accuracy")]
    assert list(clean["arm"]) == ["lora-r8", "lora-r64"]
    flips = pairs[pairs["metric"] == "flip_rate"]
    assert set(flips["amount"]) == {"clean"}


def test_missing_partner_leaves_a_reason_and_an_unpaired_count(frames: Frames) -> None:
    pairs = frames.pairs[(frames.pairs["arm"] == "lora-r64") & (frames.pairs["amount"] == "clean")]
    row = pairs[pairs["metric"] == "clean_accuracy"].iloc[0]
    assert (row["n"], row["unpaired"]) == (2, 2)
    values = frames.values
    orphan = values[
        (values["arm"] == "lora-r64") & (values["metric"] == "asr_minus_flip") & (values["seed"] == "0")
    ]
    assert orphan["value"].isna().all()
    alone = "no completed clean run with the same seeds"
    assert dict(zip(zip(orphan["attack"], orphan["amount"], strict=True), orphan["reason"], strict=True)) == {
        ("label-flip", "clean"): "the run did not complete (error)",
        ("label-flip", "0.1 %"): "this attack has no trigger",
        ("label-flip", "10 %"): "this attack has no trigger",
        ("trigger", "clean"): "the run did not complete (error)",
        ("trigger", "0.1 %"): alone,
        ("trigger", "10 %"): alone,
    }


def test_mcnemar_equals_direct_computation(frames: Frames, small: Path) -> None:
    import pandas as pd

    row = frames.mcnemar[frames.mcnemar["test_rows"] == "clean"].iloc[0]
    runs = {arm: records(small, arm, None, None)[row["seed"]] for arm in (row["arm"], row["reference"])}
    tables = [pd.read_parquet(small / str(run.predictions)) for run in runs.values()]
    right = [(t["label"] == t["predicted"])[t["set"] == "clean"].to_numpy() for t in tables]
    expected = statistics.mcnemar(*right)
    assert (row["only_arm"], row["only_reference"], row["p"]) == (
        expected.only_a,
        expected.only_b,
        expected.p,
    )


def test_enough_seeds_resolve_a_large_difference(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for seed in range(8):
        for arm, accuracy in (("full", 0.9), ("lora-r8", 0.7)):
            sweep.add(arm, seed=seed, accuracy=accuracy + seed / 1000 * (1 if arm == "full" else 2))
    pairs = build(load([tmp_path])).pairs
    assert pairs[pairs["metric"] == "clean_accuracy"]["verdict"].tolist() == ["lower"]


def test_the_poison_seed_of_a_clean_run_does_not_matter(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.add("full", seed=Seeds(data=0, poison=0, init=0, order=0), flip=0.1)
    sweep.add("full", seed=Seeds(data=0, poison=9, init=0, order=0), flip=0.1)
    for poison in (1, 2):
        sweep.add("full", "trigger", rate=0.1, seed=Seeds(data=0, poison=poison, init=0, order=0), asr=0.6)
    cells = build(load([tmp_path])).cells
    assert cells[cells["amount"] == "10 %"]["asr_minus_flip_mean"].tolist() == [pytest.approx(0.5)]
    assert cells[cells["amount"] == "clean"]["runs"].tolist() == [1]


def test_counts_are_amounts_too(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.add("full", seed=0)
    sweep.add("full", "trigger", count=12, seed=0)
    row = cell(build(load([tmp_path])), amount="12 rows")
    assert (row["count"], row["rate"]) == (12, pytest.approx(0.012))
    assert row["asr_interval_reason"] == "one seed: no interval"


def test_unreadable_predictions_are_a_problem_not_a_failure(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    record = sweep.add("full", seed=0)
    sweep.add("lora-r8", seed=0)
    write_atomic(sweep.layout.prediction(record.run_id), b"no parquet")
    frames = build(load([tmp_path]))
    assert len(frames.mcnemar) == 0
    assert len(frames.problems) == 1


def test_a_manifest_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", attacks=["trigger"])
    record = sweep.add("full", "trigger", rate=0.01)
    assert record.poison
    outside = record.poison.model_copy(update={"manifest": "../secret.json"})
    changed = record.model_copy(update={"poison": outside})
    write_atomic(sweep.layout.record(record.run_id), changed.model_dump_json())
    folder = load([sweep.layout.folder])[0]
    assert folder.manifests() == []
    assert "outside" in folder.problems[0]


def test_folders_that_cannot_be_reported(tmp_path: Path, small: Path) -> None:
    for paths, words in (
        ([], "no folder"),
        ([tmp_path / "none"], "not a folder"),
        ([tmp_path], "no records"),
        ([small, small], "twice"),
    ):
        with pytest.raises(UserError, match=words):
            load(paths)
