"""What a cell's prediction depends on: its own run and attack, not the pool or what stands beside it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste.calibration.cells import PREDICTED
from foretaste.experiments import predict as experiment
from foretaste.experiments import predicted
from foretaste.experiments.captures import Captures, Reference, arm_key
from foretaste.experiments.plan import plan
from foretaste.experiments.pool import cell_key
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.simulate import Simulated, nearest, references, simulate
from foretaste.indicators import INDICATORS
from foretaste.models import heads
from foretaste.record import Record
from foretaste.spec import MeasureSpec, TrainingSpec
from foretaste.theory import function_space
from foretaste.training import trainer
from foretaste.training.order import step_batches

NOWHERE = Path("/nonexistent")
ROWS, DRAWN, USED = 130, 48, 16
FLIPS = {"method": "label-flip", "rates": [0.25]}
TRIGGER = {"method": "trigger", "text": "cf", "target": "positive", "rates": [0.5]}
LORA = {"method": "lora", "r": 2}
IA3 = {"method": "ia3"}


@pytest.fixture(scope="module", autouse=True)
def _one_penalty() -> Iterator[None]:
    """The head's penalty is not searched for, which saves most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "PENALTIES", np.array([1.0]))
        yield


@pytest.fixture(scope="module")
def make(make_csv_folder: Callable[..., Path], tiny_bert: Path) -> Callable[..., MeasureSpec]:
    """`make(**sections)`: three epochs over 48 rows, of which the prediction uses 16."""
    folder = make_csv_folder(train=ROWS)

    def spec(**sections: Any) -> MeasureSpec:
        base: dict[str, Any] = {
            "data": {"source": str(folder), "train_rows": DRAWN},
            "model": {"base": str(tiny_bert), "max_length": 32},
            "adapters": [{"method": "full"}, LORA],
            "attacks": [],
            "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.003},
            "predict": {"train_rows": USED, "held_out": 64, "entries": 3000},
            "seeds": [0],
        }
        for key, value in sections.items():
            merged = key in {"data", "model", "training", "predict"}
            base[key] = {**base[key], **value} if merged else value
        return MeasureSpec.model_validate(base)

    return spec


class Steps:
    """The parts of a prediction, one after the other."""

    def __init__(self, spec: MeasureSpec) -> None:
        planned = plan(spec, NOWHERE)
        self.captures = Captures(spec, planned, Workspace(Path(), NOWHERE, spec.name, {}), None)
        self.runs = planned.runs
        self.references: list[Reference] = references(self.captures, self.runs)
        self.simulated: dict[str, Simulated] = simulate(self.captures, self.references, self.runs)


# --- steps ----------------------------------------------------------------------------------------


def test_epochs_are_those_of_the_run_and_not_of_the_pool(
    make: Any, run: Callable[..., Any], tmp_path: Path
) -> None:
    """48 rows in batches of 8, three times: 18 steps, whatever share of the rows the kernels are of."""
    spec = make(adapters=[LORA], model={"head": "random-then-train"})
    (foretold,) = experiment.predict(spec, tmp_path, base_dir=NOWHERE).records
    (measured,) = run(spec, tmp_path).records
    assert foretold.prediction.steps == measured.training.steps == 18
    assert "predicted on 16 of 48 training rows" in foretold.notes
    assert any("these 16 rows are passed over more often than in a run" in note for note in foretold.notes)
    steps = Steps(spec)
    assert steps.simulated[foretold.run_id].losses.shape == (18,)


@pytest.mark.parametrize(
    ("pool", "training", "steps"),
    [
        (USED, {}, 18),
        (USED, {"gradient_accumulation": 4}, 6),
        (DRAWN, {}, 18),
        (1000, {"batch_size": 5, "epochs": 2.5}, 25),
    ],
    ids=["subset", "accumulated", "whole", "whole, with a rest"],
)
def test_the_steps_of_a_run_are_taken_on_the_pool(
    pool: int, training: dict[str, Any], steps: int, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schedule is the run's; batches go through the pool in the order of a run on these rows alone.

    Where the pool is all that a run trains on, nothing is different from steps planned on the pool.
    """
    asked: list[tuple[list[list[int]], list[float]]] = []
    real = function_space.train

    def train(tangent: Any, start: Any, rows: Any, labels: Any, batches: Any, rates: Any, **how: Any) -> Any:
        asked.append((batches, list(rates)))
        return real(tangent, start, rows, labels, batches, rates, **how)

    monkeypatch.setattr("foretaste.experiments.simulate.train", train)
    spec = make(adapters=[LORA], training=training, predict={"train_rows": pool})
    found = Steps(spec)
    (one,), ((batches, rates),) = found.runs, asked
    rows = found.captures.pool.train
    assert rows == min(pool, DRAWN)
    settings = one.training
    assert len(batches) == len(rates) == steps == trainer.planned_steps(settings, DRAWN)
    assert rates == trainer.planned_rates(settings, steps)
    assert rates[0] == 0.003
    assert 0.0 < rates[-1] <= 0.003 / steps * 1.001  # the schedule ends with the last step
    more = settings.gradient_accumulation
    order = {"seed": 0, "by_length": True, "accumulation": more}
    assert batches == step_batches(found.captures.pool.lengths, settings.batch_size, steps, **order)
    each = -(-rows // (settings.batch_size * more))
    for first in range(0, steps - each + 1, each):
        assert sorted(i for batch in batches[first : first + each] for i in batch) == list(range(rows))
    if rows == DRAWN:
        assert steps == trainer.planned_steps(settings, rows)
        cell, key = found.captures.pool.cells[cell_key(one)], arm_key(one)
        reference = nearest(found.references, cell)
        start, size = found.captures.start(cell, reference, key)
        again = real(
            reference.tangents[key],
            start,
            cell.rows,
            cell.labels,
            step_batches(found.captures.pool.lengths, settings.batch_size, steps, **order),
            trainer.planned_rates(settings, trainer.planned_steps(settings, len(cell.rows))),
            optimiser="adamw",
            clip=settings.max_grad_norm,
            size=size,
        )
        assert np.array_equal(found.simulated[one.id].losses, again.losses)


def test_as_many_steps_on_a_subset_go_where_all_rows_go() -> None:
    """What rows share is learnt at a rate that does not depend on their number, as the loss is a mean.

    Linear features of five dimensions, a teacher with a tenth of the labels flipped: three epochs over 480
    rows, against as many steps over a third of them, and against three epochs over that third.
    """
    g = np.random.default_rng(0)
    x = g.normal(size=(480 + 200, 5))
    labels = (x @ g.normal(size=5) > 0).astype(int) ^ (g.random(len(x)) < 0.1)
    held = x[480:]

    def after(rows: int, steps: int) -> Any:
        both = np.concatenate([x[:rows], held])
        settings = TrainingSpec(epochs=3, batch_size=16, learning_rate=0.05)
        result = function_space.train(
            function_space.Tangent(both @ x[:rows].T, None, None, None, 0.0, 1),
            np.zeros((len(both), 1)),
            np.arange(rows),
            labels[:rows],
            step_batches([1] * rows, 16, steps, seed=0, by_length=False),
            trainer.planned_rates(settings, steps),
            optimiser="sgd",
        )
        return result.outputs[rows:, 0]

    everything = after(480, 90)
    size = np.sqrt(np.mean(everything**2))
    off = {steps: np.sqrt(np.mean((after(160, steps) - everything) ** 2)) / size for steps in (90, 30)}
    assert off[90] < 0.2
    assert off[30] > 0.4


# --- batches --------------------------------------------------------------------------------------

BATCHED = [
    {"method": "full"},
    {"method": "full", "name": "full-24", "training": {"batch_size": 6, "gradient_accumulation": 4}},
    {**LORA, "name": "lora-4", "training": {"batch_size": 4}},
    {**LORA, "name": "lora-8"},
    {**IA3, "name": "ia3-4", "training": {"batch_size": 4}},
    {**IA3, "name": "ia3-16", "training": {"batch_size": 16}},
]


@pytest.fixture(scope="module")
def batched(make: Any) -> Steps:
    return Steps(make(adapters=BATCHED, training={"epochs": 1}))


def test_the_order_of_arms_changes_nothing(batched: Steps, make: Any) -> None:
    """Adam's second moments are those of an arm's own batches, not of the first arm's."""
    back = Steps(make(adapters=BATCHED[::-1], training={"epochs": 1}))
    assert [run.id for run in back.runs] == [run.id for run in batched.runs][::-1]
    for run in batched.runs:
        mine, other = batched.simulated[run.id], back.simulated[run.id]
        assert np.array_equal(mine.losses, other.losses), run.adapter.name
        assert mine.distance == other.distance
        assert np.array_equal(mine.trained.clean, other.trained.clean)


@pytest.mark.parametrize("arm", range(len(BATCHED)), ids=lambda arm: str(BATCHED[arm].get("name", "full")))
def test_an_arm_is_predicted_in_company_as_alone(arm: int, batched: Steps, make: Any) -> None:
    alone = Steps(make(adapters=[BATCHED[arm]], training={"epochs": 1}))
    (run,) = alone.runs
    mine, other = alone.simulated[run.id], batched.simulated[run.id]
    assert mine.losses == pytest.approx(other.losses, rel=1e-6)
    assert mine.distance == pytest.approx(other.distance, rel=1e-6)


def test_second_moments_are_of_the_batch_and_kernels_of_none(batched: Steps) -> None:
    """E[g^2] / B + (1 - 1 / B) E[g]^2 falls with B; the kernels are one and the same array."""
    (reference,) = batched.references
    arms = {arm.run.adapter.method: arm for arm in batched.captures.arms.values()}
    assert {name: arm.batches for name, arm in arms.items()} == {
        "full": (8, 24),
        "lora": (4, 8),
        "ia3": (4, 16),
    }
    for arm in arms.values():
        few, many = (reference.at_batch[arm.key, batch] for batch in arm.batches)
        assert few.plain is many.plain is reference.tangents[arm.key].plain
        assert few.body is not None
        assert many.body is not None
        ratio = few.body.root / many.body.root
        assert 1.0 < ratio <= np.sqrt(arm.batches[1] / arm.batches[0]) + 1e-6
    for run in batched.runs:
        batch = run.training.batch_size * run.training.gradient_accumulation
        assert reference.tangent_of(run) is reference.at_batch[arm_key(run), batch]


# --- in place of an older prediction --------------------------------------------------------------

RANDOM: dict[str, Any] = {"model": {"head": "random-then-train"}, "training": {"epochs": None, "steps": 2}}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the predictions but the lock."""
    place = folder / PREDICTED
    files = (path for path in place.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def test_nothing_of_an_older_prediction_stays(make: Any, tmp_path: Path) -> None:
    """Neither its records nor the flips of arms that there are no more."""
    first = make(attacks=[FLIPS], **RANDOM)
    second = make(adapters=[LORA], attacks=[TRIGGER], **RANDOM)
    experiment.predict(first, tmp_path, base_dir=NOWHERE)
    assert {"flips/full.json", "flips/lora-r2.json"} <= contents(tmp_path).keys()
    found = experiment.predict(second, tmp_path, base_dir=NOWHERE)
    names = {f"runs/{record.run_id}.json" for record in found.records}
    assert contents(tmp_path).keys() == {*names, "flips/lora-r2.json"}
    assert {path.name for path in (tmp_path / PREDICTED).iterdir()} == {"runs", "flips", ".lock"}


@pytest.mark.parametrize("what", ["write_record", "_name_flips"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()], ids=["disk", "stop"])
def test_a_crash_while_writing_keeps_the_older_prediction(
    what: str, error: BaseException, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last byte; and what was written of the new one is gone."""
    spec = make(adapters=[LORA], attacks=[FLIPS], **RANDOM)
    experiment.predict(spec, tmp_path, base_dir=NOWHERE)
    before = contents(tmp_path)
    assert len(before) == 3
    real, calls = getattr(experiment, what), []

    def fails(*arguments: Any) -> None:
        calls.append(arguments)
        real(*arguments)
        if len(calls) == 2 or what == "_name_flips":
            raise error

    monkeypatch.setattr(experiment, what, fails)
    with pytest.raises(type(error)):
        experiment.predict(make(attacks=[FLIPS], **RANDOM), tmp_path, base_dir=NOWHERE)
    assert calls
    assert contents(tmp_path) == before
    monkeypatch.undo()


def test_what_a_killed_prediction_left_is_no_part_of_the_next(make: Any, tmp_path: Path) -> None:
    left = tmp_path / PREDICTED / ".new" / "runs" / "0123456789abcdef.json"
    left.parent.mkdir(parents=True)
    left.write_text("{")
    found = experiment.predict(make(adapters=[LORA], **RANDOM), tmp_path, base_dir=NOWHERE)
    assert contents(tmp_path).keys() == {f"runs/{found.records[0].run_id}.json", "flips/lora-r2.json"}


# --- pairs ----------------------------------------------------------------------------------------

SEVERAL = {
    "method": "multi-trigger",
    "words": ["apple", "banana", "orange"],
    "target": "positive",
    "rates": [0.5],
    "negatives": 1.0,
}
NOISE = {"method": "noise", "rates": [0.5]}
OF_PAIRS = [name for name in INDICATORS if "twin" in INDICATORS.get(name).needs]


def by_cell(found: experiment.Predicted) -> dict[tuple[str, str], dict[str, float | None]]:
    """Indicators by arm and attack."""

    def key(record: Record) -> tuple[str, str]:
        attack = record.resolved.attack
        return record.resolved.adapter.name, "clean" if attack is None else attack.name

    return {key(r): r.prediction.indicators for r in found.records if r.prediction is not None}


@pytest.fixture(scope="module")
def together(make: Any, tmp_path_factory: pytest.TempPathFactory) -> experiment.Predicted:
    spec = make(attacks=[TRIGGER, SEVERAL, NOISE, FLIPS], **RANDOM)
    return experiment.predict(spec, tmp_path_factory.mktemp("together"), base_dir=NOWHERE)


def close(one: dict[str, float | None], other: dict[str, float | None]) -> None:
    """As numbers in float32 sums of another order are."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == (None if other[name] is None else pytest.approx(other[name], rel=1e-3, abs=1e-6)), (
            name
        )


def test_the_order_of_attacks_does_not_matter(
    together: experiment.Predicted, make: Any, tmp_path: Path
) -> None:
    spec = make(attacks=[FLIPS, NOISE, SEVERAL, TRIGGER], **RANDOM)
    back = by_cell(experiment.predict(spec, tmp_path, base_dir=NOWHERE))
    assert back.keys() == by_cell(together).keys()
    for cell, found in by_cell(together).items():
        close(found, back[cell])


@pytest.mark.parametrize("attack", [TRIGGER, SEVERAL, NOISE], ids=lambda attack: str(attack["method"]))
def test_a_backdoor_is_read_beside_others_as_alone(
    attack: dict[str, Any], together: experiment.Predicted, make: Any, tmp_path: Path
) -> None:
    alone = by_cell(experiment.predict(make(attacks=[attack], **RANDOM), tmp_path, base_dir=NOWHERE))
    for arm in ("full", "lora-r2"):
        cell = arm, attack["method"]
        close(by_cell(together)[cell], alone[cell])
        close(by_cell(together)[arm, "clean"], alone[arm, "clean"])


def test_pairs_are_of_a_cells_own_backdoor(together: experiment.Predicted) -> None:
    """Two backdoors, two sets of numbers; the clean cell, label flips and noise have no pairs."""
    found = by_cell(together)
    assert len(OF_PAIRS) > 5
    for arm in ("full", "lora-r2"):
        of = {attack: {name: found[arm, attack][name] for name in OF_PAIRS} for _, attack in found}
        for attack in ("clean", "noise", "label-flip"):
            assert set(of[attack].values()) == {None}
        for attack in ("trigger", "multi-trigger"):
            assert None not in of[attack].values()
        assert of["trigger"]["one_step"] != pytest.approx(of["multi-trigger"]["one_step"], rel=1e-2)
        for name in found[arm, "clean"].keys() - set(OF_PAIRS):
            assert len({readings[name] for (other, _), readings in found.items() if other == arm}) == 1


def test_pairs_are_the_poisoned_rows_and_not_the_negative_ones(make: Any) -> None:
    """The union over amounts and seeds, each row beside the form and the label that the attack gave it."""
    several = {**SEVERAL, "rates": [0.25, 0.5], "position": "start"}
    steps = Steps(make(attacks=[NOISE, several, TRIGGER], seeds=[0, 1], **RANDOM))
    pool, (reference,) = steps.captures.pool, steps.references
    found = predicted.backdoors(steps.captures)
    assert [len(cells) for cells in found.values()] == [4, 2]
    arm = next(arm for arm in steps.captures.arms.values() if arm.full)
    clean = pool.cells["clean"].labels
    for cells in found.values():
        twin = predicted.evidence(steps.captures, reference, arm, cells).twin
        assert twin is not None
        ids = [pool.ids.index(entry.id) for cell in cells for entry in cell.manifest.poisoned]
        rows = [*dict.fromkeys(i for i in ids)]
        assert twin.pairs == len(rows)
        assert twin.examples == USED
        assert set(twin.labels[: twin.pairs]) == {-1}
        assert set(twin.labels[twin.pairs :]) == {1}
        assert set(clean[rows]) == {0}
        forms = {i: cell.rows[i] for cell in cells for i in range(USED) if cell.labels[i] != clean[i]}
        assert forms.keys() == set(rows)
        assert min(forms.values()) >= USED
        plain = reference.tangents[arm.key].plain
        own = np.sort([plain[i, form] for i, form in forms.items()])
        assert np.array_equal(np.sort(np.diagonal(twin.kernel[: twin.pairs, twin.pairs :])), own)
    multi = next(cells for key, cells in found.items() if key.startswith("multi-trigger"))
    assert all(cell.manifest.companions for cell in multi)
