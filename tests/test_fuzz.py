"""Anything that a reader may meet: it reads it, or says in one line what is wrong with it.

Inputs are drawn from a fixed seed, so that a failure here is a change in the code. `HYPOTHESIS_SEED=random`
draws others.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretaste.data.files import read_rows
from foretaste.data.formats import SUFFIXES
from foretaste.errors import UserError
from foretaste.fewshot.record import FewShotRecord
from foretaste.fewshot.spec import FewShotSpec
from foretaste.instruct.generate import read_journal
from foretaste.instruct.record import InstructRecord, Transcript, line, read_transcripts
from foretaste.instruct.spec import InstructSpec
from foretaste.kernels.kernel import Part, Parts, write
from foretaste.kernels.store import InFolder, Unit
from foretaste.record import Layout, Manifest, Record, read_all, read_part, write_atomic
from foretaste.sealing import sealed, unsealed
from foretaste.spec import MeasureSpec, digest
from foretaste.specfile import DEEPEST, MOST_VALUES, load, parse

RESULTS = Path(__file__).parents[1] / "results"
SPECS: list[Any] = [MeasureSpec, InstructSpec, FewShotSpec]


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=os.environ.get("HYPOTHESIS_SEED") != "random",
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def refused_in_one_line(error: UserError, where: Path | None = None) -> None:
    assert where is None or error.where == str(where)
    said = str(error)
    assert said
    assert len(said.splitlines()) == 1
    said.encode()  # a terminal can show it


# --- strategies ----------------------------------------------------------------------------------

# Halves of surrogate pairs included: JSON and YAML can spell them.
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["\ud800", "a\u2028b", "\x00", "<script>", "-1", "1e400", "nan"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | TEXTS
)
JSONS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *(
            [
                "format",
                "name",
                "title",
                "data",
                "source",
                "model",
                "base",
                "adapters",
                "method",
                "attacks",
                "rates",
                "counts",
                "seeds",
            ]
        ),
        *(
            [
                "training",
                "steps",
                "epochs",
                "kernel",
                "predict",
                "grid",
                "init",
                "r",
                "text",
                "target",
                "config",
                "options",
                "tuning",
            ]
        ),
        *(
            [
                "scenario",
                "judge",
                "generation",
                "id",
                "label",
                "text_a",
                "text_b",
                "status",
                "run_id",
                "resolved",
            ]
        ),
    ]
)
SHAPED = st.recursive(
    SCALARS | st.sampled_from(["full", "lora", "trigger", "label-flip", 0.5, 1, 8]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | TEXTS, inner, max_size=4),
    max_leaves=16,
)
YAML_BITS = st.sampled_from(
    [
        *("a: b", "- ", "? ", ": ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: *a", "!!int ", "!!binary "),
        *(
            "!!python/object/apply:os.system [x]",
            "!!set {a}",
            "!!timestamp ",
            "!!float ",
            "!!omap ",
            "!!map ",
        ),
        *("2001-99-99", "1:60:60", "0x" + "f" * 30, "|\n  x\n", ">-\n", "'", '"', "\\ud800", "%YAML 9.9\n"),
        *("---\n", "...\n", "\n", "  ", "\t", "#", "data:\n", "  source: x\n", "model: {base: b}\n", "1e400"),
        *("adapters: [{method: full}]\n", "\ufeff", "\x85", "~", ".nan", "null", "\x07"),
    ]
)
YAMLS = (
    st.text(max_size=60)
    | st.lists(YAML_BITS, max_size=14).map("".join)
    | st.dictionaries(KEYS, SHAPED, max_size=6).map(json.dumps)
)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """A file in which some bytes are others, or which is cut, or doubled."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    how = draw(st.sampled_from(["whole", "whole", "cut", "doubled", "begun twice"]))
    place = draw(st.integers(0, len(data)))
    whole = bytes(data)
    return {"whole": whole, "cut": whole[:place], "doubled": whole * 2, "begun twice": whole[:place] + whole}[
        how
    ]


# --- specs ---------------------------------------------------------------------------------------

HEAD = "data: {source: x}\nmodel: {base: b}\n"


@fuzz(300)
@given(YAMLS, st.sampled_from(SPECS))
def test_any_text_is_a_spec_or_is_refused(text: str, kind: Any) -> None:
    try:
        spec = parse(text, kind, origin="a.yaml")
    except UserError as error:
        refused_in_one_line(error)
    else:
        digest(spec.model_dump(mode="json"))


@fuzz(150)
@given(SHAPED, SHAPED, SHAPED)
def test_any_value_of_a_free_field_can_be_written_down(option: Any, grid: Any, override: Any) -> None:
    """What is accepted has a hash and goes into the folder's `spec.json`, and comes out of it the same."""
    content = {
        "data": {"source": "x"},
        "model": {"base": "b"},
        "adapters": [{"method": "lora", "x": option, "grid": {"r": grid}, "training": {"y": override}}],
        "attacks": [{"method": "trigger", "rates": [0.5], "z": option}],
    }
    try:
        spec = parse(json.dumps(content), MeasureSpec, origin="a.yaml")
    except UserError as error:
        refused_in_one_line(error)
    else:
        plain = spec.model_dump(mode="json")
        digest(plain)
        assert json.loads(json.dumps(plain, ensure_ascii=False).encode()) == plain


@fuzz(100)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_spec_or_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:  # no sixty bytes are a whole spec
        load(tmp_path / "a.yaml", MeasureSpec)
    refused_in_one_line(caught.value)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
BOMBS = {
    "billion laughs": (LAUGHS, "aliases"),
    "billion laughs in an option": (
        "\n".join(f"{line}" for line in LAUGHS.splitlines())
        + f"\n{HEAD}adapters: [{{method: lora, x: *a29}}]",
        "aliases",
    ),
    "laughs of mappings": (
        "a0: &a0 {x: 1, y: 1}\n"
        + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 30)),
        "aliases",
    ),
    "a list a thousand times": (f"a: &a [{'1,' * (MOST_VALUES // 1000)}1]\nb: [{'*a,' * 1000}*a]", "aliases"),
    "itself": ("a: &a [*a]", "holds itself"),
    "itself further down": ("a: &a {b: {c: [*a]}}", "holds itself"),
    "deep": ("a: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "deep"),
    "deeper than the stack": ("a: " + "[" * 5000, "not valid YAML"),
    "deep mappings": ("{a: " * 5000, "not valid YAML"),
    "deep blocks": ("- " * 5000, "not valid YAML"),
    "merged": ("a: &a {x: 1}\nb: {<<: *a}", "not valid YAML"),
    "a long number": ("a: " + "9" * 5000, "digits"),
    "a long hexadecimal number": ("a: 0x" + "f" * 5000, "digits"),
    "a long number to base 60": ("a: 1" + ":59" * 100_000, "digits"),
    "half a pair": (f'{HEAD}adapters: [{{method: lora, x: "\\ud800"}}]', "surrogate"),
    "half a pair as a key": (f'{HEAD}adapters: [{{method: lora, "\\udfff": 1}}]', "surrogate"),
    "endless": ("a: " + "x" * 5_000_000, "characters"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name: str) -> None:
    text, said = BOMBS[name]
    began = time.process_time()
    with pytest.raises(UserError, match=said) as caught:
        parse(text, MeasureSpec, origin="a.yaml")
    refused_in_one_line(caught.value)
    assert time.process_time() - began < 20  # one that is not found takes years


def test_aliases_are_no_bombs_by_themselves() -> None:
    text = (
        f"{HEAD}adapters:\n- &a {{method: lora, r: 4, training: &t {{steps: 3}}}}\n"
        "- {method: full, training: *t}"
    )
    assert parse(text, MeasureSpec).adapters[1].training == {"steps": 3}


# --- data ----------------------------------------------------------------------------------------

ROW_KEYS = st.sampled_from(["text", "label", "id", "text_b", "", "text_a"])
OBJECTS = st.lists(st.dictionaries(ROW_KEYS, JSONS, max_size=4) | JSONS, max_size=5)
GOOD = [{"text": f"a film {n}", "label": n % 2, "id": str(n)} for n in range(6)]


def either_rows_or_a_refusal(path: Path) -> None:
    try:
        file = read_rows(path)
    except UserError as error:
        refused_in_one_line(error)
    else:
        assert len(file.rows) > 0
        assert set(file.rows["label"]) <= set(range(len(file.classes)))
        json.dumps(file.classes, ensure_ascii=False).encode()


@fuzz(200)
@given(
    st.binary(max_size=80)
    | st.lists(
        st.sampled_from(
            ["text", "label", ",", "\t", "\n", "\r", '"', "a", "1", "-1", "1e400", "\x00", "\ufeff"]
        ),
        max_size=30,
    ).map(lambda bits: "".join(bits).encode())
    | st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=5).map(
        lambda rows: "\n".join(["text,label", *(",".join(row) for row in rows)]).encode(errors="replace")
    ),
    st.sampled_from([suffix for suffix in SUFFIXES if suffix != ".parquet"]),
    st.booleans(),
)
def test_any_bytes_are_rows_or_are_refused(tmp_path: Path, content: bytes, suffix: str, pack: bool) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content, 1) if suffix.endswith(".gz") and pack else content)
    either_rows_or_a_refusal(path)


@fuzz(250)
@given(OBJECTS, st.booleans())
def test_any_json_is_rows_or_is_refused(tmp_path: Path, rows: list[Any], by_line: bool) -> None:
    text = "\n".join(map(json.dumps, rows)) if by_line else json.dumps(rows)
    path = tmp_path / ("a.jsonl" if by_line else "a.json")
    path.write_text(text)
    either_rows_or_a_refusal(path)


@fuzz(80)
@given(st.lists(JSONS, min_size=2, max_size=5))
def test_any_label_is_a_class_or_is_refused(tmp_path: Path, labels: list[Any]) -> None:
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    either_rows_or_a_refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused(tmp_path: Path, suffix: str, opening: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(opening * 200_000)
    with pytest.raises(UserError, match=r"deep|not JSON"):
        read_rows(path)


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


PARQUET = parquet(pa.Table.from_pylist(GOOD), compression="zstd")


@fuzz(150)
@given(damaged(PARQUET) | st.binary(max_size=60).map(lambda inner: b"PAR1" + inner + b"PAR1"))
def test_any_parquet_is_rows_or_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    either_rows_or_a_refusal(tmp_path / "a.parquet")


TEXT = pa.array(["a", "b"])
ODD_TABLES = {
    "a name twice": pa.table([TEXT, TEXT, pa.array([0, 1])], names=["text", "text", "label"]),
    "no column": pa.table({}),
    "no row": pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}),
    "labels that are lists": pa.table({"text": TEXT, "label": [[1], [2]]}),
    "labels that are bytes": pa.table({"text": TEXT, "label": [b"a", b"\xff"]}),
    "labels that are times": pa.table({"text": TEXT, "label": pa.array([0, 1], pa.timestamp("ns"))}),
    "times past the calendar": pa.table({"text": TEXT, "label": pa.array([0, 2**60], pa.timestamp("ms"))}),
    "texts that are bytes": pa.table({"text": [b"a", b"\xff"], "label": [0, 1]}),
    "texts that are no UTF-8": pa.table(
        {
            "text": pa.StringArray.from_buffers(
                2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
            ),
            "label": [0, 1],
        }
    ),
    "classes that are no list": pa.table({"text": TEXT, "label": [0, 1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"label": {"names": 3, "_type": "ClassLabel"}}}})}
    ),
    "features of no type": pa.table({"text": TEXT, "label": [0, 1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"label": {"_type": "System"}}}})}
    ),
    "metadata that are no JSON": pa.table({"text": TEXT, "label": [0, 1]}).replace_schema_metadata(
        {"huggingface": "{"}
    ),
}


@pytest.mark.parametrize("name", ODD_TABLES)
def test_odd_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(ODD_TABLES[name]))
    either_rows_or_a_refusal(tmp_path / "a.parquet")


# --- records -------------------------------------------------------------------------------------

RECORD = min((RESULTS / "quickstart" / "runs").glob("*.json"), key=lambda path: path.stat().st_size)
KINDS: list[Any] = [Record, InstructRecord, FewShotRecord, Manifest]


def read(path: Path, kind: Any) -> Any:
    try:
        return read_part(path, kind, "record")
    except UserError as error:
        refused_in_one_line(error, where=path)
        return None


@fuzz(150)
@given(st.binary(max_size=80) | JSONS.map(lambda value: json.dumps(value).encode()), st.sampled_from(KINDS))
def test_any_bytes_are_no_record(tmp_path: Path, content: bytes, kind: Any) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read(tmp_path / "a.json", kind) is None


@fuzz(150)
@given(st.data())
def test_a_record_with_anything_in_it_is_read_or_refused(tmp_path: Path, data: Any) -> None:
    """Without a seal, as someone may have sent it: it is refused, or it is a record that can be written."""
    content = json.loads(RECORD.read_text(encoding="utf-8"))
    place: Any = content
    for _ in range(data.draw(st.integers(0, 3))):
        if isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted(place)))
            if isinstance(place[key], dict):
                place = place[key]
    place[data.draw(st.sampled_from(sorted(place) or ["x"]) | TEXTS)] = data.draw(JSONS)
    (tmp_path / "a.json").write_text(json.dumps(content))
    record = read(tmp_path / "a.json", Record)
    if record is not None:
        record.model_dump_json()


@fuzz(300)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_a_sealed_record_with_one_byte_changed_is_not_read_as_another(
    tmp_path: Path, place: int, flip: int
) -> None:
    """Every place and every flip: the same record (white space behind it aside), or a refusal."""
    record = read_part(RECORD, Record, "record")
    content = bytearray(sealed(record).encode())
    content[place % len(content)] ^= flip
    (tmp_path / "a.json").write_bytes(bytes(content))
    found = read(tmp_path / "a.json", Record)
    assert found is None or found == record


def test_every_digit_of_a_record_is_guarded(tmp_path: Path) -> None:
    """A digit that becomes another leaves valid JSON: only the checksum tells."""
    record = read_part(RECORD, Record, "record")
    text = sealed(record)
    assert read_part(_written(tmp_path, text), Record, "record") == record
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    for place in digits[:: max(1, len(digits) // 200)]:
        other = str((int(text[place]) + 1) % 10)
        path = _written(tmp_path, text[:place] + other + text[place + 1 :])
        with pytest.raises(UserError, match="not a foretaste record"):
            read_part(path, Record, "record")


def _written(folder: Path, text: str) -> Path:
    write_atomic(folder / "a.json", text)
    return folder / "a.json"


def test_a_record_without_a_seal_is_read_as_before() -> None:
    record = read_part(RECORD, Record, "record")
    assert unsealed(RECORD.read_bytes()) == RECORD.read_bytes()
    assert Record.model_validate_json(unsealed(sealed(record).encode())) == record
    with pytest.raises(ValueError, match="checksum"):
        unsealed(sealed(record).replace("1", "2", 1).encode())


def test_a_copy_of_a_record_is_not_counted_twice(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    record = read_part(RECORD, Record, "record")
    for name in ("000-copy", record.run_id, "zzz-copy"):
        write_atomic(layout.record(name), sealed(record))
    records, problems = layout.read()
    assert records == [record]
    assert [Path(str(problem.where)).stem for problem in problems] == ["000-copy", "zzz-copy"]
    assert "second record of run" in str(problems[0])
    assert read_all([], lambda path: path, str) == ([], [])


TRANSCRIPT = Transcript(set="clean", id="a", prompt="p\u2028q", response="r\n\x85", finish="eos", tokens=3)


@fuzz(120)
@given(
    st.binary(max_size=60)
    | damaged((line(TRANSCRIPT) * 2).encode())
    | JSONS.map(lambda value: json.dumps(value).encode() + b"\n")
)
def test_any_bytes_are_transcripts_or_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    try:
        found = read_transcripts(path)
    except UserError as error:
        refused_in_one_line(error)
    else:
        assert all(isinstance(one, Transcript) for one in found)
    # The journal of an unfinished run keeps what is whole, and is whole afterwards.
    kept = read_journal(path)
    assert content.startswith(path.read_bytes())
    assert read_journal(path) == kept


# --- kernels -------------------------------------------------------------------------------------

UNIT = Unit("unit", (0, 1), (0,))
TILES = {"sgd/a": torch.arange(6, dtype=torch.float64).reshape(2, 3), "sgd/b": torch.ones(1, 1)}


def unit_bytes(folder: Path) -> bytes:
    InFolder(folder).put(UNIT, TILES)
    return (folder / "unit.safetensors").read_bytes()


@fuzz(200)
@given(st.data())
def test_any_bytes_are_a_unit_of_a_kernel_or_are_thrown_away(tmp_path: Path, data: Any) -> None:
    whole = unit_bytes(tmp_path)
    content = data.draw(damaged(whole) | st.binary(max_size=40))
    path = tmp_path / "unit.safetensors"
    path.write_bytes(content)
    store = InFolder(tmp_path)
    if store.has(UNIT):
        for name, tile in TILES.items():
            assert torch.equal(store.take(UNIT, name)[0], tile)  # type: ignore[arg-type]
    else:
        assert not path.exists()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e5m2, torch.complex64])
def test_a_unit_of_a_dtype_that_no_kernel_has_is_thrown_away(tmp_path: Path, kind: torch.dtype) -> None:
    from safetensors.torch import save_file

    store = InFolder(tmp_path)
    save_file({"a": torch.ones(2).to(kind)}, tmp_path / "unit.safetensors", {"crc32": "00000000"})
    assert not store.has(UNIT)


@fuzz(100)
@given(st.data())
def test_any_bytes_are_a_kernel_or_are_refused(tmp_path: Path, data: Any) -> None:
    part = Part(TILES["sgd/a"].numpy(), TILES["sgd/a"].numpy() * 0.1)
    write(part, "sgd/a", tmp_path)
    path = tmp_path / "sgd" / "a.safetensors"
    path.write_bytes(data.draw(damaged(path.read_bytes()) | st.binary(max_size=40)))
    try:
        found = Parts(folders=[tmp_path])["sgd/a"]
    except UserError as error:
        refused_in_one_line(error, where=path)
    else:
        assert found.train.tolist() == part.train.tolist()
        assert found.test.tolist() == part.test.tolist()
