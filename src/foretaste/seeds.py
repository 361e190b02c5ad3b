"""One seed, many independent named streams of randomness.

No part of foretaste touches a global random generator for its own draws. Two tools are enough:

* `generator(seed, *names)` is a numpy generator that belongs to one purpose;
* `uniforms(seed, names, ids)` gives every row its own number in [0, 1), decided by the row's id alone.
  Sorting rows by it is a random permutation that does not depend on the order, the number or the other
  contents of the rows; taking the first m gives sets that are nested in m.

Libraries that draw from the global generators (peft's initialisation, dropout) are run inside
`borrowed_global_state`, which seeds those generators and puts back what they held before.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**31 - 1


class Seeds(BaseModel):
    """The four sources of randomness of one run (design, decision 3).

    Adapters are compared at equal seeds, so that a difference between them is paired.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data: int = Field(ge=0, le=MAX_SEED, description="which training rows are drawn")
    poison: int = Field(ge=0, le=MAX_SEED, description="which rows are poisoned, and how")
    init: int = Field(ge=0, le=MAX_SEED, description="adapter and random-head initialisation")
    order: int = Field(ge=0, le=MAX_SEED, description="order of the training batches, dropout")

    @classmethod
    def all(cls, seed: int) -> Seeds:
        """The same number for all four, as the TTR paper does."""
        return cls(data=seed, poison=seed, init=seed, order=seed)

    @classmethod
    def of(cls, label: str) -> Seeds:
        """The seeds that have this label.

        Raises:
            ValueError: It is no label of seeds.
        """
        values = [int(part) for part in label.split(".")]
        if len(values) == 1:
            return cls.all(values[0])
        data, poison, init, order = values
        return cls(data=data, poison=poison, init=init, order=order)

    def label(self) -> str:
        """A short name that tells seeds apart: "3", or "0.1.2.0" when the four differ."""
        values = (self.data, self.poison, self.init, self.order)
        return str(values[0]) if len(set(values)) == 1 else ".".join(map(str, values))


STREAMS = ("data", "poison", "init", "order")


def crossed(seeds: Sequence[Seeds], streams: Sequence[str] = STREAMS) -> list[str]:
    """Streams that vary among runs, and of which some of the runs share a draw.

    Such runs are no independent draws: what the shared draw does, it does to several of them. A stream that
    is the same in all of them is held fixed, which is another thing: they are independent given it.

    Args:
        seeds: Of the runs.
        streams: Those that count; the poison seed draws nothing for a clean run.
    """
    values = {stream: [getattr(one, stream) for one in seeds] for stream in streams}
    return [stream for stream, found in values.items() if 1 < len(set(found)) < len(found)]


def _digest(seed: int, names: Iterable[str | int]) -> bytes:
    # Every name is written with its length, so ("ab", "c") and ("a", "bc") are different streams.
    key = "/".join(f"{len(str(name))}:{name}" for name in (seed, *names))
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def integer(seed: int, *names: str | int) -> int:
    """A 31-bit seed for a library that takes one, from the stream `names`."""
    return int.from_bytes(_digest(seed, names)[:8], "big") % MAX_SEED


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for the purpose `names`.

    Args:
        seed: The seed of the stream's family, such as `Seeds.poison`.
        names: What the numbers are for; any change gives an independent stream.
    """
    return np.random.default_rng(int.from_bytes(_digest(seed, names), "big"))


def uniforms(seed: int, names: tuple[str, ...], ids: Iterable[str]) -> npt.NDArray[np.float64]:
    """One uniform number in [0, 1) for each row id.

    Args:
        seed: The seed of the stream's family.
        names: What the numbers are for.
        ids: Row ids; the result follows their order.

    Returns:
        Array of shape (number of ids,), float64, with 53 random bits each.
    """
    prefix = hashlib.blake2b(_digest(seed, names), digest_size=8)

    def one(row: str) -> int:
        state = prefix.copy()
        state.update(row.encode())
        return int.from_bytes(state.digest(), "big") >> 11

    return np.array([one(row) for row in ids], dtype=np.float64) * 2.0**-53


@contextmanager
def borrowed_global_state(seed: int, *names: str | int) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch, and restore them afterwards.

    For libraries that know no other randomness (peft's `reset_lora_parameters`, dropout, Trainer).
    """
    import torch

    number = integer(seed, *names)
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        try:
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
