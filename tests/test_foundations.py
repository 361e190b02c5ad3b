"""The ground floor: errors, registry, seeds, records on disk, and the identity of a run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foretaste import record as records
from foretaste.errors import UserError, nearest, unknown
from foretaste.record import (
    Layout,
    Machine,
    Manifest,
    ManifestRow,
    Metrics,
    Record,
    Training,
    read_manifest,
    read_record,
    write_atomic,
)
from foretaste.registry import Registry, summary
from foretaste.seeds import (
    MAX_SEED,
    STREAMS,
    Seeds,
    borrowed_global_state,
    crossed,
    generator,
    integer,
    uniforms,
)
from foretaste.spec import (
    DataSpec,
    InitSpec,
    MeasureSpec,
    ModelSpec,
    ResolvedAdapter,
    ResolvedAttack,
    ResolvedData,
    ResolvedModel,
    RunSpec,
    TrainingSpec,
    Trigger,
    canonical_json,
    digest,
)

# --- errors --------------------------------------------------------------------------------------


@given(message=st.text(), where=st.none() | st.text(), cure=st.none() | st.text())
def test_an_error_is_one_line(message: str, where: str | None, cure: str | None) -> None:
    assert len(str(UserError(message, where=where, cure=cure)).splitlines()) <= 1


def test_an_error_says_where_what_and_cure() -> None:
    error = UserError("it is wrong.\nVery.", where="a.yaml:3", cure="Right it.")
    assert str(error) == "a.yaml:3: it is wrong. Very. Right it."
    assert str(error.located("outer")) == "outer: " + str(error)
    assert str(UserError("wrong").located("here")) == "here: wrong"


class Special(UserError):
    """A kind of its own, to see that pickling keeps it."""


@pytest.mark.parametrize("kind", [UserError, Special])
def test_an_error_survives_the_way_between_processes(kind: type[UserError]) -> None:
    error = kind("message", where="place", cure="cure")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.message, back.where, back.cure, str(back)) == ("message", "place", "cure", str(error))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("labelflip", "label-flip"),
        ("LABEL-FLIP", "label-flip"),
        ("trigge", "trigger"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest(word: str, expected: str | None) -> None:
    assert nearest(word, ["label-flip", "trigger"]) == expected


def test_an_unknown_word_lists_what_is_allowed() -> None:
    assert str(unknown("attack", "triger", ["trigger", "label-flip"], where="a.1")) == (
        "a.1: unknown attack 'triger' (allowed: label-flip, trigger). Did you mean 'trigger'?"
    )
    assert str(unknown("x", "q", [f"n{i:02}" for i in range(99)])).endswith("n29, ...)")


# --- registry ------------------------------------------------------------------------------------


def test_a_registry_refuses_a_taken_name_and_keeps_the_first() -> None:
    registry: Registry[int] = Registry("thing")
    registry.register("one")(1)
    with pytest.raises(ValueError, match="thing 'one' is already registered"):
        registry.register("one")(2)
    assert registry.get("one") == 1


def test_a_registry_is_sorted_and_names_the_nearest() -> None:
    registry: Registry[int] = Registry("thing")
    for name, value in (("two", 2), ("one", 1)):
        assert registry.register(name)(value) == value
    assert list(registry) == registry.names() == ["one", "two"]
    assert registry.items() == [("one", 1), ("two", 2)]
    assert "one" in registry
    assert "three" not in registry
    with pytest.raises(
        UserError, match=r"here: unknown thing 'twoo' \(allowed: one, two\). Did you mean 'two'"
    ):
        registry.get("twoo", where="here")


def test_the_summary_is_the_first_sentence() -> None:
    def member() -> None:
        """Does one
        thing. And another."""

    assert summary(member) == "Does one thing"


# --- seeds ---------------------------------------------------------------------------------------

names = st.lists(st.text(max_size=5) | st.integers(0, 99), max_size=3)


@given(seed=st.integers(0, MAX_SEED), first=names, second=names)
def test_streams_differ_exactly_when_their_names_do(seed: int, first: list[Any], second: list[Any]) -> None:
    a, b = generator(seed, *first).random(4), generator(seed, *second).random(4)
    # 1 and "1" are one name: they come from specs, where both spellings mean the same.
    assert np.array_equal(a, b) == ([str(n) for n in first] == [str(n) for n in second])
    assert 0 <= integer(seed, *first) <= MAX_SEED


def test_names_are_not_glued_together() -> None:
    keys = [
        (1, "ab", "c"),
        (1, "a", "bc"),
        (1, "abc"),
        (11, "abc"),
        (1, "1abc"),
        (1, "ab/1:c"),
        (1, "", "abc"),
    ]
    assert len({integer(*key) for key in keys}) == len(keys)  # type: ignore[arg-type]


def test_streams_are_uncorrelated() -> None:
    # Correlation of n independent pairs has standard deviation 1 / sqrt(n); 28 pairs, five sd each.
    n = 4_000
    rows = [str(i) for i in range(n)]
    streams = [generator(seed, name).random(n) for seed in (0, 1) for name in ("data", "poison")]
    streams += [uniforms(seed, (name,), rows) for seed in (0, 1) for name in ("data", "poison")]
    for a, b in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(n)


def test_uniforms_are_uniform() -> None:
    # Kolmogorov: sqrt(n) D exceeds 2.2 with probability 2 exp(-2 * 2.2^2) = 1e-4; ids and seeds are fixed.
    n = 20_000
    for ids in ([f"train-{i}" for i in range(n)], [str(i) for i in range(n)]):
        values = uniforms(3, ("poison", "x", "choice"), ids)
        assert values.min() >= 0.0
        assert values.max() < 1.0
        assert math.sqrt(n) * stats.kstest(values, "uniform").statistic < 2.2


@given(ids=st.lists(st.text(max_size=4), unique=True, min_size=1, max_size=20), data=st.data())
def test_a_uniform_belongs_to_its_row(ids: list[str], data: st.DataObject) -> None:
    some = data.draw(st.permutations(ids))[: data.draw(st.integers(1, len(ids)))]
    whole = dict(zip(ids, uniforms(5, ("a",), ids), strict=True))
    assert [whole[name] for name in some] == list(uniforms(5, ("a",), some))


def test_seeds_and_names_change_every_uniform() -> None:
    ids = [str(i) for i in range(100)]
    base = uniforms(0, ("a",), ids)
    assert not np.any(base == uniforms(1, ("a",), ids))
    assert not np.any(base == uniforms(0, ("b",), ids))


@pytest.mark.parametrize("fails", [False, True])
def test_borrowed_state_is_given_back(fails: bool) -> None:
    import torch

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    inside = []
    for _ in range(2):
        try:
            with borrowed_global_state(7, "x"):
                inside.append(draw())
                if fails:
                    raise KeyError
        except KeyError:
            pass
    assert [draw(), draw()] == expected
    assert inside[0] == inside[1]
    with borrowed_global_state(8, "x"):
        assert draw() != inside[0]


def test_seed_labels() -> None:
    assert Seeds.all(3).label() == "3"
    assert Seeds(data=0, poison=1, init=2, order=0).label() == "0.1.2.0"


# --- records -------------------------------------------------------------------------------------


def run_spec(**changes: Any) -> RunSpec:
    """A run with every optional part present, so that each of its fields can be changed."""
    parts: dict[str, Any] = {
        "data": ResolvedData(
            request=DataSpec(source="x", train_rows=10),
            classes=["n", "p"],
            test_split="test",
            train_rows=10,
            test_rows=5,
            fingerprint="f",
        ),
        "model": ResolvedModel(request=ModelSpec(base="m"), pooling="model", fingerprint="g"),
        "adapter": ResolvedAdapter(
            name="lora", method="lora", config={"r": 8}, init=InitSpec(law="gaussian", k=0.5), freeze="A"
        ),
        "attack": ResolvedAttack(
            name="a", method="trigger", options={"text": "x"}, selection="exact-nested", rate=0.1, count=None
        ),
        "triggers": [Trigger(name="a", method="trigger", options={"text": "x"})],
        "training": TrainingSpec(learning_rate=1e-3),
        "seeds": Seeds(data=0, poison=1, init=2, order=3),
    }
    return RunSpec(**(parts | changes))


def machine() -> Machine:
    return Machine(device="cpu", threads=1, processes=1, system="s", cpu="c")


def full_record() -> Record:
    return Record(
        run_id=run_spec().id,
        sweep="s",
        request={"a": [1, None, "ü\n"]},
        resolved=run_spec(),
        status="completed",
        reason=None,
        started="2025-01-01T00:00:00+00:00",
        versions={"torch": "2"},
        commit=None,
        dirty=None,
        machine=machine(),
        training=Training(
            steps=3,
            epochs=1.0,
            learning_rate=1e-3,
            trainable_parameters=1,
            total_parameters=2,
            loss=[0.1, math.nan, math.inf],
            rows_per_second=math.nan,
            tokens=9,
            padding_share=0.0,
            truncated_rows=0,
            head_probe_accuracy=None,
            init=None,
        ),
        clean=Metrics(
            rows=2, accuracy=0.5, precision=None, recall=math.nan, f1=None, per_class=[], collapsed=True
        ),
    )


def test_a_record_comes_back_whole_nan_included(tmp_path: Path) -> None:
    before = full_record()
    layout = Layout(tmp_path)
    path = layout.record(before.run_id)
    write_atomic(path, before.model_dump_json(indent=1))
    after = read_record(path)
    # NaN differs from itself, so the texts are compared, and the NaNs one by one.
    assert repr(after) == repr(before)
    assert after.training is not None
    assert math.isnan(after.training.loss[1])
    assert after.training.loss[2] == math.inf
    assert after.resolved == before.resolved
    assert after.resolved.id == before.run_id
    assert after.collapsed
    assert repr(layout.read()[0]) == repr([after])


def test_a_manifest_comes_back_whole(tmp_path: Path) -> None:
    row = ManifestRow(id="é", text_a_before="a", text_a_after="[.*?]a", label_before=0, label_after=1)
    before = Manifest(
        attack="trigger",
        options={"text": "[.*?]"},
        selection="bernoulli",
        rate=0.1,
        count=None,
        seed=1,
        eligible=3,
        rows=4,
        classes=["n", "p"],
        poisoned=[row],
    )
    write_atomic(tmp_path / "m.json", before.model_dump_json())
    assert read_manifest(tmp_path / "m.json") == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff", b'{"format": 1, "new": 3}'])
def test_a_broken_record_is_a_users_error_and_the_others_are_read(tmp_path: Path, content: bytes) -> None:
    layout = Layout(tmp_path)
    write_atomic(layout.record("good"), full_record().model_dump_json())
    write_atomic(layout.record("bad"), content)
    whole, problems = layout.read()
    assert [record.run_id for record in whole] == [run_spec().id]
    assert len(problems) == 1
    assert "bad.json" in str(problems[0])
    assert "not a foretaste record of format 1" in str(problems[0])


def test_a_missing_record_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the record: No such file"):
        read_record(tmp_path / "none.json")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomic(path, "old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(records.os, step, fail)
    with pytest.raises(error):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_writing_replaces_and_takes_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "é")
    assert path.read_bytes() == "é".encode()
    write_atomic(path, b"\x00")
    assert path.read_bytes() == b"\x00"


# --- identity of a run ---------------------------------------------------------------------------


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict) and value:
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, (*path, i))]
    return [path]


def other_value(path: tuple[str | int, ...], old: Any) -> Any:
    """Another value that the field allows."""
    known = {
        "pooling": "mean",
        "head": "paper",
        "law": "orthogonal",
        "freeze": "B",
        "selection": "bernoulli",
        "schedule": "cosine",
        "optimizer": "sgd",
        "grouping": "none",
        "padding": "max_length",
        "precision": "bfloat16",
        "device": "cpu",
        "labels": ["x"],
        "test_fraction": 0.3,
        "warmup_ratio": 0.5,
        "steps": 5,
        "epochs": 1.5,
        "max_grad_norm": None,
        "count": 3,
        "eval_max_length": 7,
        "test_rows": 4,
    }
    if path[-1] in known:
        return known[path[-1]]  # type: ignore[index]
    if old is None:
        return "new"
    if isinstance(old, bool):
        return not old
    return old + "x" if isinstance(old, str) else old + 1


PATHS = [path for path in leaves(run_spec().model_dump(mode="json")) if path != ("format",)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_every_field_changes_the_id(path: tuple[str | int, ...]) -> None:
    content = run_spec().model_dump(mode="json")
    place = content
    for part in path[:-1]:
        place = place[part]  # type: ignore[index]
    place[path[-1]] = other_value(path, place[path[-1]])  # type: ignore[index]
    changed = RunSpec.model_validate_json(json.dumps(content))
    assert changed != run_spec()
    assert changed.id != run_spec().id


def test_whole_parts_change_the_id() -> None:
    changed = [run_spec(attack=None), run_spec(triggers=[]), run_spec(triggers=run_spec().triggers * 2)]
    assert len({run.id for run in [run_spec(), *changed]}) == 4


def test_the_id_is_the_hash_of_the_canonical_json() -> None:
    run = run_spec()
    text = json.dumps(
        run.model_dump(mode="json"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    assert run.id == hashlib.sha256(text.encode()).hexdigest()[:16]
    again = RunSpec.model_validate_json(run.model_dump_json())
    assert again == run
    assert again.id == run.id


def test_canonical_json() -> None:
    assert canonical_json({"b": 1, "a": [1.0, None, "ü", True]}) == '{"a":[1.0,null,"ü",true],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": "2"})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"a": value})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(first=json_values, second=json_values)
def test_canonical_json_tells_values_apart(first: Any, second: Any) -> None:
    assert json.loads(canonical_json(first)) == first
    if canonical_json(first) == canonical_json(second):
        assert first == second


def test_infinite_numbers_never_reach_the_id() -> None:
    """A spec that cannot be hashed is refused where it is read, not when the run's id is asked for."""
    for kind, fields in (
        (TrainingSpec, {"learning_rate": math.inf}),
        (TrainingSpec, {"epochs": math.inf}),
        (TrainingSpec, {"max_grad_norm": math.inf}),
        (TrainingSpec, {"weight_decay": math.inf}),
        (InitSpec, {"k": math.inf}),
    ):
        with pytest.raises(ValueError, match="finite"):
            kind(**fields)


def test_a_trigger_has_the_same_key_under_another_name() -> None:
    one = Trigger(name="a", method="trigger", options={"text": "x"})
    assert one.key == Trigger(name="b", method="trigger", options={"text": "x"}).key
    assert one.key != Trigger(name="a", method="trigger", options={"text": "y"}).key


def test_seed_tuples() -> None:
    base: dict[str, Any] = {
        "data": {"source": "x"},
        "model": {"base": "m"},
        "adapters": [{"method": "full"}],
    }
    plain = MeasureSpec.model_validate(base | {"seeds": [4, 5]})
    assert plain.seed_tuples() == [Seeds.all(4), Seeds.all(5)]
    crossed = MeasureSpec.model_validate(base | {"seeds": {"poison": [0, 1], "order": [2, 3]}})
    assert [seeds.label() for seeds in crossed.seed_tuples()] == ["0.0.0.2", "0.0.0.3", "0.1.0.2", "0.1.0.3"]


@pytest.mark.parametrize(
    ("values", "shared"),
    [
        ([(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2)], []),
        ([(0, 0, 0, 0), (0, 1, 0, 0), (0, 2, 0, 0)], []),  # one stream varies, the others are held
        ([(0, 0, 0, 0), (0, 0, 1, 0), (1, 0, 0, 0), (1, 0, 1, 0)], ["data", "init"]),
        ([(0, 0, 0, 0), (0, 1, 0, 0), (1, 2, 0, 0)], ["data"]),
        ([(5, 5, 5, 5)], []),
        ([], []),
    ],
)
def test_streams_of_crossed_seeds(values: list[tuple[int, ...]], shared: list[str]) -> None:
    seeds = [Seeds(**dict(zip(STREAMS, one, strict=True))) for one in values]
    assert crossed(seeds) == shared
    assert crossed(seeds, ["poison", "order"]) == [one for one in shared if one in ("poison", "order")]
