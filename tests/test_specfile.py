"""Reading a spec: what is accepted, and one line that says what is wrong and where."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.spec import AdapterSpec, AttackSpec, MeasureSpec, SeedGrid, TrainingSpec
from foretaste.specfile import load, parse, validate

HEAD = """\
data:
  source: reviews
model:
  base: bert
adapters:
  - method: full
  - {method: lora, r: 4}
"""


def spec(rest: str = "") -> MeasureSpec:
    return parse(HEAD + rest, MeasureSpec, origin="a.yaml")


def message(text: str, kind: Any = MeasureSpec) -> str:
    with pytest.raises(UserError) as caught:
        parse(text, kind, origin="a.yaml")
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith("a.yaml")
    return line


# --- accepted ------------------------------------------------------------------------------------


def test_the_smallest_spec_takes_the_defaults() -> None:
    small = spec()
    assert small.seeds == [0, 1, 2]
    assert small.training == TrainingSpec()
    assert small.adapters[1].config == {"r": 4}
    assert small.model_dump(exclude_unset=True).keys() == {"data", "model", "adapters"}


@pytest.mark.parametrize(
    "written", ["3e-5", "3E-5", "+3e-5", "3.e-5", "3.0e-5", "30e-6", "0.00003", "3_0e-6"]
)
def test_learning_rates_are_numbers_however_they_are_written(written: str) -> None:
    assert spec(f"training: {{learning_rate: {written}}}").training.learning_rate == pytest.approx(3e-5)


@pytest.mark.parametrize("word", ["e5", "3e", "3e-5x", "e-5", "'3e-5'", "3e-5 percent"])
def test_words_that_look_like_numbers_stay_words(word: str) -> None:
    assert "should be a valid number" in message(HEAD + f"training: {{learning_rate: {word}}}")


def test_numbers_inside_free_fields_are_read_in_the_same_way() -> None:
    arms = parse("adapters: [{method: lora, x: 1e-3, grid: {init.k: [1e-4, 8]}}]\n" + HEAD[:-54], MeasureSpec)
    assert arms.adapters[0].config == {"x": 1e-3}
    assert arms.adapters[0].grid == {"init.k": [1e-4, 8]}


def test_both_forms_of_seeds() -> None:
    assert spec("seeds: [5, 3]").seeds == [5, 3]
    assert spec("seeds: {poison: [1, 2]}").seeds == SeedGrid(poison=[1, 2])


def test_a_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes((HEAD + "title: Größe\n").encode())
    assert load(path, MeasureSpec).title == "Größe"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"a\.yaml: the spec is not UTF-8"):
        load(path, MeasureSpec)
    with pytest.raises(UserError, match=r"b\.yaml: cannot read the spec: No such file"):
        load(tmp_path / "b.yaml", MeasureSpec)
    with pytest.raises(UserError, match="cannot read the spec: Is a directory"):
        load(tmp_path, MeasureSpec)


# --- refused, in one line ------------------------------------------------------------------------

ATTACK = "attacks:\n  - method: trigger\n    "

REFUSED = {
    "unknown key": (
        "trainng: {}",
        ["a.yaml:8:", "unknown key 'trainng'", "allowed: format, name", "Did you mean 'training'?"],
    ),
    "unknown key below": (
        "training:\n  batch_size: 4\n  learning_rat: 1e-3",
        ["a.yaml:10:", "unknown key 'training.learning_rat'", "Did you mean 'learning_rate'?"],
    ),
    "unknown key in a union": (
        "seeds: {poisn: [1]}",
        ["a.yaml:8:", "'seeds.poisn'", "Did you mean 'poison'?"],
    ),
    "unknown key with no near word": ("zzqx: 1", ["unknown key 'zzqx'"]),
    "rate above one": (
        ATTACK + "rates: [0.1, 5]",
        ["a.yaml:10:", "'attacks.0.rates.1' is 5", "less than or equal to 1"],
    ),
    "rate below zero": (
        ATTACK + "rates: [-0.1]",
        ["'attacks.0.rates.0' is -0.1", "greater than or equal to 0"],
    ),
    "rate as a word": (ATTACK + "rates: [5%]", ["'attacks.0.rates.0' is '5%'", "valid number"]),
    "rate not a number": (ATTACK + "rates: [.nan]", ["'attacks.0.rates.0' is nan"]),
    "rate without a list": (ATTACK + "rates: 0.1", ["'attacks.0.rates' is 0.1", "valid list"]),
    "rates and counts": (ATTACK + "rates: [0.1]\n    counts: [3]", ["a.yaml:9:", "give rates or counts"]),
    "neither": (ATTACK + "text: x", ["give rates or counts"]),
    "empty rates": (ATTACK + "rates: []", ["give rates or counts, one of the two and not empty"]),
    "half a row": (ATTACK + "counts: [1.5]", ["'attacks.0.counts.0' is 1.5", "valid integer"]),
    "negative count": (ATTACK + "counts: [-1]", ["'attacks.0.counts.0' is -1"]),
    "counts by coin": (ATTACK + "counts: [1]\n    selection: bernoulli", ["Bernoulli draws have rates only"]),
    "unknown selection": (
        ATTACK + "rates: [0.1]\n    selection: bernouli",
        ["'attacks.0.selection' is 'bernouli'", "Did you mean 'bernoulli'?"],
    ),
    "unknown word": ("training: {schedule: lineer}", ["a.yaml:8:", "Did you mean 'linear'?"]),
    "two budgets": ("training: {epochs: 1, steps: 2}", ["give epochs or steps, not both"]),
    "true for a number": ("training: {batch_size: true}", ["'training.batch_size' is True"]),
    "number for a word": ("title: 3", ["'title' is 3", "valid string"]),
    "no rows in a batch": ("training: {batch_size: 0}", ["'training.batch_size' is 0", "greater than 0"]),
    "no learning": ("training: {learning_rate: 0.0}", ["'training.learning_rate' is 0.0"]),
    "empty seeds": ("seeds: []", ["seeds must not be empty"]),
    "empty seeds of a source": ("seeds: {order: []}", ["seeds must not be empty"]),
    "seed twice": ("seeds: [1, 1]", ["seeds repeat: [1, 1]"]),
    "negative seed": ("seeds: [-1]", ["'seeds.0' is -1"]),
    "a seed without a list": ("seeds: 3", ["'seeds' is 3"]),
    "name with a space": ("name: a b", ["'name' is 'a b'"]),
    "other format": ("format: 2", ["'format' is 2", "should be 1"]),
    "key twice": ("training: {epochs: 1, epochs: 2}", ["a.yaml:8:", "key 'epochs' is given twice"]),
    "top key twice": ("data: {source: y}", ["a.yaml:8:", "key 'data' is given twice"]),
    "key that YAML reads as true": ("on: 1", ["a.yaml:8:", "key True is not a word"]),
    "key that is a list": ("? [a, b]\n: 1", ["key ['a', 'b'] is not a word"]),
    "broken YAML": ("training: {epochs: 1", ["a.yaml:", "not valid YAML"]),
    "tabs": ("training:\n\tepochs: 1", ["a.yaml:9:", "not valid YAML"]),
    "a second document": ("---\nname: b", ["a.yaml:8:", "not valid YAML"]),
    "code": (
        "name: !!python/object/apply:os.getcwd []",
        ["not valid YAML", "could not determine a constructor"],
    ),
    "no such day": ("title: 2001-99-99", ["not valid YAML"]),
    "too many digits": ("title: " + "1" * 5000, ["a.yaml:8:", "a number of 5000 digits"]),
    "deep nesting": ("x: " + "[" * 3000, ["not valid YAML"]),
    "NUL": ("title: \0", ["not valid YAML"]),
    "itself": ("training: &t {epochs: *t}", ["a.yaml:8:", "holds itself"]),
    "learning without end": (
        "training: {learning_rate: .inf}",
        ["'training.learning_rate' is inf", "finite"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_in_one_line(name: str) -> None:
    text, parts = REFUSED[name]
    line = message(HEAD + text)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "word", "3", "!!set {a}"])
def test_a_spec_is_a_mapping(text: str) -> None:
    assert message(text) == "a.yaml: the spec is not a mapping of keys to values"


def test_missing_keys_are_named_and_counted() -> None:
    line = message("adapters: [{method: full}]\n")
    assert "'data' is missing" in line
    assert "(1 more after this one)" in line
    assert "'data.source' is missing" in message("data:\n  config: x\n" + HEAD[HEAD.index("model") :])


def test_no_adapters_at_all() -> None:
    assert "'adapters' is []" in message(HEAD[: HEAD.index("adapters")] + "adapters: []")


def test_an_unknown_key_is_told_before_other_complaints() -> None:
    assert "unknown key 'data.sorce'" in message("data: {sorce: x}\nmodel: {base: 3}\n")


def test_a_mapping_without_lines_is_refused_in_the_same_way() -> None:
    with pytest.raises(UserError, match=r"^here: unknown key 'rate' \(allowed: .*Did you mean 'rates'\?"):
        validate({"method": "m", "rate": 1}, _Strict, origin="here")
    with pytest.raises(UserError, match=r"^here: 'method' is missing"):
        validate({}, AdapterSpec, origin="here")


class _Strict(AttackSpec, extra="forbid"):
    """An attack that takes no options of its own."""


def test_a_long_value_is_cut() -> None:
    assert len(message(HEAD + "seeds: " + "x" * 10_000)) < 400


# --- fuzz: a text is a spec or a user's error, never anything else -------------------------------


def spec_or_error(text: str, kind: Any = MeasureSpec) -> None:
    with contextlib.suppress(UserError):  # one line by construction: tests/test_foundations.py
        parse(text, kind)


@given(st.text())
@settings(max_examples=300)
def test_any_text(text: str) -> None:
    spec_or_error(text)


# Strings that are likely to be YAML: its marks, tags and anchors between keys of a spec.
PIECES = [
    "data:",
    "model:",
    "adapters:",
    "attacks:",
    "seeds:",
    "training:",
    "method:",
    "rates:",
    "r:",
    "k:",
    "source:",
    "base:",
    "name:",
    "!",
    "!!int",
    "!!float",
    "!!bool",
    "!!null",
    "!!map",
    "!!seq",
    "!!set",
    "!!omap",
    "!!pairs",
    "!!binary",
    "!!timestamp",
    "!!str",
    "!!merge",
    "!x",
    "&a",
    "*a",
    "<<",
    "=",
    "?",
    "|",
    ">",
    "%",
    "@",
    "~",
    "---",
    "...",
    ".nan",
    ".inf",
    "1e5",
    "0x1f",
    "0o7",
    "1:30",
    "2001-01-01",
    "true",
    "on",
    "x",
    "''",
    '""',
    "[]",
    "{}",
]
yaml_like = st.lists(
    st.sampled_from([*PIECES, "\n", "\n  ", "\n- ", ", ", "[", "]", "{", "}", ": ", " "])
    | st.text(max_size=3),
    max_size=25,
).map(" ".join)


@given(yaml_like)
@settings(max_examples=500)
def test_any_text_that_is_nearly_yaml(text: str) -> None:
    spec_or_error(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*MeasureSpec.model_fields, *TrainingSpec.model_fields, *AttackSpec.model_fields, "SeedGrid", "x[y]"]


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), values, max_size=5))
@settings(max_examples=300)
def test_any_mapping(content: dict[str, Any]) -> None:
    for kind in (MeasureSpec, TrainingSpec, AttackSpec):
        with contextlib.suppress(UserError):
            validate(content, kind, origin="x")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!int ''",
        "a: !!float ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!map [1]",
        "a: !!set [1]",
        "!!map [1]",
        '"x[y]": 1',
        "SeedGrid: 1",
        '"constrained-int": 1',
        '"\\uD800": 1',
        "&r {a: *r}",
        "? &x [*x]\n: 1",
    ],
)
def test_texts_that_once_broke_the_reader(text: str) -> None:
    """Each made `parse` raise something that is no UserError, or is a near relative of one that did."""
    spec_or_error(text)


# --- places as the user wrote them ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seeds: [0, 0]", "a.yaml:8: seeds repeat: [0, 0]; the same seed twice is not a second measurement"),
        ("title: x\nseeds: []", "a.yaml:9: seeds must not be empty"),
        (
            "name: my sweep",
            "a.yaml:8: 'name' is 'my sweep': a name has letters, digits, '.', '_' and '-', and begins with a "
            "letter or a digit. Write my-sweep.",
        ),
        (
            "name: '?'",
            "a.yaml:8: 'name' is '?': a name has letters, digits, '.', '_' and '-', and begins with",
        ),
        (
            "seeds: 3",
            "a.yaml:8: 'seeds' is 3: input should be a valid list or a valid dictionary or instance",
        ),
    ],
)
def test_the_line_and_the_words_of_the_user(text: str, says: str) -> None:
    line = message(HEAD + text)
    assert line.startswith(says)
    assert "the whole" not in line
    assert len(line) < 220


def test_of_equally_near_words_the_first_is_meant() -> None:
    line = message("data: {source: x, columns: {text: review}}\n" + HEAD[HEAD.index("model") :])
    assert "unknown key 'data.columns.text'" in line
    assert "Did you mean 'text_a'?" in line


FEW = """\
name: x
model: {base: b}
tasks:
  - name: own
    data: {source: a.csv}
    prompt: {PROMPT}
k: [2]
arms:
  - {kind: zero-shot}
  - {ARM}
"""
WORDS = "words: [bad, good]"


@pytest.mark.parametrize(
    ("prompt", "arm", "says"),
    [
        ("{" + WORDS + "}", "{kind: zero-shot}", "a.yaml:6: 'tasks.0.prompt.template' is missing"),
        (
            "{" + WORDS + ", tempalte: x}",
            "{kind: zero-shot}",
            "a.yaml:6: unknown key 'tasks.0.prompt.tempalte' (allowed: template, words",
        ),
        ("sst2", "{kind: fine-tune, optimiser: sdg}", "a.yaml:10: 'arms.1.optimiser' is 'sdg'"),
        ("sst2", "{kind: fine-tune, zz: 1}", "a.yaml:10: unknown key 'arms.1.zz' (allowed: "),
    ],
)
def test_members_of_a_union_are_no_part_of_a_place(prompt: str, arm: str, says: str) -> None:
    from foretaste.fewshot.spec import FewShotSpec

    line = message(FEW.replace("{PROMPT}", prompt).replace("{ARM}", arm), FewShotSpec)
    assert line.startswith(says)


def test_an_option_of_two_kinds() -> None:
    from foretaste.attacks import build

    with pytest.raises(UserError) as caught:
        build("trigger", {"target": True}, ["no", "yes"], where="attacks.0")
    assert str(caught.value) == (
        "attacks.0: 'target' is True: input should be a valid string or a valid integer"
    )
    with pytest.raises(
        UserError, match=r"^here: 'source_classes.1' is 2.5: input should be a valid string or"
    ):
        build("trigger", {"source_classes": ["no", 2.5]}, ["no", "yes"], where="here")


@pytest.mark.parametrize("command", ["instruct", "fewshot", "measure"])
def test_a_spec_of_another_command(command: str) -> None:
    from foretaste.fewshot.spec import FewShotSpec
    from foretaste.instruct.spec import InstructSpec
    from foretaste.specfile import TELLING

    kinds = {"measure": MeasureSpec, "instruct": InstructSpec, "fewshot": FewShotSpec}
    for name, keys in TELLING.items():
        assert set(keys) <= set(kinds[name].model_fields)
        for other in kinds.keys() - {name}:
            assert not set(keys) & set(kinds[other].model_fields)
    given, key = ("measure", "attacks") if command != "measure" else ("fewshot", "tasks")
    text = HEAD.replace("bert", "bert\n  pooling: mean") + f"{key}: []\n"
    assert message(text, kinds[command]) == (
        f"a.yaml: this looks like a spec of {given} (it has '{key}'), and a spec of {command} is wanted. "
        f"Use `foretaste {given}`."
    )
    # A key of its own beside it makes it a slip of the pen.
    assert "unknown key '" in message(text + f"{TELLING[command][0]}: []\n", kinds[command])
