"""Flips that a kernel predictor names: against all other sets, against the certificate, and in a sweep."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste.attacks.adversarial_flip import read_flips
from foretaste.data import draw
from foretaste.errors import UserError
from foretaste.experiments import flips
from foretaste.experiments.plan import plan
from foretaste.record import Layout, read_manifest
from foretaste.seeds import generator
from foretaste.theory import flow
from foretaste.theory.certificates import worst_case_accuracy
from foretaste.theory.label_noise import draw_flips, drawn_accuracy
from foretaste.theory.layout import decide, one_hot
from foretaste.theory.regression import decompose

Vector = np.ndarray


class Problem:
    """Gaussian clusters with some noise in the labels, and the kernel regression that separates them."""

    def __init__(self, rows: int, held_out: int, classes: int | None, seed: int) -> None:
        rng = generator(seed, "tests", "named flips", rows)
        count = classes or 2
        centres = 1.2 * rng.normal(size=(count, 6))
        known = rng.integers(0, count, rows)
        asked = rng.integers(0, count, held_out)
        x = centres[known] + rng.normal(size=(rows, 6))
        z = centres[asked] + rng.normal(size=(held_out, 6))
        kernel, cross = (1 + x @ x.T / 6) ** 2, (1 + z @ x.T / 6) ** 2
        if classes is not None:
            kernel, cross = (np.einsum("ij,cd->icjd", k, np.eye(count)) for k in (kernel, cross))
        decomposition = decompose(kernel)
        phi = flow.flow_filter(decomposition, time=float(rows))
        self.predictor = flow.predictor_at(decomposition, cross, phi)
        self.labels, self.truth = (known, asked) if classes else (2 * known - 1, 2 * asked - 1)
        self.classes = classes
        self.ids = [f"row-{number}" for number in range(rows)]

    def accuracy(self, labels: Vector) -> float:
        predictor = self.predictor
        outputs = flow.respond(predictor, one_hot(labels, predictor.layout))
        return float(np.mean(decide(outputs, predictor.rows) == self.truth))

    def flipped(self, named: list[tuple[str, int]]) -> Vector:
        labels = self.labels.copy()
        for name, label in named:
            labels[self.ids.index(name)] = label if self.classes else 2 * label - 1
        return labels

    def name(self, count: int) -> list[tuple[str, int]]:
        return flips.name_flips(self.predictor, self.labels, self.truth, self.ids, count)

    def every_accuracy(self, count: int) -> list[float]:
        """Under every set of `count` flips, by brute force."""
        found = []
        others = range(1, self.classes or 2)
        for rows in itertools.combinations(range(self.labels.size), count):
            for steps in itertools.product(others, repeat=count):
                labels = self.labels.copy()
                for row, step in zip(rows, steps, strict=True):
                    labels[row] = (labels[row] + step) % self.classes if self.classes else -labels[row]
                found.append(self.accuracy(labels))
        return found


each_kind = pytest.mark.parametrize("classes", [None, 2, 3], ids=["margin", "2 logits", "3 logits"])


# --- the names -----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("seed", range(3))
def test_named_flips_beat_random_ones_and_not_the_certificate(classes: int | None, seed: int) -> None:
    problem = Problem(80, 60, classes, seed)
    named = problem.name(24)
    assert len({name for name, _ in named}) == 24
    rng = generator(seed, "tests", "random sets")
    draws = draw_flips(problem.labels, classes, draws=200, rng=rng)
    amounts = [2, 4, 8, 16, 24]
    random = drawn_accuracy(problem.predictor, draws, problem.truth, amounts).accuracy
    bounds = worst_case_accuracy(problem.predictor, problem.labels, problem.truth, amounts)
    curve = flips.certified_curve(
        problem.predictor, problem.labels, problem.truth, amounts, head="fixed", rng=rng
    )
    for at, count in enumerate(amounts):
        reached = problem.accuracy(problem.flipped(named[:count]))
        assert reached <= random[at].min()
        assert reached >= bounds.collective[at] - 1e-12
        assert reached >= curve[at].share - 1e-12
    assert problem.accuracy(problem.flipped(named)) < random[-1].min() - 0.05


@each_kind
def test_every_named_flip_is_one(classes: int | None) -> None:
    problem = Problem(40, 30, classes, 5)
    known = dict(zip(problem.ids, problem.labels.tolist(), strict=True))
    for name, label in problem.name(15):
        old = known[name] if classes else (known[name] + 1) // 2
        assert label != old
        assert 0 <= label < (classes or 2)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_against_every_set_of_a_tiny_problem(classes: int | None, count: int) -> None:
    problem = Problem(7, 12, classes, 2)
    every = problem.every_accuracy(count)
    reached = problem.accuracy(problem.flipped(problem.name(count)))
    record = flips.certified_curve(
        problem.predictor, problem.labels, problem.truth, [count], head="fixed", rng=generator(0, "tests")
    )[0]
    assert record.share <= min(every) <= reached <= float(np.mean(every))
    assert record.found is not None
    assert record.share <= record.found <= reached
    assert reached <= np.quantile(every, 0.1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ids": ["a"]}, "expected 7 row ids, got 1"),
        ({"flips": 0}, r"flips: expected 1 \.\. 7 flips, got 0"),
        ({"flips": 8}, r"expected 0 \.\. 7 flips, got 8"),
        ({"labels": [0] * 7}, "expected labels -1 and"),
        ({"eval_labels": [1, -1]}, "test_labels"),
    ],
)
def test_names_that_cannot_be(change: dict[str, Any], match: str) -> None:
    problem = Problem(7, 12, None, 0)
    given = {"labels": problem.labels, "eval_labels": problem.truth, "ids": problem.ids, "flips": 2}
    with pytest.raises(UserError, match=match):
        flips.name_flips(problem.predictor, **given | change)


def test_flips_that_would_help_are_not_named() -> None:
    """The first row pushes the example down, the second up: there is one flip to name."""
    predictor = flow.linear_predictor([[1.0, -1.0]], [0.5])
    for wanted in (1, 2):
        assert flips.name_flips(predictor, [1, 1], [1], ["a", "b"], wanted) == [("a", 0)]


# --- the curve -----------------------------------------------------------------------------------


@each_kind
def test_the_curve_starts_at_the_accuracy_and_falls(classes: int | None) -> None:
    problem = Problem(60, 50, classes, 1)
    amounts = list(range(0, 31, 5))
    curve = flips.certified_curve(
        problem.predictor, problem.labels, problem.truth, amounts, head="fixed", rng=generator(0, "tests")
    )
    assert [item.flips for item in curve] == amounts
    assert curve[0].share == pytest.approx(problem.accuracy(problem.labels))
    assert curve[0].random == pytest.approx(problem.accuracy(problem.labels))
    assert all(a.share >= b.share for a, b in itertools.pairwise(curve))
    assert all(item.share <= item.found <= item.random for item in curve)
    assert all(a.found >= b.found for a, b in itertools.pairwise(curve))


@each_kind
def test_random_flips_by_simulation(classes: int | None) -> None:
    problem = Problem(80, 60, classes, 3)
    amounts = [4, 12, 24]
    curve = flips.certified_curve(
        problem.predictor, problem.labels, problem.truth, amounts, head="refitted", rng=generator(1, "tests")
    )
    draws = draw_flips(problem.labels, classes, draws=2_000, rng=generator(2, "tests"))
    found = drawn_accuracy(problem.predictor, draws, problem.truth, amounts)
    for item, mean, sd in zip(curve, found.mean, found.sd, strict=True):
        # Five standard errors of both simulations; the normal law may be off by a percent beside that.
        assert item.random == pytest.approx(mean, abs=5 * sd / np.sqrt(flips.DRAWS) + 0.01)


def test_what_a_curve_refuses() -> None:
    problem = Problem(20, 10, 3, 0)
    with pytest.raises(UserError, match="rng: more than two classes need a generator"):
        flips.certified_curve(problem.predictor, problem.labels, problem.truth, [1], head="fixed")
    binary = Problem(20, 10, None, 0)
    for wrong in ([21], [-1], [0.5]):
        with pytest.raises(UserError, match="expected whole numbers"):
            flips.certified_curve(
                binary.predictor,
                binary.labels,
                binary.truth,
                wrong,  # type: ignore[arg-type]
                head="fixed",
            )


# --- the file ------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    given: dict[str, Any] = {"arm": "full", "kernel": "flow", "classes": ["a", "b"], "data": "f"}
    named = flips.write(path, **given, flips=[("x", 1), ("w", 0)])
    assert read_flips(path)[0] == named
    assert json.loads(path.read_text()) == {
        "format": 1,
        **given,
        "flips": [{"id": "x", "label": 1}, {"id": "w", "label": 0}],
    }
    content = path.read_bytes()
    for wrong, match in (([], "at least 1 item"), ([("x", 1)] * 2, "twice"), ([("x", 2)], "gets class 2")):
        with pytest.raises(UserError, match=match):
            flips.write(path, **given, flips=wrong)
    assert path.read_bytes() == content


# --- sweeps --------------------------------------------------------------------------------------

Content = Callable[..., Any]
GRID = {"data": [0], "poison": [0], "init": [0, 1, 2], "order": [0]}


@pytest.fixture
def named_spec(spec: Content, tmp_path: Path) -> Content:
    """`named_spec(places, **sections)`: a spec beside whose place lies list.json with flips of these rows."""

    def make(places: tuple[int, ...] = (30, 7, 12, 41), **sections: Any) -> Any:
        plain = plan(spec(attacks=[]), tmp_path).runs[0].data
        flips.write(
            tmp_path / "list.json",
            arm="full",
            kernel="a test",
            classes=plain.classes,
            data=plain.fingerprint,
            flips=[(f"train-{row}", 1 - row % 2) for row in places],
        )
        attack = {"method": "adversarial-flip", "named_by": "list.json", "counts": [2, 4]}
        return spec(**{"attacks": [attack], "seeds": GRID, **sections})

    return make


def test_a_plan_with_crossed_seeds(named_spec: Content, tmp_path: Path) -> None:
    runs = plan(named_spec(), tmp_path).runs
    assert [(run.attack and run.attack.count, run.seeds.init) for run in runs] == [
        (amount, init) for init in (0, 1, 2) for amount in (None, 2, 4)
    ]
    # The poison seed draws nothing here: over it, neither the clean run nor this attack is repeated.
    grid = GRID | {"poison": [5, 6]}
    both = [
        {"method": "adversarial-flip", "named_by": "list.json", "counts": [2]},
        {"method": "label-flip", "counts": [2]},
    ]
    runs = plan(named_spec(seeds=grid, attacks=both), tmp_path).runs
    poison = {
        name: sorted(run.seeds.poison for run in runs if (run.attack.name if run.attack else None) == name)
        for name in (None, "adversarial-flip", "label-flip")
    }
    assert poison == {None: [5] * 3, "adversarial-flip": [5] * 3, "label-flip": [5] * 3 + [6] * 3}


def test_ids_follow_the_content_of_the_list(named_spec: Content, tmp_path: Path) -> None:
    def ids(folder: Path = tmp_path, **sections: Any) -> list[str]:
        return [run.id for run in plan(named_spec(**sections), folder).runs]

    first = ids()
    assert ids() == first
    changed = ids(places=(30, 7, 12, 43))
    assert changed[0] == first[0], "the clean run"
    assert not set(changed[1:3]) & set(first[1:3])
    # Where the folder lies does not matter.
    place = tmp_path / "elsewhere"
    place.mkdir()
    named = named_spec()
    (place / "list.json").write_bytes((tmp_path / "list.json").read_bytes())
    assert [run.id for run in plan(named, place).runs] == first


def test_a_list_belongs_to_one_data_seed(named_spec: Content, tmp_path: Path) -> None:
    drawn = {"train_rows": 24}
    loaded = plan(named_spec(), tmp_path).loaded
    rows = draw(loaded, named_spec(data=drawn).data, 0).train["id"]
    places = tuple(int(name.removeprefix("train-")) for name in rows[:4])
    assert len(plan(named_spec(places, data=drawn), tmp_path).runs) == 9
    for seeds in ([0, 1], GRID | {"data": [0, 1]}):
        with pytest.raises(UserError) as caught:
            plan(named_spec(places, data=drawn, seeds=seeds), tmp_path)
        text = str(caught.value)
        assert "adversarial-flip x2" in text
        assert "data seed 1: " in text
        assert "are not among the 24 training rows of this draw" in text
        assert "fix the data seed" in text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"counts": [2, 6]}, "6 rows are to be poisoned, but the attack names only 4"),
        ({"rates": [0.1], "selection": "bernoulli"}, "selection is bernoulli"),
        ({"counts": [2], "named_by": "lost.json"}, r"attacks\.0: .*lost\.json: cannot read the named flips"),
        ({"counts": [2], "fingerprint": "0" * 64}, r"attacks\.0: .*list\.json: the list has changed"),
    ],
)
def test_what_does_not_fit_is_found_by_the_plan(
    options: dict[str, Any], match: str, named_spec: Content, tmp_path: Path
) -> None:
    attack = {"method": "adversarial-flip", "named_by": "list.json", **options}
    with pytest.raises(UserError, match=match):
        plan(named_spec(attacks=[attack]), tmp_path)


def test_a_list_made_for_other_data_is_refused(
    named_spec: Content, make_csv_folder: Any, tmp_path: Path
) -> None:
    other = make_csv_folder(seed=3)  # other texts under the same ids
    with pytest.raises(UserError, match=r"attacks\.0: the rows were named for data of fingerprint '\w+'"):
        plan(named_spec(data={"source": str(other)}), tmp_path)


def test_a_sweep_trains_on_the_named_rows_and_notices_another_list(
    named_spec: Content, run: Any, tmp_path: Path
) -> None:
    seeds = GRID | {"init": [0]}
    folder = tmp_path / "runs"
    measured = run(named_spec(seeds=seeds), folder, base_dir=tmp_path)
    assert measured.statuses == {"completed": 3}
    poisoned: dict[int, set[str]] = {}
    for record in measured.records:
        if record.poison is not None:
            manifest = read_manifest(folder / record.poison.manifest)
            poisoned[record.poison.poisoned] = {row.id for row in manifest.poisoned}
            assert (record.poison.eligible, record.poison.rows) == (48, 48)
    assert poisoned == {2: {"train-30", "train-7"}, 4: {"train-30", "train-7", "train-12", "train-41"}}
    before = Layout(folder).spec.read_bytes()
    changed = named_spec(places=(30, 7, 12, 43), seeds=seeds)
    for extend in (False, True):
        with pytest.raises(
            UserError, match=r"runs of another attack called 'adversarial-flip' \(fingerprint: "
        ):
            run(changed, folder, base_dir=tmp_path, extend=extend)
    assert Layout(folder).spec.read_bytes() == before
    assert run(named_spec(seeds=seeds), folder, base_dir=tmp_path).statuses == {"completed": 3}


def test_a_list_that_changes_under_a_sweep_fails_the_run(
    named_spec: Content, run: Any, watch: Any, tmp_path: Path
) -> None:
    spec = named_spec(seeds=GRID | {"init": [0]})
    changing = [lambda: (tmp_path / "list.json").write_text((tmp_path / "list.json").read_text() + " ")]
    watch.on_started = lambda _: changing and changing.pop()()
    measured = run(spec, tmp_path / "runs", base_dir=tmp_path, watcher=watch)
    assert measured.statuses == {"completed": 1, "error": 2}
    assert all("the list has changed" in (record.reason or "") for record in measured.records[1:])
