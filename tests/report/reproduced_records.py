"""Synthetic sweeps for tests of reproduced figures: arms with settings, and what a page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from records_factory import Sweep

from foretaste.record import InitCheck, Record, write_atomic
from foretaste.report.reproduced import GridView, HeatView, Item, Source, TableView
from foretaste.spec import RunSpec
from foretaste.statistics import UNDEFINED, Interval

VIEWS = {
    "rates": GridView(
        kind="grid", x="rate", measures={"label-flip": ["accuracy"], "trigger": ["asr", "asr_minus_flip"]}
    ),
    "ranks": GridView(
        kind="grid",
        x="rank",
        lines="poison",
        measures={"label-flip": ["accuracy"], "trigger": ["triggered_accuracy"]},
    ),
    "table": TableView(kind="table", measures=["accuracy", "accuracy_change", "asr", "asr_minus_flip"]),
    "heat": HeatView(kind="heat", measures={"label-flip": ["accuracy"], "trigger": ["asr_minus_flip"]}),
}


def add(
    sweep: Sweep,
    arm: str,
    attack: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    init: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    k_realised: float | None = None,
    **values: Any,
) -> Record:
    """A record of the factory with settings of its arm; it is filed under the id that they give."""
    made = sweep.add(arm, attack, **values)
    sweep.layout.record(made.run_id).unlink()
    content = made.model_dump(mode="json")
    adapter = content["resolved"]["adapter"]
    adapter |= {"config": dict(config or {}), "init": dict(init) if init else None}
    content["resolved"]["training"] |= dict(training or {})
    content["run_id"] = RunSpec.model_validate(content["resolved"]).id
    if k_realised is not None and content["training"]:
        check = InitCheck(
            law="gaussian", k_requested=k_realised, k_realised=k_realised, worst_z=0.1, layers=12
        )
        content["training"]["init"] = check.model_dump()
    record = Record.model_validate(content)
    write_atomic(sweep.layout.record(record.run_id), record.model_dump_json())
    return record


def rates(folder: Path, *, arms: Sequence[str] = ("full", "lora-r8"), seeds: int = 3, **kwargs: Any) -> Sweep:
    """Two attacks over two rates."""
    sweep = Sweep(folder, **kwargs)
    sweep.fill(arms, (0.1, 0.3), range(seeds))
    return sweep


def ranks(folder: Path, *, seeds: int = 2) -> Sweep:
    """LoRA over three ranks with alpha = r, clean and under two attacks."""
    sweep = Sweep(folder)
    for r in (4, 16, 64):
        for seed in range(seeds):
            for attack, rate in ((None, None), ("label-flip", 0.3), ("trigger", 0.06)):
                config = {"r": r, "lora_alpha": r}
                add(sweep, f"lora-r{r}", attack, rate=rate, seed=seed, config=config)
    return sweep


def learning_rates(folder: Path, *, seeds: int = 2) -> Sweep:
    """Full fine-tuning and LoRA over learning rates, clean and at two amounts of two attacks."""
    sweep = Sweep(folder)
    grid = {"full": (1e-5, 5e-5, 1e-4), "lora-r8": (1e-4, 5e-4)}
    for method, values in grid.items():
        config = {} if method == "full" else {"r": 8, "lora_alpha": 16}
        for rate in values:
            arm = f"{method}-learning_rate={rate:g}"
            for seed in range(seeds):
                shared = {"seed": seed, "config": config, "training": {"learning_rate": rate}}
                add(sweep, arm, **shared)
                for attack in ("label-flip", "trigger"):
                    for amount in (0.1, 0.3):
                        add(sweep, arm, attack, rate=amount, **shared)
    return sweep


def source(of: Sweep | Path, **changes: Any) -> Source:
    """A source on a sweep's folder."""
    folder = of if isinstance(of, Path) else of.layout.folder
    usual = {
        "task": "SST-2",
        "variant": "clean",
        "sweep": "Poison rate",
        "attacks": ("label-flip", "trigger"),
    }
    return Source(folder=folder, **{**usual, **changes})


def item(view: str | Any = "rates", **changes: Any) -> Item:
    """What is reproduced."""
    usual = {
        "name": "ttr-figx",
        "title": "Accuracy under attack",
        "item": "TTR paper, Figure X",
        "says": "LoRA loses more.",
        "view": VIEWS[view] if isinstance(view, str) else view,
        "published": None,
        "differences": ("Fewer rows.",),
        "command": "foretaste reproduce ttr-figx",
        "scale": "laptop",
    }
    return Item(**{**usual, **changes})


@dataclass(frozen=True)
class Words:
    statement: str = "LoRA loses more accuracy."
    measure: str = "accuracy lost"
    unit: str = "points"


@dataclass(frozen=True)
class Finding:
    """A verdict as a page takes it."""

    hypothesis: str = "lora-weaker-under-flips"
    entry: Words = Words()
    group: str = "sst2 · minilm"
    decision: str = "supported"
    reason: str = "Accuracy lost: 3.00 points [1.00, 5.00] over 3 seeds."
    effect: float = 3.0
    interval: Interval = field(default_factory=lambda: Interval(1.0, 5.0))
    p_holm: float = 0.02
    n: int = 3
    cautions: tuple[str, ...] = ("A collapsed run takes part.", "Learning rates differ.")


NOTHING = Finding(
    hypothesis="rank-clean-stable",
    group="",
    decision="no records",
    reason="No records: it takes a sweep over ranks.",
    effect=float("nan"),
    interval=UNDEFINED,
    p_holm=float("nan"),
    n=0,
    cautions=(),
)
