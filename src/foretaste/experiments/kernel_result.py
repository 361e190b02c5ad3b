"""Kernels of several arms on the same rows: what they are made of, in memory and in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.experiments.run import versions
from foretaste.kernels import MEAN_LORA, Done, Parameter, Part, Parts, Ranks, Surface
from foretaste.record import write_atomic

Float = npt.NDArray[np.float64]

FILE = "kernel.json"
BASE, OTHERS = "base", "others"
ARMS = "arms"


@dataclass(frozen=True)
class ArmKernel:
    """The kernel of one arm.

    Attributes:
        parts: Names of the parts that add up to it, by kind (`sgd`, `sign`, `asymmetric`).
        parameters: Trainable parameters that the kernel covers.
        by_group: The same, by group.
        unused: Names of trainable parameters that no output depends on.
        rows_share_batches: Whether rows were captured together; else one at a time.
        explicit: Names of parameters that were differentiated without hooks.
        head: Names of the parts that are of the head.
    """

    parts: dict[str, list[str]]
    parameters: int
    by_group: dict[str, int]
    unused: list[str]
    rows_share_batches: bool
    explicit: list[str]
    head: list[str]


@dataclass(frozen=True)
class Captured:
    """What one capture found out beside its parts, kept in the folder so that it is not done again.

    Attributes:
        by_group: Number of parameters covered.
        head: Names of the head's parameters.
        unused: Names of trainable parameters that no output depends on.
        batched: Whether rows were captured together; else one at a time.
        explicit: Names of parameters that were differentiated without hooks.
        values: Outputs of the model, by row.
    """

    by_group: dict[str, int]
    head: list[str]
    unused: list[str]
    batched: bool
    explicit: list[str]
    values: list[list[float]]

    FILE: ClassVar[str] = "captured.json"

    @classmethod
    def of(cls, done: Done) -> Captured:
        """From what `kernels` returns."""
        parameters = done.probe.parameters
        return cls(
            by_group=by_group(parameters),
            head=[p.name for p in parameters if p.group == "head"],
            unused=done.probe.unused,
            batched=done.probe.batched,
            explicit=[p.name for p in parameters if p.form == "explicit"],
            values=done.values.tolist(),
        )

    @classmethod
    def read(cls, folder: Path) -> Captured | None:
        """Of a finished capture; None where it is not finished."""
        try:
            return cls(**json.loads((folder / cls.FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Mark the capture in a folder as finished.

        Raises:
            OSError: It could not be written.
        """
        write_atomic(folder / self.FILE, json.dumps(vars(self)))

    def arm(self, kinds: Sequence[str], names: Sequence[str], prefix: str = "") -> ArmKernel:
        """The arm whose kernel is all that was captured.

        Args:
            kinds: Of kernel.
            names: Of the parts.
            prefix: Stands before the kind in a part's name.
        """
        return ArmKernel(
            parts={kind: [n for n in names if n.startswith(f"{prefix}{kind}/")] for kind in kinds},
            parameters=sum(self.by_group.values()),
            by_group=self.by_group,
            unused=self.unused,
            rows_share_batches=self.batched,
            explicit=self.explicit,
            head=[n for n in names if n.removeprefix(prefix).partition("/")[2] in {"head", *self.head}],
        )


def by_group(parameters: Sequence[Parameter]) -> dict[str, int]:
    """Number of parameter entries by group."""
    counts: dict[str, int] = {}
    for parameter in parameters:
        counts[parameter.group] = counts.get(parameter.group, 0) + int(np.prod(parameter.shape))
    return counts


@dataclass(frozen=True)
class Kernels:
    """Kernels of several arms on the same rows.

    Attributes:
        parts: Every part by name; read from the folder when asked for.
        arms: By name of the arm.
        ids: Row ids, those to train on first.
        labels: Class ids of these rows.
        train_rows: Number of rows to train on.
        outputs: `margin` or `logits`.
        values: Outputs of the model before training, shape (rows, outputs), float64.
        ranks: Ranks of the LoRA surface.
        seconds: Time that it took.
        folder: Where the parts are, or None for memory.
    """

    parts: Parts
    arms: dict[str, ArmKernel]
    ids: list[str]
    labels: list[int]
    train_rows: int
    outputs: str
    values: Float
    ranks: tuple[int, ...] = ()
    seconds: float = 0.0
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    def of(self, arm: str, kind: str = "sgd") -> Part:
        """The kernel of one arm: `train` (N * C, N * C) and `test` (M * C, N * C), float64.

        Raises:
            UserError: There is no such arm or kind.
        """
        if arm not in self.arms or kind not in self.arms[arm].parts:
            have = ", ".join(f"{name} ({', '.join(a.parts)})" for name, a in self.arms.items())
            raise UserError(f"no kernel '{kind}' of arm '{arm}'; there are: {have}")
        parts = [self.parts[name] for name in self.arms[arm].parts[kind]]
        return Part(_sum([p.train for p in parts]), _sum([p.test for p in parts]))

    def surface(self) -> Surface:
        """LoRA on all linear layers over rank, variance and scaling, without the head.

        Raises:
            UserError: No ranks were asked for.
        """
        if not self.ranks:
            raise UserError("no LoRA surface was computed", cure="Give `ranks`.")
        return Surface(self.ranks, self.parts[Ranks.KEY].train)

    def trace_ratio(self, arm: str, reference: str = "full", *, head: bool = True) -> float:
        """Tr K_arm / tr K_reference of the SGD kernels, with or without the head that both train."""
        return self._trace(arm, head) / self._trace(reference, head)

    def _trace(self, arm: str, head: bool) -> float:
        names = [n for n in self.arms[arm].parts["sgd"] if head or n not in self.arms[arm].head]
        return float(sum(np.trace(self.parts[name].train) for name in names))


def _sum(arrays: Sequence[Float]) -> Float:
    """Their sum."""
    total = np.zeros_like(arrays[0])
    for array in arrays:
        total = total + array
    return total


def stored_parts(folder: Path) -> Parts:
    """Every part in a folder: those of arms with a capture of their own carry the arm's name in front."""
    return Parts(folders=[folder / BASE, folder / OTHERS])


def write(result: Kernels, folder: Path) -> None:
    """Write everything but the parts, which are there already.

    Raises:
        OSError: It could not be written.
    """
    content = {
        "format": 1,
        "arms": {name: vars(arm) for name, arm in result.arms.items()},
        "parts": list(result.parts),
        "expectation": f"{MEAN_LORA} times s^2 r k is the mean of LoRA on all linear layers",
        "ids": result.ids,
        "labels": result.labels,
        "train_rows": result.train_rows,
        "outputs": result.outputs,
        "values": result.values.tolist(),
        "ranks": list(result.ranks),
        "seconds": result.seconds,
        "notes": result.notes,
        "versions": versions(),
    }
    write_atomic(folder / FILE, json.dumps(content, indent=1))


def read(folder: Path) -> Kernels:
    """The kernels in a folder; parts are read when asked for.

    Raises:
        UserError: The folder holds no finished kernel.
    """
    try:
        content = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        raise UserError(
            "no finished kernel here", where=str(folder), cure="Run `foretaste kernel` first."
        ) from None
    except ValueError:
        raise UserError("kernel.json is damaged", where=str(folder)) from None
    return Kernels(
        parts=stored_parts(folder),
        arms={name: ArmKernel(**arm) for name, arm in content["arms"].items()},
        ids=content["ids"],
        labels=content["labels"],
        train_rows=content["train_rows"],
        outputs=content["outputs"],
        values=np.asarray(content["values"]),
        ranks=tuple(content["ranks"]),
        seconds=content["seconds"],
        folder=folder,
        notes=content["notes"],
    )
