"""The TTR paper's headline: the low-rank structure helps against backdoors and hurts against label flips.

A toy that has nothing but structure: a linear teacher, gaussian inputs, kernel gradient flow. LoRA's kernel
is X A^T A X^T with A^T A <= I, so every hypothesis of the paper's argument is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from foretaste.theory.backdoor import (
    BackdoorPool,
    backdoor_pool,
    by_filter,
    draw_poison_sets,
    predict_backdoor,
)
from foretaste.theory.claims.probes import draw_adapter
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.flow import converged_filter, flow_filter, predictor_at
from foretaste.theory.label_noise import draw_flips, drawn_accuracy
from foretaste.theory.layout import Floats, Ints
from foretaste.theory.loewner import adapter_eigenvalues
from foretaste.theory.regression import Decomposition, decompose

N_IN, TRAIN, TEST = 128, 120, 400
TIME = 3.0
"""eta t of full fine-tuning: some three times constants of a typical eigen-direction."""
BUDGETS = ("equal eta t", "equal eta t c", "converged")
FLIPS, BACKDOORS = 0.3, 0.1


class Toy(NamedTuple):
    """Rows of training and test, their labels -1 and +1, and the trigger that is added to an input."""

    train: Floats
    test: Floats
    labels: Ints
    test_labels: Ints
    trigger: Floats


class Outcome(NamedTuple):
    """What an attack does: accuracy under flips, accuracy lost to them, and attack success rate."""

    accuracy: float
    drop: float
    asr: float


def structure_decides(
    rng: np.random.Generator,
    *,
    ranks: Sequence[int] = (8, 32),
    budgets: Sequence[str] = BUDGETS,
    triggers: Sequence[float] = (8.0, 16.0),
    tasks: int = 12,
) -> Verdict:
    """TTR section 3.3 and abstract: LoRA loses more to label flips and gives in less to backdoors.

    The claim counts as true in the kindest reading: a lower accuracy under flips or a larger loss to them,
    together with a lower attack success, on average over tasks.

    Args:
        rng: Source of everything.
        ranks: With s = 1 and k = 1/3, small enough for A^T A <= I.
        budgets: How LoRA's training time is matched to that of full fine-tuning.
        triggers: Lengths of the trigger; an input has length sqrt(128) = 11.
        tasks: Independent teachers and adapters; differences are paired over them.
    """
    trials, numbers = [], {}
    for trigger in triggers:
        drawn = [_task(rng, trigger) for _ in range(tasks)]
        # Full fine-tuning has one budget in time, and convergence.
        full = {
            time: np.array([_outcome(toy, np.eye(N_IN), _Filter(time), rng) for toy in drawn])
            for time in {None if budget == "converged" else TIME for budget in budgets}
        }
        for r in ranks:
            adapters = [draw_adapter(rng, r, N_IN, 1 / 3) for _ in drawn]
            top = max(float(adapter_eigenvalues(A, scaling=1.0)[-1]) for A in adapters)
            for budget in budgets:
                phi = _filter(budget, r / 3 / N_IN)
                reference = full[None if budget == "converged" else TIME]
                lora = np.array([_outcome(toy, A, phi, rng) for toy, A in zip(drawn, adapters, strict=True)])
                change = Outcome(*(lora - reference).mean(axis=0).tolist())
                where = f"r = {r}, {budget}, trigger {trigger:g}"
                numbers[f"{where}: accuracy under flips"] = change.accuracy
                numbers[f"{where}: accuracy lost to flips"] = change.drop
                numbers[f"{where}: attack success"] = change.asr
                trials.append(
                    Trial(
                        f"{where}: LoRA minus full, accuracy under 30 % flips {change.accuracy:+.3f}, "
                        f"accuracy lost to them {change.drop:+.3f}, attack success at 10 % {change.asr:+.3f} "
                        f"(top eigenvalue of A^T A {top:.2f})",
                        (change.drop > 0 or change.accuracy < 0) and change.asr < 0,
                    )
                )
    return conclude(
        Statement(
            name="Section 3.3 (double-edged sword)",
            paper="TTR",
            claim="If M_Delta is negative semi-definite, LoRA is less robust to label flips and more robust "
            "to backdoors.",
            conditions="not implied: neither sign follows; they change with budget, rank and trigger, and "
            "the accuracy under flips may rank the arms otherwise than the accuracy lost to them",
            why_it_matters="No rank is safe by theorem. Compare arms at equal eta t, at equal eta t c and at "
            "convergence; only what survives all three is structure.",
        ),
        trials,
        numbers,
    )


def _task(rng: np.random.Generator, strength: float) -> Toy:
    # Inputs of a decaying spectrum, as representations have: the leading directions carry most of the label.
    spectrum = np.arange(1, N_IN + 1) ** -0.5
    spectrum *= np.sqrt(N_IN / np.sum(spectrum**2))
    teacher = rng.normal(size=N_IN)
    train, test = (rng.normal(size=(rows, N_IN)) * spectrum for rows in (TRAIN, TEST))
    labels, test_labels = (np.where(X @ teacher > 0, 1, -1).astype(np.int64) for X in (train, test))
    trigger = rng.normal(size=N_IN)
    return Toy(train, test, labels, test_labels, strength * trigger / np.linalg.norm(trigger))


@dataclass(frozen=True)
class _Filter:
    """One training budget; None is until convergence."""

    time: float | None

    def __call__(self, decomposition: Decomposition, /) -> Floats:
        if self.time is None:
            return converged_filter(decomposition)
        return flow_filter(decomposition, time=self.time)


def _filter(budget: str, c: float) -> _Filter:
    return _Filter({"equal eta t": TIME, "equal eta t c": TIME / c, "converged": None}[budget])


def _outcome(toy: Toy, A: Floats, phi: _Filter, rng: np.random.Generator) -> Outcome:
    train, test = toy.train @ A.T, toy.test @ A.T
    d = decompose(train @ train.T)
    predictor = predictor_at(d, test @ train.T, phi(d))
    flips = draw_flips(toy.labels, None, draws=20, rng=rng)
    accuracy = drawn_accuracy(predictor, flips, toy.test_labels, [0, round(FLIPS * TRAIN)]).mean
    return Outcome(float(accuracy[1]), float(accuracy[0] - accuracy[1]), _attack_success(toy, A, phi, rng))


def _attack_success(toy: Toy, A: Floats, phi: _Filter, rng: np.random.Generator) -> float:
    both = [np.concatenate([X, X + toy.trigger]) @ A.T for X in (toy.train, toy.test)]
    pool: BackdoorPool = backdoor_pool(both[0] @ both[0].T, both[1] @ both[0].T, toy.labels, toy.test_labels)
    sets = draw_poison_sets(toy.labels != 1, [BACKDOORS], draws=2, rng=rng)
    return float(predict_backdoor(pool, sets, 1, by_filter(phi)).asr.mean())
