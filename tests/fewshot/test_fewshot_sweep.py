"""Whole few-shot sweeps on tiny models: what is planned and written, and what a stopped one does next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.experiments import fewshot as experiment
from foretaste.experiments import fewshot_estimate
from foretaste.experiments.fewshot_plan import plan
from foretaste.experiments.measure import Watcher
from foretaste.fewshot import prepare, scores
from foretaste.fewshot import run as runner
from foretaste.fewshot.record import FewShotLayout, FewShotRecord, read_record
from foretaste.fewshot.scores import score
from foretaste.fewshot.spec import FewShotSpec, FineTune
from foretaste.training.trainer import Diverged

NOWHERE = Path("/nonexistent")
ZERO = {"kind": "zero-shot"}
TUNE = {
    "kind": "fine-tune",
    "optimiser": "adam",
    "learning_rates": [1e-3, 1e-2],
    "batch_sizes": [4],
    "steps": 6,
    "check_every": 3,
}
KERNEL = {"kind": "kernel", "scales": [10.0, "inf"], "regularisations": [0.0, 0.1]}
ARMS = [ZERO, TUNE, KERNEL]


class Watch(Watcher):
    """Keeps what it hears; `on_finished` may be set to do something at that moment."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.problems: list[UserError] = []
        self.notes: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.on_finished: Callable[[], None] = lambda: None

    def planned(self, plan: Any, missing: Any, problems: Any) -> None:
        self.missing = [run.label for run in missing]
        self.problems, self.notes = list(problems), list(plan.notes)

    def stepped(self, run_id: str, done: int, total: int) -> None:
        self.steps.append((done, total))

    def finished(self, run: Any, record: Any) -> None:
        self.on_finished()


@pytest.fixture(scope="module")
def spec(prompt_model: Any, csv_folder: Path) -> Callable[..., FewShotSpec]:
    """`spec(kind="bert", **sections)`: one task of two classes, k = 4, one split, three arms."""

    def make(kind: str = "bert", **sections: Any) -> FewShotSpec:
        base: dict[str, Any] = {
            "tasks": [{"name": "sst2", "data": {"source": str(csv_folder)}, "test_rows": 12}],
            "model": {"base": str(prompt_model(kind))},
            "k": [4],
            "splits": [13],
            "arms": ARMS,
            "memory": "300MiB",
        }
        return FewShotSpec.model_validate(base | sections)

    return make


def run(spec: FewShotSpec, folder: Path, **options: Any) -> experiment.MeasuredFewShot:
    return experiment.fewshot(spec, folder, **{"base_dir": NOWHERE, "processes": 1, "threads": 1} | options)


def numbers(record: FewShotRecord) -> Any:
    """Everything of a record that may not depend on where and when it ran."""
    return record.model_dump(
        exclude={
            "started": True,
            "timings": True,
            "machine": True,
            "attempts": True,
            "peak_memory": True,
            "grid": {"__all__": {"seconds"}},
        }
    )


@pytest.fixture(scope="module")
def finished(spec: Any, tmp_path_factory: pytest.TempPathFactory) -> experiment.MeasuredFewShot:
    """Three runs. Copy the folder before changing it."""
    return run(spec(), tmp_path_factory.mktemp("finished") / "sweep")


@pytest.fixture
def folder(finished: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "sweep"))


# --- what is written -----------------------------------------------------------------------------


def test_a_sweep_leaves_a_record_for_every_arm(finished: Any) -> None:
    assert finished.statuses == {"completed": 3}, [record.reason for record in finished.records]
    zero, tuned, kernel = finished.records
    for record in finished.records:
        assert read_record(FewShotLayout(finished.folder).record(record.run_id)) == record
        assert record.run_id == record.resolved.id
        assert record.model_kind == "masked"
        assert record.rows is not None
        assert (record.rows.train, record.rows.dev, record.rows.test) == (8, 8, 12)
        assert record.test is not None
        assert record.test.n == 12
        assert len(record.predictions) == 12
        assert record.peak_memory is not None
        assert record.peak_memory > 1e7
        assert record.zero_shot_test == zero.test
    assert (zero.dev, zero.grid, zero.selected) == (zero.zero_shot_dev, [], None)
    assert [point.settings["learning_rate"] for point in tuned.grid] == [1e-3, 1e-2]
    assert len(kernel.grid) == 4
    assert not (finished.folder / "work").exists() or not list((finished.folder / "work").iterdir())


def test_only_the_selected_point_is_tested_and_it_is_the_best_on_dev(finished: Any) -> None:
    for record in finished.records[1:]:
        assert record.selected is not None
        chosen = record.grid[record.selected]
        assert chosen.dev_score == max(point.dev_score for point in record.grid)
        assert record.dev is not None
        assert record.dev.value == pytest.approx(chosen.dev_score)
        assert chosen.test_score == pytest.approx(record.test.value)
        others = [point for number, point in enumerate(record.grid) if number != record.selected]
        assert all(point.test_score is None for point in others)


def test_scores_are_of_the_predictions_in_the_order_of_the_test_rows(finished: Any) -> None:
    for record in finished.records:
        rows = prepare.rows_of(record.resolved, NOWHERE)
        labels = rows.test.with_format(None)["label"][:]
        assert record.test == score("accuracy", labels, record.predictions)


def test_zero_shot_is_the_pretrained_model(finished: Any) -> None:
    zero = finished.records[0]
    prepared = prepare.prepare(zero.resolved, NOWHERE)
    logits = scores.logits_of(prepared.model(), prepared.test, prepared.pad_token_id)
    assert zero.predictions == [int(label) for label in logits.argmax(1)]
    one_by_one = scores.logits_of(prepared.model(), prepared.test, prepared.pad_token_id, batch_size=1)
    np.testing.assert_allclose(logits, one_by_one, rtol=0, atol=1e-4)


def test_zero_shot_is_done_once_for_all_runs_of_a_task(spec: Any, tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(len(args[1]))
        return scores.logits_of(*args, **options)

    monkeypatch.setattr(runner, "logits_of", counted)
    measured = run(spec(splits=[13, 21], arms=[ZERO, {**ZERO, "name": "again"}]), tmp_path / "sweep")
    assert measured.statuses == {"completed": 4}
    # Validation, test, training rows (for chi); on the second split the test rows are the same.
    assert calls == [8, 12, 8, 8, 8]
    assert measured.records[0].predictions == measured.records[2].predictions
    damaged = next(iter((tmp_path / "sweep" / "zero-shot").iterdir()))
    for file in damaged.parent.iterdir():
        file.write_text("[7]")
    again = run(spec(splits=[13, 21, 42], arms=[ZERO]), tmp_path / "sweep", extend=True)
    assert again.records[2].predictions == measured.records[0].predictions


@pytest.mark.parametrize("kind", ["roberta", "llama", "gpt2"])
def test_other_models_and_a_standard_head(kind: str, spec: Any, tmp_path: Path) -> None:
    arms = [ZERO, TUNE, {**TUNE, "output": "standard", "steps": 2, "check_every": 2}]
    measured = run(spec(kind, arms=arms), tmp_path / "sweep")
    assert measured.statuses == {"completed": 3}, [record.reason for record in measured.records]
    standard = measured.records[2]
    assert standard.resolved.arm.label == "adam-standard"
    # The head that training starts from is the probe on the training rows.
    prepared = prepare.prepare(standard.resolved, NOWHERE)
    logits = scores.logits_of(prepared.model(), prepared.train, prepared.pad_token_id)
    assert np.mean(logits.argmax(1) == prepared.train.labels) == standard.facts["probe_accuracy"] > 0.5
    logits = scores.logits_of(prepared.model(), prepared.test, prepared.pad_token_id)
    assert standard.zero_shot_test == score("accuracy", prepared.test.labels, list(logits.argmax(1)))


def test_f1_is_of_class_one(spec: Any, make_csv_folder: Any, tmp_path: Path) -> None:
    source = make_csv_folder(pairs=True)
    task = {"name": "qqp", "data": {"source": str(source), "labels": ["negative", "positive"]}}
    measured = run(spec(tasks=[task], arms=[ZERO]), tmp_path / "sweep")
    record = measured.records[0]
    assert record.test is not None
    assert record.test.metric == "f1"
    labels = prepare.rows_of(record.resolved, NOWHERE).test.with_format(None)["label"][:]
    from sklearn.metrics import f1_score

    assert record.test.value == pytest.approx(f1_score(labels, record.predictions, zero_division=0.0))


def test_scores_that_are_not_defined() -> None:
    assert score("f1", [0, 0], [0, 0]).value is None
    assert score("f1", [0, 1], [0, 0]).value == 0.0
    assert score("accuracy", [0, 1], [0, 0]).value == 0.5
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        score("accuracy", [0, 1], [0])


# --- identity and going on -----------------------------------------------------------------------


def test_run_ids_are_stable_and_follow_what_decides_the_numbers(spec: Any) -> None:
    def ids(**sections: Any) -> list[str]:
        return [run.id for run in plan(spec(**sections), NOWHERE).runs]

    base = ids()
    assert len(set(base)) == 3
    assert ids(memory="1GiB", name="other", title="t") == base
    explicit = {**TUNE, "name": "adam", "max_grad_norm": 1.0, "adapter": "full"}
    assert ids(arms=[ZERO, explicit, KERNEL]) == base
    for change in ({"k": [5]}, {"splits": [21]}, {"arms": [ZERO, {**TUNE, "steps": 5}, KERNEL]}):
        assert ids(**change) != base
    written = {"kind": "fine-tune", **FineTune.model_validate(TUNE).resolved(8).model_dump(exclude={"kind"})}
    assert ids(arms=[ZERO, written, KERNEL]) == base


def test_finished_runs_are_not_done_again(folder: Path, finished: Any, spec: Any) -> None:
    watch = Watch()
    again = run(spec(), folder, watcher=watch)
    assert watch.missing == []
    assert again.records == finished.records


def test_a_lost_record_is_done_again_with_the_same_numbers(folder: Path, finished: Any, spec: Any) -> None:
    for number, record in enumerate(finished.records):
        path = FewShotLayout(folder).record(record.run_id)
        if number == 1:
            path.write_text("{", encoding="utf-8")
        else:
            path.unlink()
    shutil.rmtree(folder / "zero-shot")
    shutil.rmtree(folder / "kernels")
    watch = Watch()
    again = run(spec(), folder, watcher=watch)
    assert len(watch.missing) == 3
    assert len(watch.problems) == 1
    assert [numbers(record) for record in again.records] == [numbers(record) for record in finished.records]


def test_a_stopped_sweep_goes_on_where_it_was(spec: Any, tmp_path: Path, finished: Any) -> None:
    watch = Watch()

    def stop() -> None:
        raise KeyboardInterrupt

    watch.on_finished = stop
    with pytest.raises(KeyboardInterrupt):
        run(spec(), tmp_path / "sweep", watcher=watch)
    assert len(list((tmp_path / "sweep" / "runs").glob("*.json"))) == 1
    after = Watch()
    done = run(spec(), tmp_path / "sweep", watcher=after)
    assert len(after.missing) == 2
    assert [numbers(record) for record in done.records] == [numbers(record) for record in finished.records]


def test_more_splits_and_arms_are_added_only_when_asked(folder: Path, spec: Any) -> None:
    wider = spec(splits=[13, 21], arms=[ZERO, TUNE])
    with pytest.raises(UserError, match="holds another spec"):
        run(wider, folder)
    watch = Watch()
    measured = run(wider, folder, extend=True, watcher=watch)
    assert len(watch.missing) == 2
    assert [record.resolved.split for record in measured.records] == [13, 13, 21, 21]


def test_another_arm_under_the_same_name_is_refused(folder: Path, spec: Any) -> None:
    with pytest.raises(UserError, match=r"another arm called 'adam'.*steps"):
        run(spec(arms=[ZERO, {**TUNE, "steps": 5, "check_every": 5}]), folder, extend=True)
    other = {**spec().tasks[0].model_dump(), "variant": "null"}
    with pytest.raises(UserError, match=r"another task called 'sst2'.*template"):
        run(spec(tasks=[other]), folder, extend=True)


def test_a_folder_of_another_kind_is_refused(spec: Any, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"attacks": []}), encoding="utf-8")
    with pytest.raises(UserError, match="a sweep of another kind"):
        run(spec(), tmp_path)


def test_worker_processes_give_the_same_numbers(spec: Any, tmp_path: Path, finished: Any) -> None:
    done = run(spec(), tmp_path / "sweep", processes=2)
    assert [numbers(record) for record in done.records] == [numbers(record) for record in finished.records]


def test_a_run_that_diverges_or_fails_leaves_a_record(spec: Any, tmp_path: Path, monkeypatch: Any) -> None:
    wild = {**TUNE, "optimiser": "sgd", "learning_rates": [1e30], "max_grad_norm": None, "name": "wild"}
    measured = run(spec(arms=[wild, ZERO]), tmp_path / "wild")
    assert measured.statuses == {"diverged": 1, "completed": 1}
    record = measured.records[0]
    assert record.reason is not None
    assert "diverged" in record.reason
    assert [point.dev_score for point in record.grid] == [None]

    def broken(*_: Any, **__: Any) -> None:
        raise Diverged("said so") if monkeypatch is None else RuntimeError("broken\nhere")

    monkeypatch.setattr("foretaste.fewshot.tune.tune", broken)
    failed = run(spec(arms=[TUNE]), tmp_path / "broken")
    assert failed.statuses == {"error": 1}
    assert failed.records[0].reason == "RuntimeError: broken here"
    monkeypatch.undo()
    assert run(spec(arms=[TUNE]), tmp_path / "broken").statuses == {"completed": 1}  # an error is tried again


# --- what is refused before anything is computed -------------------------------------------------


def refused(spec: FewShotSpec, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(spec, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_bad_requests(
    spec: Any, tmp_path: Path, csv_folder: Path, tiny_bert: Path, prompt_model: Any
) -> None:
    data = {"source": str(csv_folder)}

    def own(**fields: Any) -> list[dict[str, Any]]:
        prompt = {"template": "{text_a} It was {answer}.", "words": ["bad", "good"]} | fields
        return [{"name": "own", "data": data, "prompt": prompt}]

    refused(spec(k=[13]), tmp_path, r"tasks\.0 \(sst2\).*k = 13 takes 26 rows of each class.*Lower k to 12")
    refused(
        spec(tasks=own(words=["bad", "goodish"])),
        tmp_path,
        r"'goodish' is \d tokens \('good', .*expected one",
    )
    refused(spec(tasks=own(words=["a", "the", "film"])), tmp_path, "3 label words.*2 classes")
    refused(spec(tasks=own(words={"no": "bad", "yes": "good"})), tmp_path, "names the classes no, yes")
    refused(spec("llama", tasks=own(template="{answer}: {text_a}")), tmp_path, r"a text follows \{answer\}")
    refused(spec(tasks=own(template="{text_a} {answer} {text_b}")), tmp_path, "a place for a second text")
    refused(spec(tasks=own(max_length=5)), tmp_path, "the template alone has 6 tokens")
    long = own(template="the film " * 50 + "{text_a} It was {answer}.", max_length=128)
    refused(spec(tasks=long), tmp_path, "the longest row has 1.. tokens, the model has 96 positions")
    refused(spec("roberta", tasks=long), tmp_path, "the model has 96 positions")
    refused(spec(model={"base": str(tiny_bert)}), tmp_path, "without its language head")
    refused(spec(memory="much"), tmp_path, "'much' is no amount of memory")
    refused(spec("llama", arms=[{**TUNE, "adapter": "bitfit"}]), tmp_path, "no bias terms")
    refused(spec(arms=[{**TUNE, "adapter": "lora", "rank": 99}]), tmp_path, "rank 99 is larger")
    three = [{"name": "sst5", "data": data}]
    refused(spec(tasks=three), tmp_path, "5 label words.*2 classes")
    refused(spec(model={"base": str(prompt_model("bert")) + "x"}), tmp_path, "no local folder|no config")


def test_f1_of_three_classes_is_refused(spec: Any, make_csv_folder: Any, tmp_path: Path) -> None:
    prompt = {"template": "{text_a} It was {answer}.", "words": ["bad", "good", "plain"]}
    task = {"name": "own", "data": {"source": str(make_csv_folder(classes=3))}, "prompt": prompt}
    refused(spec(tasks=[{**task, "metric": "f1"}]), tmp_path, "f1 is of class 1 of two")
    measured = run(spec(tasks=[task], arms=[ZERO, TUNE]), tmp_path / "three")
    assert measured.statuses == {"completed": 2}


def test_changed_data_are_noticed(spec: Any, make_csv_folder: Any, tmp_path: Path) -> None:
    source = make_csv_folder()
    made = spec(tasks=[{"name": "sst2", "data": {"source": str(source)}}], arms=[ZERO])
    planned = plan(made, NOWHERE)
    path = source / "train.csv"
    path.write_text(path.read_text().replace("good", "fine"), encoding="utf-8")
    prepare._load.cache_clear()
    with pytest.raises(UserError, match="the data changed"):
        prepare.prepare(planned.runs[0], NOWHERE)


# --- planning ------------------------------------------------------------------------------------


def test_runs_come_split_by_split_and_notes_say_what_was_done(spec: Any, csv_folder: Path) -> None:
    task = {"data": {"source": str(csv_folder)}, "prompt": "sst2", "test_rows": 12}
    made = spec(
        tasks=[{"name": "one", **task}, {"name": "two", **task, "variant": "null"}], k=[2, 4], splits=[13, 21]
    )
    planned = plan(made, NOWHERE)
    assert len(planned.runs) == 2 * 2 * 2 * 3
    assert [run.split for run in planned.runs] == [13] * 12 + [21] * 12
    assert planned.runs[1].arm.steps == 6  # type: ignore[union-attr]
    assert "one: 12 of 24 test rows are drawn" in planned.notes


def test_words_follow_the_classes_of_the_data(spec: Any, csv_folder: Path) -> None:
    """The built-in words know their classes by name, whatever the order of the ids."""
    data = {"source": str(csv_folder)}
    for labels in (["negative", "positive"], ["positive", "negative"]):
        task = {"name": "sst2", "data": {**data, "labels": labels}}
        resolved = plan(spec(tasks=[task], arms=[ZERO]), NOWHERE).runs[0].task
        words = dict(zip(resolved.classes, resolved.prompt.words, strict=True))
        assert words == {"negative": "terrible", "positive": "great"}


def test_the_estimate_grows_with_the_work(spec: Any) -> None:
    def operations(**sections: Any) -> list[float]:
        planned = plan(spec(**sections), NOWHERE)
        return [fewshot_estimate.operations(run, planned) for run in planned.runs]

    zero, tuned, kernel = operations()
    assert zero == 0.0 < min(tuned, kernel)
    assert operations(arms=[{**TUNE, "steps": 12, "check_every": 6}])[0] == pytest.approx(2 * tuned, rel=0.35)
    assert operations(k=[8])[2] > 1.5 * kernel
    planned = plan(spec(), NOWHERE)
    assert fewshot_estimate.seconds([], planned) == 0.0
    assert fewshot_estimate.seconds(planned.runs, planned) > 3 * fewshot_estimate.OVERHEAD
