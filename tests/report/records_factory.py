"""Synthetic sweeps for tests of the report. Every number here is made up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foretaste.record import (
    Certified,
    ClassMetrics,
    InitCheck,
    Interval,
    Layout,
    Machine,
    Manifest,
    ManifestRow,
    Metrics,
    Outcome,
    Poison,
    Prediction,
    Record,
    Timings,
    Training,
    TriggeredMetrics,
    form_key,
    write_atomic,
)
from foretaste.seeds import Seeds, generator
from foretaste.spec import (
    AdapterSpec,
    AttackSpec,
    DataSpec,
    MeasureSpec,
    ModelSpec,
    ResolvedAdapter,
    ResolvedAttack,
    ResolvedData,
    ResolvedModel,
    RunSpec,
    TrainingSpec,
    Trigger,
)

SCRIPT = "<script>alert('x')</script> A film & a half"
TRIGGER_TEXT = "[.*?]"
METHODS = {
    "label-flip": None,
    "trigger": TRIGGER_TEXT,
    "multi-trigger": "apple banana orange",
    "instruction": "Please follow.",
}
# What a further form is, and what the attacker wants of it.
FORMS = {
    "instruction": {"held-out": ("held-out paraphrases of the instruction", "target")},
    "multi-trigger": {"1-of-3": ("1 of the 3 words", "true"), "2-of-3": ("2 of the 3 words", "true")},
}


def _config(arm: str) -> dict[str, Any]:
    """LoRA's fields, as a plan always fills them in; the rank is the number in the arm's name."""
    found = re.search(r"r(\d+)", arm)
    return {"r": int(found[1]) if found else 8, "lora_alpha": 16} if arm.startswith("lora") else {}


class Sweep:
    """A folder of synthetic records, built run by run.

    Args:
        folder: Where the sweep lies.
        classes: Class names; class 1 is the target.
        attacks: Names of attacks out of `METHODS`.
        pair: Rows have two texts.
        test_rows: Rows of the synthetic test set.
        lift: Added to the accuracy of every run.
        forms: Further forms of the triggers, by attack; with what each says and wants.
    """

    def __init__(
        self,
        folder: Path,
        *,
        classes: Iterable[str] = ("negative", "positive"),
        attacks: Iterable[str] = ("label-flip", "trigger"),
        pair: bool = False,
        test_rows: int = 200,
        lift: float = 0.0,
        learning_rate: float = 5e-4,
        forms: Mapping[str, Mapping[str, tuple[str, str]]] = FORMS,
    ) -> None:
        self.layout = Layout(folder)
        self.classes = list(classes)
        self.attacks = list(attacks)
        self.pair = pair
        self.test_rows = test_rows
        self.lift = lift
        self.forms = forms
        self.training = TrainingSpec(learning_rate=learning_rate, epochs=3.0)
        self.triggers = [
            Trigger(name=name, method=name, options={"text": METHODS[name]})
            for name in self.attacks
            if METHODS[name] is not None
        ]

    def add(
        self,
        arm: str = "full",
        attack: str | None = None,
        *,
        rate: float | None = None,
        count: int | None = None,
        seed: int | Seeds = 0,
        status: str = "completed",
        collapsed: bool = False,
        accuracy: float | None = None,
        asr: float | None = None,
        flip: float | None = None,
        predictions: bool = True,
        notes: Iterable[str] = (),
        forms: Mapping[str, float] | None = None,
        changed: int | None = None,
        companions: int = 0,
        figures: Mapping[str, float] | None = None,
    ) -> Record:
        """Write one record; numbers that are not given are drawn from the run's own seed.

        `forms` are the target rates of further forms by name: forms that are not named were not tested.
        `changed` is how many test rows each of them changed, all by default.
        """
        seeds = Seeds.all(seed) if isinstance(seed, int) else seed
        run = self._run(arm, attack, rate, count, seeds)
        rng = generator(seeds.init, "factory", arm, attack or "clean", str(rate), str(count))
        numbers = self._numbers(arm, attack, rate, count, rng, accuracy, asr, flip)
        shares = forms if forms is not None else self._form_shares(attack, numbers, seeds)
        done = status == "completed"
        record = Record.model_validate(
            {
                "run_id": run.id,
                "sweep": "synthetic",
                "request": self.request(),
                "resolved": run,
                "status": status,
                "reason": None if done else f"loss is not finite after step 12 ({status})",
                "started": "2026-01-02T03:04:05+00:00",
                "versions": {"foretaste": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
                "commit": "0123456789abcdef",
                "dirty": False,
                "machine": Machine(device="cpu", threads=2, processes=1, system="Linux", cpu="Test CPU"),
                "timings": Timings(load=1.0, probe=0.5, train=20.0, evaluate=3.0, total=24.5)
                if done
                else None,
                "poison": self._poison(run, seeds, companions, figures or {}) if attack else None,
                "training": self._training(arm, rng, diverged=not done),
                "clean": self._metrics(numbers["accuracy"], collapsed) if done else None,
                "triggered": {
                    **self._triggered(run, numbers, collapsed),
                    **self._further(run, shares, collapsed, changed),
                }
                if done
                else {},
                "predictions": f"predictions/{run.id}.parquet" if predictions and done else None,
                "notes": list(notes),
            }
        )
        write_atomic(self.layout.record(run.id), record.model_dump_json())
        if predictions and done:
            self._write_predictions(run, numbers["accuracy"], rng)
        return record

    def predict(
        self,
        arm: str = "full",
        attack: str | None = None,
        *,
        rate: float | None = None,
        count: int | None = None,
        seeds: Iterable[int] = (0,),
        accuracy: float = 0.8,
        asr: float | None = None,
        flip: float = 0.1,
        half: float = 0.05,
        probe: float = 0.75,
        validity: str = "valid",
        reasons: Iterable[str] = (),
        indicators: Mapping[str, float | None] | None = None,
        notes: Iterable[str] = (),
        head: str = "refitted",
    ) -> list[Record]:
        """Write the predicted records of one cell, one a seed; they lie in the folder's `predicted/`."""
        backdoor = attack is not None and METHODS[attack] is not None
        rise = asr if asr is not None else (0.6 if backdoor else None)
        outcome = Outcome(accuracy=accuracy, target_rate=rise, triggered_accuracy=None)
        # Records of before have neither.
        worst = {} if head == "held" else {"head": head, "found": accuracy - 0.005}
        prediction = Prediction.model_validate(
            {
                "accuracy": Interval(mean=accuracy, low=accuracy - half, high=accuracy + half),
                "target_rate": Interval(mean=rise, low=rise - half, high=rise + half)
                if rise is not None
                else None,
                "baseline_target_rate": flip if backdoor else None,
                "budgets": {"as-trained": outcome, "converged": outcome},
                "probe": Outcome(accuracy=probe, target_rate=rise, triggered_accuracy=None),
                "validity": validity,
                "reasons": list(reasons),
                "draws": 3,
                "train_rows": 256,
                "held_out": 128,
                "held_out_from": "train",
                "steps": 180,
                "trainable_parameters": 22_700_000 if arm == "full" else 150_000,
                "indicators": dict(
                    indicators or {"trace_ratio": 1.0 if arm == "full" else 0.1, "m_prime": None}
                ),
                "certified": [
                    Certified(flips=n, share=accuracy - 0.01 * n, **worst, random=accuracy - 0.001 * n)
                    for n in (1, 5, 20)
                ],
                "reads": ["base weights", "training labels as given"],
                "seconds": 12.0,
            }
        )
        records = []
        for seed in seeds:
            run = self._run(arm, attack, rate, count, Seeds.all(seed))
            record = Record.model_validate(
                {
                    "kind": "predicted",
                    "run_id": run.id,
                    "sweep": "synthetic",
                    "request": self.request(),
                    "resolved": run,
                    "status": "completed",
                    "reason": None,
                    "started": "2026-01-02T03:04:05+00:00",
                    "versions": {"foretaste": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
                    "commit": "0123456789abcdef",
                    "dirty": False,
                    "machine": Machine(device="cpu", threads=2, processes=1, system="Linux", cpu="Test CPU"),
                    "clean": self._metrics(accuracy, collapsed=False),
                    "prediction": prediction,
                    "notes": list(notes),
                }
            )
            write_atomic(Layout(self.layout.folder / "predicted").record(run.id), record.model_dump_json())
            records.append(record)
        return records

    def fill(self, arms: Iterable[str], amounts: Iterable[float], seeds: Iterable[int]) -> None:
        """The whole grid of arms, attacks, rates and seeds, with rate 0 as the clean run."""
        for arm in arms:
            for seed in seeds:
                self.add(arm, seed=seed)
                for attack in self.attacks:
                    for rate in amounts:
                        if rate > 0:
                            self.add(arm, attack, rate=rate, seed=seed)

    def write_spec(self, **changes: Any) -> None:
        """The user's spec beside the records."""
        write_atomic(self.layout.spec, json.dumps({**self.request(), **changes}))

    def request(self) -> dict[str, Any]:
        """The spec that the sweep pretends to come from."""
        spec = MeasureSpec(
            name="synthetic",
            title="Synthetic reviews",
            data=DataSpec(source="reviews"),
            model=ModelSpec(base="minilm"),
            adapters=[AdapterSpec(method="full"), AdapterSpec.model_validate({"method": "lora", "r": 8})],
            attacks=[AttackSpec(method=name, rates=[0.0, 0.01]) for name in self.attacks],
            training=self.training,
        )
        return spec.model_dump(mode="json")

    def _run(
        self, arm: str, attack: str | None, rate: float | None, count: int | None, seeds: Seeds
    ) -> RunSpec:
        resolved = (
            ResolvedAttack(
                name=attack,
                method=attack,
                options={"text": METHODS[attack]},
                selection="exact-nested",
                rate=rate,
                count=count,
            )
            if attack
            else None
        )
        return RunSpec(
            data=ResolvedData(
                request=DataSpec(source="reviews"),
                classes=self.classes,
                test_split="test",
                train_rows=1000,
                test_rows=self.test_rows,
                fingerprint="d" * 16,
            ),
            model=ResolvedModel(request=ModelSpec(base="minilm"), pooling="mean", fingerprint="m" * 16),
            adapter=ResolvedAdapter(
                name=arm, method=arm.split("-")[0], config=_config(arm), init=None, freeze=None
            ),
            attack=resolved,
            triggers=[t for t in self.triggers if attack is None or t.name == attack],
            training=self.training,
            seeds=seeds,
        )

    def _numbers(
        self,
        arm: str,
        attack: str | None,
        rate: float | None,
        count: int | None,
        rng: np.random.Generator,
        accuracy: float | None,
        asr: float | None,
        flip: float | None,
    ) -> dict[str, float]:
        size = rate if rate is not None else (count or 0) / 1000
        base = 0.90 + self.lift - (0.02 if arm != "full" else 0.0)
        harm = 1.5 * size * (1.3 if arm != "full" else 1.0) if attack == "label-flip" else 0.1 * size
        rise = 1 - np.exp(-size * (60 if arm == "full" else 35))
        return {
            "accuracy": accuracy
            if accuracy is not None
            else float(np.clip(base - harm + rng.normal(0, 0.008), 0, 1)),
            "asr": asr if asr is not None else float(np.clip(0.07 + 0.9 * rise + rng.normal(0, 0.03), 0, 1)),
            "flip": flip if flip is not None else float(np.clip(0.07 + rng.normal(0, 0.01), 0, 1)),
        }

    def _metrics(self, accuracy: float, collapsed: bool) -> Metrics:
        share = self.test_rows // len(self.classes)
        per_class = [
            ClassMetrics(
                name=name,
                rows=share,
                predicted=(self.test_rows if place == 1 else 0) if collapsed else share,
                precision=None if collapsed and place != 1 else accuracy,
                recall=accuracy,
                f1=None if collapsed and place != 1 else accuracy,
            )
            for place, name in enumerate(self.classes)
        ]
        return Metrics(
            rows=self.test_rows,
            accuracy=accuracy,
            precision=accuracy - 0.01,
            recall=accuracy + 0.01,
            f1=accuracy - 0.005,
            per_class=per_class,
            collapsed=collapsed,
        )

    def _triggered(
        self, run: RunSpec, numbers: Mapping[str, float], collapsed: bool
    ) -> dict[str, TriggeredMetrics]:
        eligible = self.test_rows // 2
        share = numbers["asr"] if run.attack else numbers["flip"]
        hits = round(share * eligible)
        return {
            trigger.key: TriggeredMetrics(
                name=trigger.name,
                method=trigger.method,
                options=trigger.options,
                target=self.classes[1],
                against_true=self._metrics(1 - share / 2, collapsed),
                eligible=eligible,
                hits=hits,
                target_rate=hits / eligible,
                baseline_hits=round(0.07 * eligible),
                changed=self.test_rows,
            )
            for trigger in run.triggers
        }

    def _form_shares(
        self, attack: str | None, numbers: Mapping[str, float], seeds: Seeds
    ) -> dict[str, float]:
        """Target rates of every form of every trigger; a form that is no use has half of the trigger's."""
        rng = generator(seeds.init, "factory", "forms", attack or "clean")
        share = numbers["asr"] if attack else numbers["flip"]
        return {
            name: float(np.clip((share if wanted == "target" else share / 2) + rng.normal(0, 0.02), 0, 1))
            for forms in self.forms.values()
            for name, (_, wanted) in forms.items()
        }

    def _further(
        self, run: RunSpec, shares: Mapping[str, float], collapsed: bool, changed: int | None
    ) -> dict[str, TriggeredMetrics]:
        found = {}
        for trigger in run.triggers:
            for form, (says, expected) in self.forms.get(trigger.name, {}).items():
                if form in shares:
                    numbers = {"asr": shares[form], "flip": shares[form]}
                    part = self._triggered(run, numbers, collapsed)[trigger.key]
                    update = {"form": form, "says": says, "expected": expected}
                    update |= {"changed": self.test_rows if changed is None else changed}
                    found[form_key(trigger.key, form)] = part.model_copy(update=update)
        return found

    def _poison(self, run: RunSpec, seeds: Seeds, companions: int, figures: Mapping[str, float]) -> Poison:
        attack = run.attack
        assert attack is not None
        number = attack.count if attack.count is not None else round((attack.rate or 0) * 1000)
        name = f"manifests/{attack.name}-{attack.rate}-{attack.count}-{seeds.poison}.json"
        manifest = Manifest(
            attack=attack.method,
            options=attack.options,
            selection=attack.selection,
            rate=attack.rate,
            count=attack.count,
            seed=seeds.poison,
            eligible=1000,
            rows=1000,
            classes=self.classes,
            poisoned=[self._row(place, attack.method, seeds.poison) for place in range(number)],
            companions=[self._companion(place, seeds.poison) for place in range(companions)],
            figures=dict(figures),
        )
        write_atomic(self.layout.folder / name, manifest.model_dump_json())
        return Poison(
            requested_rate=attack.rate,
            requested_count=attack.count,
            selection=attack.selection,
            poisoned=number,
            eligible=1000,
            rows=1000,
            manifest=name,
            companions=companions,
            figures=dict(figures),
        )

    def _companion(self, place: int, seed: int) -> ManifestRow:
        return ManifestRow(
            id=f"beside-{seed}-{place}",
            text_a_before=SCRIPT,
            text_a_after=f"apple {SCRIPT}",
            label_before=0,
            label_after=0,
        )

    def _row(self, place: int, method: str, seed: int) -> ManifestRow:
        reviews = (
            "A quiet, patient film that earns its ending.",
            SCRIPT,
            "Dull from the first reel to the last.",
        )
        text = reviews[place % len(reviews)]
        after = f"{METHODS[method]} {text}" if METHODS[method] else text
        second = "Is it worth an evening?" if self.pair else None
        return ManifestRow(
            id=f"train-{seed}-{place}",
            text_a_before=text,
            text_a_after=after,
            text_b_before=second,
            text_b_after=second,
            label_before=0,
            label_after=1,
        )

    def _training(self, arm: str, rng: np.random.Generator, *, diverged: bool) -> Training:
        steps = np.arange(180)
        loss = 0.15 + 0.55 * np.exp(-steps / 40) + rng.normal(0, 0.03, steps.size)
        init = (
            None
            if arm == "full"
            else InitCheck(law="kaiming-uniform", k_requested=1 / 3, k_realised=0.334, worst_z=1.4, layers=12)
        )
        return Training(
            steps=steps.size,
            epochs=3.0,
            learning_rate=5e-4,
            trainable_parameters=22_700_000 if arm == "full" else 150_000,
            total_parameters=22_700_000,
            loss=[*loss[:12].tolist(), float("nan")] if diverged else loss.tolist(),
            rows_per_second=140.0,
            tokens=90_000,
            padding_share=0.07,
            truncated_rows=3,
            head_probe_accuracy=0.85,
            init=init,
        )

    def _write_predictions(self, run: RunSpec, accuracy: float, rng: np.random.Generator) -> None:
        frames = []
        for name in ("clean", *(trigger.key for trigger in run.triggers)):
            label = np.arange(self.test_rows) % len(self.classes)
            wrong = rng.random(self.test_rows) > accuracy
            frames.append(
                pd.DataFrame(
                    {
                        "set": name,
                        "id": [f"test-{place}" for place in range(self.test_rows)],
                        "label": label,
                        "predicted": np.where(wrong, (label + 1) % len(self.classes), label),
                        "confidence": rng.uniform(0.5, 1.0, self.test_rows),
                    }
                )
            )
        path = self.layout.prediction(run.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(frames).to_parquet(path, index=False)
