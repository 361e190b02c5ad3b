"""What an attack is: the calls that every attack answers, and those that some answer beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeGuard

import numpy as np
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, ValidationError

from foretaste.data import columns_of
from foretaste.errors import UserError, unknown
from foretaste.registry import Registry
from foretaste.specfile import describe


class Options(BaseModel):
    """Base of the options of every attack: strict and frozen, so that they can be hashed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Row:
    """One example as an attack sees it. The label is a class id."""

    id: str
    text_a: str
    text_b: str | None
    label: int


class Attack(Protocol):
    """A published attack on training data. It never sees the model under attack.

    An implementation is built from its `Options` and the class names, and refuses there whatever does not fit
    the data (a target that is no class). All its randomness comes from the generator that it is
    given, which belongs to one row: what happens to a row does not depend on the other rows.

    One whose options name a file sets `reads_file = True` and takes `base_dir`, the folder that relative
    paths start from, as a third argument; it names the file's content in its options.

    The classes below say what some attacks offer beside this; each is recognised by what it has.
    """

    Options: ClassVar[type[Options]]
    source: ClassVar[str]

    def __init__(self, options: Any, classes: Sequence[str]) -> None: ...

    def eligible(self, row: Row) -> bool:
        """Whether the row may be chosen; the rate is a share of the rows that may."""
        ...

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row as the attacker leaves it in the training data."""
        ...


class Backdoor(Attack, Protocol):
    """An attack that also changes test inputs."""

    target: int

    def trigger(self, row: Row, rng: np.random.Generator) -> Row:
        """The test row with the trigger put in; its label stays the true one."""
        ...


@dataclass(frozen=True)
class Form:
    """A further way of putting a trigger into test rows, beside the one that was trained on.

    Attributes:
        says: What it is, in a few words, for a reader of a table.
        expected: What the attacker wants of such rows: the target class, or (`true`) no effect.
        trigger: As `Backdoor.trigger`; it may leave a row as it is where the form does not fit it.
    """

    says: str
    expected: Literal["target", "true"]
    trigger: Callable[[Row, np.random.Generator], Row]


class Versatile(Backdoor, Protocol):
    """A backdoor that is tested in further forms of its trigger, each of which gets its own metrics."""

    def forms(self) -> dict[str, Form]:
        """The forms by their names, which are short and stand in keys."""
        ...


class Accompanied(Attack, Protocol):
    """An attack that also changes rows beside the poisoned ones, such as negative rows with true labels.

    The amount of an attack and its denominator count the poisoned rows alone.

    Attributes:
        companions: Such rows for each poisoned one; 0 for none.
    """

    companions: float

    def accompanies(self, row: Row) -> bool:
        """Whether the row may be changed beside the poisoned ones."""
        ...

    def companion(self, row: Row, rng: np.random.Generator) -> Row:
        """The row as it is left in the training data beside the poisoned ones."""
        ...


class Reporting(Attack, Protocol):
    """An attack that has numbers to say about what it did to the rows; the manifest holds them."""

    def figures(self, rows: Sequence[Row], poisoned: Sequence[tuple[Row, Row]]) -> dict[str, float]:
        """Named numbers.

        Args:
            rows: All training rows before the attack.
            poisoned: The poisoned ones before and after it.
        """
        ...


class Ordered(Attack, Protocol):
    """An attack that says itself which rows come first: nothing about it is drawn, whatever the poison seed.

    Attributes:
        data: Fingerprint of the data set that the order was made for.
    """

    data: str

    def order(self, rows: Sequence[Row]) -> list[int]:
        """Positions of the rows that may be poisoned, the first m of them the poison set of m rows.

        Raises:
            UserError: The order was made for other rows.
        """
        ...


ATTACKS: Registry[type[Attack]] = Registry("attack")


def build(
    method: str,
    options: dict[str, Any],
    classes: Sequence[str],
    *,
    where: str | None = None,
    base_dir: Path | None = None,
) -> Attack:
    """The attack called `method`, ready for data with these classes.

    Args:
        method: Name in the registry.
        options: The attack's own options; missing ones take their defaults.
        classes: Class names in the order of their ids.
        where: File and key of the attack, for errors.
        base_dir: Folder that relative paths in the options start from; the working folder by default.

    Raises:
        UserError: Unknown method, unknown or invalid option, or an option that does not fit the classes.
    """
    kind = ATTACKS.get(method, where=where)
    try:
        parsed = kind.Options.model_validate(options)
    except ValidationError as error:
        raise describe(error, kind.Options, origin=where or f"attack '{method}'", value=options) from None
    # Only an attack whose options name a file is told where paths start: the options keep the path as it was
    # written, so that a run's id does not depend on where its folder lies.
    place = {"base_dir": base_dir} if getattr(kind, "reads_file", False) else {}
    try:
        return kind(parsed, classes, **place)
    except UserError as error:
        raise (error.located(where) if where else error) from None


def class_id(name: str | int, classes: Sequence[str], *, key: str) -> int:
    """The id of a class given by name or by id.

    A text is a name, a number is an id. Where classes are called by numbers (stars from 1 to 5), a number
    that is the name of one class and the id of another is refused: either guess would poison the wrong one.

    Args:
        name: The class.
        classes: Class names in the order of their ids.
        key: The option that names it, for errors.

    Raises:
        UserError: It is no class of the data, or may be either of two.
    """
    if isinstance(name, int):
        called = [word for word in classes if _is_numeral(word) and int(word) == name]
        if not 0 <= name < len(classes):
            raise UserError(
                f"{key} {name} is no class id (allowed: 0 to {len(classes) - 1}: {', '.join(classes)})",
                cure=f"For the class called '{called[0]}' write {_as_name(called[0], key)}."
                if called
                else None,
            )
        if called and classes[name] not in called:
            raise UserError(
                f"{key} {name} may be the class called '{called[0]}' or the class with the id {name}, which "
                f"is called '{classes[name]}'",
                cure=f"Write the name in quotation marks: {_as_name(called[0], key)}; or, for the other, "
                f"{key}: {_listed(classes[name], key)}.",
            )
        return name
    if name not in classes:
        raise unknown(f"class in {key}:", name, classes)
    return list(classes).index(name)


def _is_numeral(word: str) -> bool:
    return len(word) < 20 and re.fullmatch(r"[+-]?[0-9]+", word) is not None


def _listed(word: str, key: str) -> str:
    return f'["{word}"]' if key == "source_classes" else f'"{word}"'


def _as_name(word: str, key: str) -> str:
    """How a class that is called by a number is named, in a spec and on the command line."""
    value = _listed(word, key)
    return f"{key}: {value} (on the command line --option '{key}={value}')"


def classes_named(options: Mapping[str, Any], classes: Sequence[str]) -> dict[str, int]:
    """Ids of the single classes that an attack's options name, by option; for telling them to a reader.

    Args:
        options: Options of an attack, as a manifest or a run holds them.
        classes: Class names in the order of their ids.
    """
    named: dict[str, int] = {}
    for key in ("target", "flip_from", "flip_to"):
        value = options.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            try:
                named[key] = class_id(value, classes, key=key)
            except UserError:  # an attack of the user's own may mean something else by the word
                continue
    return named


def rows_of(dataset: Dataset) -> list[Row]:
    """The rows of a data set with the columns id, text_a, text_b, label."""
    columns = columns_of(dataset)
    return [
        Row(str(i), a, b, int(y))
        for i, a, b, y in zip(
            columns["id"], columns["text_a"], columns["text_b"], columns["label"], strict=True
        )
    ]


def is_ordered(attack: Attack) -> TypeGuard[Ordered]:
    """Whether the attack names the rows itself, in an order that no seed changes."""
    return hasattr(attack, "order")


def is_backdoor(attack: Attack) -> TypeGuard[Backdoor]:
    """Whether the attack has a test-time trigger."""
    return hasattr(attack, "trigger")


def is_accompanied(attack: Attack) -> TypeGuard[Accompanied]:
    """Whether the attack changes rows beside the poisoned ones."""
    return getattr(attack, "companions", 0.0) > 0.0


def is_reporting(attack: Attack) -> TypeGuard[Reporting]:
    """Whether the attack has numbers to say about what it did."""
    return hasattr(attack, "figures")


def forms(attack: Attack) -> dict[str, Form]:
    """The further forms of the attack's trigger by their names; none for most attacks."""
    return attack.forms() if _is_versatile(attack) else {}


def _is_versatile(attack: Attack) -> TypeGuard[Versatile]:
    return hasattr(attack, "forms")
