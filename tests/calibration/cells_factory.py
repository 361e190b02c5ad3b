"""Cells built by hand for tests of the calibration. Every number here is made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foretaste.calibration.cells import Cell, Kind, Measured, Sample
from foretaste.calibration.places import Amount
from foretaste.record import Interval, Outcome, Prediction
from foretaste.spec import ResolvedAdapter, TrainingSpec


def sample(values: Sequence[float]) -> Sample:
    return Sample({str(seed): value for seed, value in enumerate(values)})


def prediction(accuracy: float, **changes: Any) -> Prediction:
    half = changes.pop("half", 0.05)
    rate = changes.pop("asr", None)
    probe = changes.pop("probe", 0.7)
    content = {
        "accuracy": Interval(mean=accuracy, low=accuracy - half, high=accuracy + half),
        "target_rate": None if rate is None else Interval(mean=rate, low=rate - half, high=rate + half),
        "baseline_target_rate": None,
        "budgets": {},
        "probe": Outcome(accuracy=probe, target_rate=None, triggered_accuracy=None),
        "validity": "valid",
        "reasons": [],
        "draws": 1,
        "train_rows": 256,
        "held_out": 128,
        "held_out_from": "train",
        "steps": 100,
        "trainable_parameters": 1000,
        "indicators": {},
        "certified": [],
        "reads": [],
        "seconds": 1.0,
    }
    return Prediction.model_validate(content | changes)


def cell(
    arm: str,
    attack: str = "label-flip",
    rate: float | None = 0.1,
    *,
    told: float | None = 0.8,
    seen: Sequence[float] = (),
    seen_asr: Sequence[float] = (),
    seen_flip: Sequence[float] = (),
    folder: str = "f",
    config: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    training: TrainingSpec | None = None,
    **changes: Any,
) -> Cell:
    """One cell: `told` and `changes` make the prediction, the others what was measured, one value a seed."""
    kind: Kind = "clean" if attack == "clean" else "backdoor" if attack == "trigger" else "flips"
    rates, flips = sample(seen_asr), sample(seen_flip)
    return Cell(
        folder=folder,
        model="m",
        data="d",
        attack=attack,
        amount=Amount(None if kind == "clean" else rate, None),
        arm=arm,
        kind=kind,
        adapter=ResolvedAdapter(
            name=arm, method=arm.split("-")[0], config=dict(config or {}), init=None, freeze=None
        ),
        training=training or TrainingSpec(),
        prediction=None if told is None else prediction(told, **changes),
        measured=Measured(
            **{
                "statuses": {"completed": len(seen)} if seen else {},
                "accuracy": sample(seen),
                "target_rate": rates,
                "flip_rate": flips,
                "margin": rates.minus(flips),
                **(measured or {}),
            }
        ),
    )


def grid(rng: np.random.Generator, *, arms: int = 4, rates: int = 4, noise: float = 0.01) -> list[Cell]:
    """Arms x rates whose prediction is right up to noise."""
    cells = []
    for place in range(arms):
        for step in range(rates):
            truth = 0.9 - 0.05 * step - 0.02 * place
            seen = truth + rng.normal(0, 0.005, size=3)
            cells.append(
                cell(
                    f"arm{place}",
                    rate=0.1 * (step + 1),
                    told=truth + rng.normal(0, noise),
                    seen=seen.tolist(),
                )
            )
    return cells
