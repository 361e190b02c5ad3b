"""Made-up few-shot records with planted scores and criteria, and folders of such sweeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretaste.data.prompts import METRICS, TASKS, Variant, builtin
from foretaste.fewshot.record import (
    Criteria,
    FewShotLayout,
    FewShotRecord,
    FewShotTimings,
    GridPoint,
    Rows,
    Score,
)
from foretaste.fewshot.spec import (
    FewShotData,
    FewShotModel,
    FewShotRun,
    FineTune,
    KernelArm,
    ResolvedFewShotModel,
    ResolvedTask,
    ZeroShot,
)
from foretaste.record import Machine

ARMS: dict[str, dict[str, Any]] = {
    "zero-shot": {"kind": "zero-shot"},
    "sgd": {"kind": "fine-tune", "optimiser": "sgd"},
    "adam": {"kind": "fine-tune", "optimiser": "adam"},
    "sgd-lora": {"kind": "fine-tune", "optimiser": "sgd", "adapter": "lora"},
    "sgd-standard": {"kind": "fine-tune", "optimiser": "sgd", "output": "standard"},
    "kernel-sgd": {"kind": "kernel", "kernel": "sgd"},
    "kernel-signgd": {"kind": "kernel", "kernel": "signgd"},
    "kernel-asymmetric": {"kind": "kernel", "kernel": "asymmetric"},
    "kernel-sgd-lora": {"kind": "kernel", "kernel": "sgd", "adapter": "lora"},
    "kernel-sgd-standard": {"kind": "kernel", "kernel": "sgd", "output": "standard"},
}
N = 200


def arm_of(name: str, /, **fields: Any) -> ZeroShot | FineTune | KernelArm:
    kinds = {"zero-shot": ZeroShot, "fine-tune": FineTune, "kernel": KernelArm}
    given = ARMS[name] | fields
    made: ZeroShot | FineTune | KernelArm = kinds[given["kind"]](**given)  # type: ignore[assignment]
    return made


def score_of(value: float | None, metric: str = "accuracy", n: int = N) -> Score:
    return Score(metric=metric, value=value, n=n, correct=round(n * (value or 0.0)))  # type: ignore[arg-type]


def record(
    arm: str,
    split: int = 13,
    score: float | None = 0.8,
    *,
    task: str = "sst2",
    name: str | None = None,
    k: int = 16,
    variant: Variant = "manual",
    model: str = "tiny-lm",
    kind: str = "causal",
    dev: float = 0.75,
    zero_shot: float = 0.6,
    criteria: Mapping[str, Any] | None = None,
    facts: Mapping[str, float] | None = None,
    status: str = "completed",
    reason: str = "loss is not finite",
    chosen: Mapping[str, Any] | None = None,
    cut: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    predictions: Sequence[int] = (0, 1),
) -> FewShotRecord:
    """One record.

    Args:
        criteria: Of a fine-tuning arm; makes the arm one that measures them.
        chosen: Settings that validation chose.
        settings: Further fields of the arm.
    """
    fields = dict(settings or {})
    if criteria is not None and ARMS[arm]["kind"] == "fine-tune":
        fields["criteria"] = True
    prompt = builtin(task, variant) if task in TASKS else builtin("sst2", variant)
    classes = list(prompt.classes or ["a", "b"])
    metric = METRICS.get(task, "accuracy")
    run = FewShotRun(
        task=ResolvedTask(
            name=name or task,
            request=FewShotData(source=f"some/{task}"),
            classes=classes,
            test_split="test",
            test_rows=N,
            fingerprint=f"data-{task}",
            prompt=prompt.model_copy(update={"classes": None}),
            metric=metric,
        ),
        model=ResolvedFewShotModel(
            request=FewShotModel(base=model),
            fingerprint=f"weights-{model}",
            kind=kind,  # type: ignore[arg-type]
        ),
        k=k,
        split=split,
        arm=arm_of(arm, **fields).resolved(k * len(classes)),
    )
    done = status == "completed"
    points = [GridPoint(settings=dict(chosen or {"learning_rate": 0.005}), dev_score=dev, test_score=score)]
    points.append(GridPoint(settings={"learning_rate": 9.0}, dev_score=None, warning="loss is not finite"))
    tuned = run.arm.kind != "zero-shot"
    return FewShotRecord(
        run_id=run.id,
        sweep="tiny",
        request={"name": "tiny", "title": "A tiny sweep"},
        resolved=run,
        status=status,  # type: ignore[arg-type]
        reason=None if done else reason,
        started="2026-01-02T03:04:05+00:00",
        versions={"foretaste": "0.1.0"},
        commit=None,
        dirty=None,
        machine=Machine(device="cpu", threads=1, processes=1, system="Linux", cpu="Test"),
        prompt_hash=run.task.prompt.fingerprint,
        model_kind=run.model.kind,
        timings=FewShotTimings(load=1.0, arm=2.0, total=3.0) if done else None,
        rows=_rows(run, cut) if done else None,
        zero_shot_dev=score_of(zero_shot, metric) if done else None,
        zero_shot_test=score_of(zero_shot, metric) if done else None,
        grid=points if tuned and done else [],
        selected=0 if tuned and done else None,
        dev=score_of(dev, metric) if done else None,
        test=score_of(score, metric) if done else None,
        predictions=list(predictions) if done else [],
        criteria=_criteria(criteria, metric) if criteria is not None and done else None,
        facts=dict(facts or {}) if done else {},
        notes=["label words go by the order"],
    )


def _rows(run: FewShotRun, cut: Sequence[str]) -> Rows:
    few = run.k * len(run.task.classes)
    return Rows(
        train=few,
        dev=few,
        test=N,
        train_hash=f"train-{run.task.name}-{run.k}-{run.split}",
        dev_hash=f"dev-{run.task.name}-{run.k}-{run.split}",
        test_hash=f"test-{run.task.name}",
        train_cut=[],
        dev_cut=[],
        test_cut=list(cut),
        shared_texts=0,
    )


def _criteria(given: Mapping[str, Any], metric: str) -> Criteria:
    values = dict(given)
    if isinstance(values.get("linearised_test"), float):
        values["linearised_test"] = score_of(values["linearised_test"], metric)
    return Criteria(**values)


GOOD = {
    "linearised_test": 0.78,
    "linearised_share": 0.9,
    "kernel_distance": 0.4,
    "alignment": 0.97,
    "scaled_distance": 0.24,
    "kernel_rows": 64,
    "chi": 0.4,
    "chi_after": 0.2,
}


def sweep(splits: Sequence[int] = (13, 21, 42), **options: Any) -> list[FewShotRecord]:
    """Zero-shot, SGD with criteria and its kernel, Adam and the sign kernel, on one task."""
    found = []
    for place, split in enumerate(splits):
        found += [
            record("zero-shot", split, 0.6, **options),
            record("sgd", split, 0.80 + 0.02 * place, criteria=GOOD, **options),
            record("kernel-sgd", split, 0.78 + 0.01 * place, **options),
            record("adam", split, 0.82, **options),
            record("kernel-signgd", split, 0.70, **options),
        ]
    return found


def write(folder: Path, *records: FewShotRecord, title: str = "A tiny sweep") -> Path:
    """A sweep's folder with these records."""
    layout = FewShotLayout(folder)
    layout.runs.mkdir(parents=True, exist_ok=True)
    spec = {"name": folder.name, "title": title, "arms": [{"kind": "zero-shot"}]}
    layout.spec.write_text(json.dumps(spec), encoding="utf-8")
    for made in records:
        layout.record(made.run_id).write_text(made.model_dump_json(), encoding="utf-8")
    return folder
