"""Label flips that somebody chose: near the worst case, where `label-flip` is the random one.

A file names the rows and their new labels, in the order in which the attacker would flip them. It is all that
couples the attack to whatever chose them (a kernel, by `experiments/flips.py`): the attack itself sees no
model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from foretaste.attacks.base import ATTACKS, Options, Row
from foretaste.errors import UserError
from foretaste.spec import Strict
from foretaste.specfile import validate

FORMAT = 1


class Flip(Strict):
    """One training row and the class that it is given."""

    id: str
    label: int = Field(ge=0, description="class id")


class NamedFlips(Strict):
    """What the file holds: flips in the attacker's order, the first m of them the poison set of m rows."""

    format: Literal[1] = 1
    arm: str = Field(description="whose kernel named them, such as lora-r8")
    kernel: str = Field(description="what kernel and budget that was, for a reader")
    classes: list[str] = Field(description="class names in the order of their ids")
    data: str = Field(description="fingerprint of the data set")
    flips: list[Flip] = Field(min_length=1)

    @field_validator("flips")
    @classmethod
    def _fit(cls, flips: list[Flip], info: ValidationInfo) -> list[Flip]:
        seen: set[str] = set()
        for flip in flips:
            if flip.id in seen:
                raise ValueError(f"row '{flip.id}' is named twice")
            seen.add(flip.id)
            classes = info.data.get("classes")
            if classes is not None and flip.label >= len(classes):
                raise ValueError(f"row '{flip.id}' gets class {flip.label}, there are {len(classes)} classes")
        return flips


def read_flips(path: Path) -> tuple[NamedFlips, str]:
    """The flips in a file, and the SHA-256 of its content in hexadecimal.

    Args:
        path: JSON as `NamedFlips`.

    Raises:
        UserError: The file is missing, no JSON, of another format, or names a row twice or a class that is
            none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the named flips: {error.strerror}",
            where=str(path),
            cure="A relative path starts from the spec's folder, or from here where there is no spec.",
        ) from None
    cure = f"Expected an object with the keys {', '.join(NamedFlips.model_fields)}."
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the named flips are not JSON: {error}", where=str(path), cure=cure) from None
    if not isinstance(value, dict):
        raise UserError("the named flips are no JSON object", where=str(path), cure=cure)
    found = value.get("format")
    if found != FORMAT:
        raise UserError(
            f"named flips of format {found!r}; this version reads format {FORMAT}", where=str(path), cure=cure
        )
    try:
        named = validate(value, NamedFlips, origin=str(path))
    except UserError as error:
        raise UserError(error.message, where=error.where, cure=error.cure or cure) from None
    return named, hashlib.sha256(content).hexdigest()


class AdversarialFlipOptions(Options):
    """Options of `adversarial-flip`."""

    named_by: str = Field(
        description="JSON file that names rows and their new labels; relative to the spec's folder"
    )
    fingerprint: str | None = Field(
        None, description="SHA-256 of that file; filled in, so that a changed list is another run"
    )


@ATTACKS.register("adversarial-flip")
class AdversarialFlip:
    """Gives rows that a file names the labels that it names: chosen label flips, texts untouched.

    Every row is eligible, so a rate is a share of all training rows. The list was made for one draw of
    training rows (one data seed), and the poison seed has no part in it.

    Raises:
        UserError: The file is missing or damaged, changed since it was fingerprinted, or has other classes.
    """

    Options: ClassVar[type[Options]] = AdversarialFlipOptions
    source: ClassVar[str] = "Xiao et al. 2012 (ALFA); Paudice et al. 2018"
    reads_file: ClassVar[bool] = True

    def __init__(
        self, options: AdversarialFlipOptions, classes: Sequence[str], base_dir: Path | None = None
    ) -> None:
        self._path = (base_dir or Path()) / Path(options.named_by).expanduser()
        named, fingerprint = read_flips(self._path)
        where = str(self._path)
        if options.fingerprint not in (None, fingerprint):
            raise UserError(
                f"the list has changed: its SHA-256 is {fingerprint}, expected {options.fingerprint}",
                where=where,
                cure="Put the old list back, or start anew with this one.",
            )
        if named.classes != list(classes):
            raise UserError(
                f"the list is for the classes {', '.join(named.classes)}, the data have {', '.join(classes)}",
                where=where,
                cure="Use the list of these data; `labels` sets the order of the classes.",
            )
        self.options = options.model_copy(update={"fingerprint": fingerprint})
        self.data = named.data
        self._labels = {flip.id: flip.label for flip in named.flips}

    def eligible(self, row: Row) -> bool:  # noqa: ARG002 - the same call for every attack
        """Every row: the rate is a share of all."""
        return True

    def order(self, rows: Sequence[Row]) -> list[int]:
        """Positions of the named rows, in the order of the list.

        Raises:
            UserError: A named row is not among these, or has its new label already.
        """
        place = {row.id: position for position, row in enumerate(rows)}
        strangers = [name for name in self._labels if name not in place]
        if strangers:
            raise UserError(
                f"{len(strangers)} of the {len(self._labels)} named rows, first '{strangers[0]}', are not "
                f"among the {len(rows)} training rows of this draw",
                where=str(self._path),
                cure="A list is made for one draw of training rows: keep `data.train_rows`, and fix the data "
                "seed to the one that it was made with, such as "
                "`seeds: {data: [0], poison: [0], init: [0, 1, 2], order: [0]}`.",
            )
        for name, label in self._labels.items():
            if rows[place[name]].label == label:
                raise UserError(
                    f"row '{name}' is of class {label} already, which is no flip",
                    where=str(self._path),
                    cure="The list was made for other labels: have the rows named anew for these data.",
                )
        return [place[name] for name in self._labels]

    def poison(self, row: Row, rng: np.random.Generator) -> Row:  # noqa: ARG002 - nothing is drawn
        """The row with the label that the list gives it."""
        return replace(row, label=self._labels[row.id])
