"""Runs that are trained together leave what they would have left one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import foretaste
from foretaste.data import take
from foretaste.errors import UserError, in_a_line
from foretaste.experiments import measure as experiment
from foretaste.experiments import prepare, stacks
from foretaste.experiments import run as run_module
from foretaste.experiments.cluster import Cluster
from foretaste.models import adapters, catalogue
from foretaste.record import Layout, Record
from foretaste.spec import AdapterSpec, MeasureSpec, RunSpec
from foretaste.training import one_base, stacked

TRIGGER = {"method": "trigger", "text": "cf", "target": 1, "rates": [0.5]}
FLIP = {"method": "label-flip", "rates": [0.5]}
ARMS = [
    {"method": "lora", "r": 2},
    {"method": "rslora", "r": 4, "init": {"law": "gaussian", "k": 2.0}, "training": {"learning_rate": 1e-3}},
    {"method": "loraplus", "r": 3, "loraplus_lr_ratio": 4.0},
]
WILD = {"method": "lora", "r": 2, "name": "wild", "training": {"learning_rate": 1e30}}
# Losses are rounded to six digits in records; confidences are stored as float32 numbers below one.
ROUNDED = 1e-6


def sweep(content: Any, **sections: Any) -> MeasureSpec:
    chosen = {"adapters": ARMS, "attacks": [FLIP], **sections}
    return MeasureSpec.model_validate(content(**chosen))


def predictions(folder: Path, record: Record) -> pd.DataFrame:
    return pd.read_parquet(Layout(folder).prediction(record.run_id))


def company(record: Record) -> list[str]:
    """What a record says of how it was trained."""
    return [note for note in record.notes if note.startswith("trained")]


def without_times(record: Record) -> Any:
    """Everything that must not depend on the company: times, padding and notes may."""
    own = {"rows_per_second", "tokens", "padding_share", "loss"}
    return record.model_dump(exclude={"started": True, "timings": True, "notes": True, "training": own})


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal records and predictions, up to the rounding of what is written."""
    assert [record.run_id for record in ours.records] == [record.run_id for record in theirs.records]
    for one, other in zip(ours.records, theirs.records, strict=True):
        assert without_times(one) == without_times(other)
        if one.status != "completed":
            continue
        assert one.training is not None
        assert other.training is not None
        assert one.training.loss == pytest.approx(other.training.loss, abs=ROUNDED)
        left, right = predictions(ours.folder, one), predictions(theirs.folder, other)
        confidence = left.pop("confidence"), right.pop("confidence")
        pd.testing.assert_frame_equal(left, right)
        np.testing.assert_allclose(*confidence, atol=ROUNDED, rtol=0)


# --- equality ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["probe-then-train", "random-then-train", "paper"])
def test_records_are_those_of_single_runs(
    head: str, content: Any, run: Any, tmp_path: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, with everything that may differ within a group, and groups that do not come out even."""
    real = prepare.fresh_model

    def double(*arguments: Any) -> Any:
        tokenizer, model = real(*arguments)
        return tokenizer, model.double()

    monkeypatch.setattr(prepare, "fresh_model", double)
    spec = sweep(
        content,
        model={"head": head},
        attacks=[FLIP, TRIGGER],
        seeds=[0, 1],
        training={"steps": 3, "learning_rate": 5e-3},
        data={"train_rows": 20},
    )
    alone = run(spec, tmp_path / "alone")
    together = run(spec, tmp_path / "together", stack=5, watcher=watch)
    assert len(together.records) == 18
    assert_same(together, alone)
    assert together.statuses == {"completed": 18}
    companies = [company(record) for record in together.records]
    assert companies == [["trained together with 4 others"]] * 15 + [["trained together with 2 others"]] * 3
    assert watch.started_runs == watch.finished_runs == [record.run_id for record in alone.records]
    assert {run_id for run_id, done, total in watch.steps if done == total == 3} == set(watch.started_runs)
    for record in together.records:
        times = record.timings
        assert times is not None
        assert times.total == pytest.approx(times.load + times.probe + times.train + times.evaluate)


def test_runs_that_cannot_be_stacked_are_done_between(
    content: Any, run: Any, tmp_path: Path, watch: Any
) -> None:
    arms = [{"method": "full"}, *ARMS, {"method": "dora", "r": 2}, {"method": "pissa", "r": 2}]
    spec = sweep(content, adapters=arms)
    done = run(spec, tmp_path / "sweep", stack=8, watcher=watch)
    assert done.statuses == {"completed": 12}
    companies = {record.run_id: company(record) for record in done.records}
    assert sorted(map(str, companies.values())) == ["['trained together with 5 others']"] * 6 + ["[]"] * 6
    assert "groups: 1, runs alone: 6" in watch.allocation.reason
    # Each group at the place of its first run.
    names = {record.run_id: record.resolved.adapter.name for record in done.records}
    order = [names[run_id] for run_id in watch.finished_runs]
    assert order[:1] == ["full"]
    assert sorted(order[1:7]) == sorted(2 * [arm for arm in names.values() if "lora" in arm][:3])


def test_the_second_call_does_nothing_and_a_missing_run_is_done_alone(
    content: Any, run: Any, tmp_path: Path, watch: Any
) -> None:
    spec = sweep(content)
    first = run(spec, tmp_path / "sweep", stack=3)
    lost = first.records[1]
    Layout(first.folder).record(lost.run_id).unlink()
    again = run(spec, tmp_path / "sweep", stack=3, watcher=watch)
    assert watch.started_runs == [lost.run_id]
    assert company(again.records[1]) == []
    assert again.records[0] == first.records[0]


def test_from_python_with_a_model_in_memory(
    load_tiny: Any, tiny_bert: Path, make_rows: Any, tmp_path: Path
) -> None:
    tokenizer, model = load_tiny(tiny_bert, dropout=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def measure(name: str, stack: int) -> Any:
        return foretaste.measure(
            train=make_rows(28),
            test=make_rows(20, prefix="test"),
            model=model,
            tokenizer=tokenizer,
            adapters=ARMS,
            attacks=[TRIGGER],
            folder=tmp_path / name,
            stack=stack,
            threads=1,
            training={"steps": 2, "batch_size": 8},
            seeds=[0],
        )

    together, alone = measure("together", 4), measure("alone", 1)
    assert {note for record in together.records for note in company(record)} == {
        "trained together with 3 others",
        "trained together with 1 other",
    }
    for one, other in zip(together.records, alone.records, strict=True):
        assert (one.run_id, one.clean, one.triggered) == (other.run_id, other.clean, other.triggered)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


# --- failures ------------------------------------------------------------------------------------


def test_a_run_that_fails_before_training_harms_no_other(
    content: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.apply_attack

    def fail(spec: RunSpec, *arguments: Any) -> Any:
        if spec.adapter.method == "rslora":
            raise ValueError("no such luck")
        return real(spec, *arguments)

    expected = run(sweep(content, adapters=[ARMS[0], ARMS[2]]), tmp_path / "without", stack=4)
    monkeypatch.setattr(run_module, "apply_attack", fail)
    done = run(sweep(content), tmp_path / "sweep", stack=6)
    failed = [record for record in done.records if record.status == "error"]
    assert [(record.resolved.adapter.method, record.reason) for record in failed] == [
        ("rslora", "ValueError: no such luck")
    ]
    left = [record for record in done.records if record.resolved.adapter.method != "rslora"]
    for one, other in zip(left, expected.records, strict=True):
        assert company(one) == ["trained together with 4 others"]
        assert one.clean == other.clean
        assert one.triggered == other.triggered


def test_a_run_that_diverges_harms_no_other(content: Any, run: Any, tmp_path: Path) -> None:
    expected = run(sweep(content), tmp_path / "without", stack=8)
    done = run(sweep(content, adapters=[ARMS[0], WILD, *ARMS[1:]]), tmp_path / "sweep", stack=8)
    alone = run(sweep(content, adapters=[WILD]), tmp_path / "alone")
    wild = [record for record in done.records if record.resolved.adapter.name == "wild"]
    assert [(r.status, r.reason) for r in wild] == [(r.status, r.reason) for r in alone.records]
    assert wild[0].status == "diverged"
    left = [record for record in done.records if record.status == "completed"]
    for one, other in zip(left, expected.records, strict=True):
        assert one.training is not None
        assert other.training is not None
        assert one.training.loss == pytest.approx(other.training.loss, abs=1e-4)


def no_memory() -> RuntimeError:
    """What torch says of a request that no machine can meet."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("error", [MemoryError("all gone"), no_memory()], ids=["python", "torch"])
@pytest.mark.parametrize("where", ["training", "preparing", "testing"])
def test_without_memory_for_all_runs_are_done_one_by_one(
    where: str,
    error: Exception,
    content: Any,
    run: Any,
    tmp_path: Path,
    watch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def short(real: Any, allowed: int) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == allowed + 1:
                raise error
            return real(*arguments, **options)

        return call

    expected = run(sweep(content), tmp_path / "alone")
    if where == "training":
        monkeypatch.setattr(stacked, "fine_tune_together", short(stacked.fine_tune_together, 0))
    elif where == "preparing":
        monkeypatch.setattr(stacks, "prepare_run", short(run_module.prepare_run, 2))
    else:
        monkeypatch.setattr(stacks, "finish", short(run_module.finish, 2))
    done = run(sweep(content), tmp_path / "sweep", stack=6, watcher=watch)
    rest = 4 if where == "testing" else 6
    assert watch.notes == [
        f"training 6 runs together failed: {in_a_line(error)}; {rest} of them are done one by one"
    ]
    assert done.statuses == {"completed": 6}
    told = [f"trained alone: training 6 runs together failed: {in_a_line(error)}"]
    assert [company(record) for record in done.records][6 - rest :] == [told] * rest
    for one, other in zip(done.records[6 - rest :], expected.records[6 - rest :], strict=True):
        assert one.training is not None
        assert other.training is not None
        assert one.training.loss == other.training.loss  # the very same computation
    assert len(watch.finished_runs) == len(set(watch.finished_runs)) == 6


def test_a_model_that_cannot_be_stacked_is_trained_alone(
    content: Any, run: Any, tmp_path: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise one_base.NotTogether("'query' takes a tensor of shape (5, 3, 32) for 3 rows")

    monkeypatch.setattr(stacked, "_check_together", refuse)
    done = run(sweep(content), tmp_path / "sweep", stack=3, watcher=watch)
    assert done.statuses == {"completed": 6}
    assert len(watch.notes) == 2
    assert "takes a tensor of shape" in watch.notes[0]


def test_runs_with_other_numbers_of_rows_train_by_themselves(
    content: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attack of today adds or drops rows; one that does is no reason to mix up epochs."""
    real = prepare.rows_of

    def fewer(spec: RunSpec, workspace: Any) -> Any:
        loaded, split = real(spec, workspace)
        if spec.adapter.method == "lora":
            split = replace(split, train=take(split.train, list(range(len(split.train) - 3))))
        return loaded, split

    monkeypatch.setattr(prepare, "rows_of", fewer)
    spec = sweep(content, training={"steps": None, "epochs": 1.0})
    done = run(spec, tmp_path / "sweep", stack=8)
    assert {(record.resolved.adapter.method, *company(record)) for record in done.records} == {
        ("lora", "trained together with 1 other"),
        ("rslora", "trained together with 3 others"),
        ("loraplus", "trained together with 3 others"),
    }
    expected = run(spec, tmp_path / "alone")
    for one, other in zip(done.records, expected.records, strict=True):
        assert one.training is not None
        assert other.training is not None
        assert one.training.steps == other.training.steps
        assert one.training.loss == pytest.approx(other.training.loss, abs=1e-4)


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["in the second group", "between two records of a group"])
def test_what_is_finished_survives_a_stop(
    moment: str, content: Any, run: Any, tmp_path: Path, watch: Any
) -> None:
    spec = sweep(content)
    expected = run(spec, tmp_path / "whole", stack=3)

    def stop_in_training(run_id: str) -> None:
        if run_id == expected.records[3].run_id:
            raise KeyboardInterrupt

    class Stop:
        def __getattr__(self, name: str) -> Any:
            return getattr(watch, name)

        def finished(self, done: Any, record: Any) -> None:
            watch.finished(done, record)
            if len(watch.finished_runs) == 2:
                raise KeyboardInterrupt

    watcher: Any = watch
    if moment == "in the second group":
        watch.on_stepped = stop_in_training
    else:
        watcher = Stop()
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "sweep", stack=3, watcher=watcher)
    kept = {path.stem for path in Layout(tmp_path / "sweep").runs.glob("*.json")}
    assert kept == set(watch.finished_runs)
    assert len(kept) == (3 if moment == "in the second group" else 2)
    before = {path: path.read_bytes() for path in Layout(tmp_path / "sweep").runs.glob("*.json")}
    again = run(spec, tmp_path / "sweep", stack=3)
    assert again.statuses == {"completed": 6}
    assert all(path.read_bytes() == content for path, content in before.items())


# --- which runs ----------------------------------------------------------------------------------


def runs_of(content: Any, **sections: Any) -> list[RunSpec]:
    from foretaste.experiments.plan import plan

    return list(plan(sweep(content, **sections), Path("/nonexistent")).runs)


def test_groups_keep_the_order_of_the_plan(content: Any) -> None:
    runs = runs_of(content, adapters=[*ARMS[:2], {"method": "full"}], seeds=[0, 1])
    groups = stacks.grouped(runs, 3)
    place = {run.id: number for number, run in enumerate(runs)}
    numbers = [[place[run.id] for run in group] for group in groups]
    # Arms 0 and 1 of each of four cells; 2, 5, 8 and 11 are full fine-tuning.
    assert numbers == [[0, 1, 3], [2], [4, 6, 7], [5], [8], [9, 10], [11]]
    assert all(len(group) == 1 for group in stacks.grouped(runs, 1))


def test_only_runs_with_the_same_training_are_grouped(content: Any) -> None:
    other = {"method": "lora", "r": 5, "training": {"batch_size": 4}}
    runs = runs_of(content, adapters=[*ARMS, other], attacks=[])
    assert [len(group) for group in stacks.grouped(runs, 8)] == [3, 1]


@pytest.mark.parametrize(
    ("arm", "why"),
    [
        ({"method": "full"}, "trains the base itself"),
        ({"method": "bitfit"}, "trains the base itself"),
        ({"method": "adalora", "init_r": 4}, "is not LoRA"),
        ({"method": "vera"}, "is not LoRA"),
        ({"method": "dora"}, "use_dora"),
        ({"method": "pissa"}, "changes the base"),
        ({"method": "olora"}, "changes the base"),
        ({"method": "lora", "lora_dropout": 0.1}, "lora_dropout"),
        ({"method": "lora", "bias": "lora_only"}, "bias"),
        ({"method": "lora"}, None),
        ({"method": "lora", "lora_dropout": 0.0, "bias": "none"}, None),
        ({"method": "lora", "init_lora_weights": "gaussian"}, None),
        ({"method": "lora", "freeze": "A"}, None),
        ({"method": "rslora"}, None),
        ({"method": "loraplus"}, None),
    ],
    ids=lambda value: str(value),
)
def test_why_a_run_is_trained_alone(arm: dict[str, Any], why: str | None, content: Any) -> None:
    (run,) = runs_of(content, adapters=[arm], attacks=[])
    found = stacks.why_alone(run)
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize("training", [{"dropout": True}, {"precision": "mixed-float16"}])
def test_training_that_makes_runs_depend_on_each_other(training: dict[str, Any], content: Any) -> None:
    (run,) = runs_of(content, adapters=[ARMS[0]], attacks=[], training=training)
    assert stacks.why_alone(run) is not None


@pytest.mark.parametrize("method", ["lora", *catalogue.VARIANTS])
def test_what_may_be_stacked_leaves_the_base_alone(
    method: str, content: Any, load_tiny: Any, tiny_bert: Path
) -> None:
    """Held against peft: attaching a method that may be stacked changes no weight of the base."""
    (run,) = runs_of(content, adapters=[{"method": method}], attacks=[])
    _, model = load_tiny(tiny_bert)
    before = {name: p.detach().clone() for name, p in model.bert.named_parameters()}
    arm = adapters.resolve(AdapterSpec.model_validate({"method": method}), {}, where="x")
    wrapped, _ = adapters.attach(model, arm, head_policy="random-then-train", seed=0, total_steps=2)
    inner = wrapped.get_base_model().bert  # type: ignore[operator]
    after = {name.replace("base_layer.", ""): p for name, p in inner.named_parameters()}
    same = all(torch.equal(before[name], after[name]) for name in before)
    assert same or stacks.why_alone(run) is not None
    if stacks.why_alone(run) is None:
        assert same


# --- what does not go together -------------------------------------------------------------------


def test_conflicts_are_refused_before_anything_starts(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = sweep(content), tmp_path / "sweep"
    options: dict[str, Any] = {"base_dir": Path("/nonexistent"), "stack": 2}
    with pytest.raises(UserError, match="--processes asks for 2"):
        experiment.measure(spec, folder, processes=2, **options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError, match="Drop --engine ray"):
        experiment.measure(spec, folder, cluster=Cluster(None), **options)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="2 were started together"):
        experiment.measure(spec, folder, **options)
    assert not folder.exists()
