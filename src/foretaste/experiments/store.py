"""The folder of a sweep: one spec, one owner at a time, and every finished run kept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from foretaste.attempt import OfRun
from foretaste.calibration.naming import FINAL, Name, Thing, differences, names_in, shown
from foretaste.errors import UserError
from foretaste.record import Layout, Record, write_atomic
from foretaste.spec import MeasureSpec, RunSpec

ELSEWHERE: Mapping[Thing, str] = {
    "model": "Choose another folder.",
    "data set": "Choose another folder.",
    "arm": "Choose another folder, or give the arm another `name`.",
    "attack": "Choose another folder, or give the attack another `name`.",
}


@contextmanager
def owned(folder: Path) -> Iterator[Layout]:
    """The folder, made when missing and locked against a second sweep while the context lasts.

    The lock is the operating system's (flock): it goes with the process, however that ends.

    Raises:
        UserError: Another process works in the folder, it cannot be written, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot write there: {error.strerror}", where=str(folder)) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise UserError(
                    f"the file system cannot lock a file there: {error.strerror}",
                    where=str(folder),
                    cure="Without a lock two sweeps could mix. Choose a folder on another file system, or "
                    "mount this one with locks (NFS: without `nolock`).",
                ) from None
            lock.seek(0)
            raise UserError(
                f"another sweep works in this folder (process {lock.read().strip() or 'unknown'})",
                where=str(folder),
                cure="Wait for it, or choose another folder.",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield Layout(folder)


def claim(layout: Layout, spec: MeasureSpec, runs: Sequence[RunSpec], *, extend: bool) -> None:
    """Write the spec into the folder, or check that it holds the same one.

    Args:
        layout: The folder.
        spec: What is to be run.
        runs: The same, planned.
        extend: Replace a different spec; finished runs stay, and those that the new spec shares are not
            done again.

    Raises:
        UserError: The folder holds another spec, or runs in which a name stands for something else: an arm of
            other settings or training, an attack of other options, such as another list of named flips, a
            data set of other rows, or a model that reads them otherwise. The message shows the first
            differences.
    """
    keep_spec(
        layout,
        spec.model_dump(mode="json"),
        kind="attacks",
        aside={"kernel", "predict"},
        extend=extend,
        comparable=lambda: _refuse_changed(finished(layout.read())[0].values(), runs),
    )


def keep_spec(
    layout: Layout,
    spec: dict[str, Any],
    *,
    kind: str,
    aside: Collection[str],
    extend: bool,
    comparable: Callable[[], None],
) -> None:
    """Write a spec into the folder, or check that it holds the same one.

    Args:
        layout: The folder.
        spec: What is to be run.
        kind: A section that specs of this kind have and others have not.
        aside: Sections that decide no number, so that they may differ.
        extend: Accept a different spec, and replace it.
        comparable: Raises where finished runs may not stand beside the new ones.

    Raises:
        UserError: The folder holds a spec of another kind, or another one, or runs that may not be compared.
    """
    old = spec_in(layout)
    if old is not None:
        if kind not in old:
            raise UserError(
                "this folder holds a sweep of another kind",
                where=str(layout.folder),
                cure="Choose another folder.",
            )
        changed_spec(layout, old, spec, aside=aside, extend=extend)
    comparable()  # also without a spec, which a user may have deleted because it was damaged
    if old != spec:
        write_atomic(layout.spec, json.dumps(spec, indent=1, ensure_ascii=False))


def spec_in(layout: Layout) -> dict[str, Any] | None:
    """The spec that a folder holds, as JSON; None where it holds none.

    Raises:
        UserError: It is damaged.
    """
    if not layout.spec.exists():
        return None
    try:
        old: dict[str, Any] = json.loads(layout.spec.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(
            "the spec in this folder is damaged",
            where=str(layout.spec),
            cure="Delete that file to go on with the runs that are there.",
        ) from None
    return old


def changed_spec(
    layout: Layout, old: dict[str, Any], new: dict[str, Any], *, aside: Collection[str], extend: bool
) -> list[str]:
    """What differs between the spec of a folder and a new one, beside some sections.

    Args:
        layout: The folder.
        old: Its spec.
        new: What is to be run.
        aside: Sections that may differ.
        extend: Accept differences.

    Raises:
        UserError: Something differs, and that is not accepted; the message shows the first differences.
    """
    before, after = ({key: value for key, value in spec.items() if key not in aside} for spec in (old, new))
    changes = differences(before, after)
    if changes and not extend:
        raise UserError(
            f"this folder holds another spec ({shown(changes)})",
            where=str(layout.folder),
            cure="Choose another folder, or pass --extend to add to this one.",
        )
    return changes


def _refuse_changed(records: Iterable[Record], runs: Iterable[RunSpec]) -> None:
    """Refuse runs in which a name stands for something else than in finished runs."""
    # A report tells them apart by name, so it would average over two arms or lists of flips as over seeds.
    old: dict[Name, tuple[dict[str, Any], str]] = {}
    for record in records:
        for name, meaning in names_in(record.resolved).items():
            old.setdefault(name, (meaning, record.run_id))
    for run in runs:
        for name, meaning in names_in(run).items():
            if name in old:
                before, run_id = old[name]
                refuse_changed(
                    f"runs of another {name}", before, meaning, run_id=run_id, cure=ELSEWHERE[name.thing]
                )


def refuse_changed(what: str, before: Any, after: Any, *, run_id: str, cure: str) -> None:
    """Refuse a folder whose runs differ from new ones in something that a comparison must share.

    Args:
        what: What the folder then holds.
        before: As JSON, in the folder.
        after: The same of the new runs.
        run_id: A run of the folder that has it.
        cure: What to do.

    Raises:
        UserError: They differ.
    """
    changes = differences(before, after)
    if changes:
        raise UserError(f"this folder holds {what} ({shown(changes)})", where=run_id, cure=cure)


R = TypeVar("R", bound=OfRun)


def finished(read: tuple[Iterable[R], list[UserError]]) -> tuple[dict[str, R], list[UserError]]:
    """Records of runs that need not be done again, by id, and what could not be read.

    Args:
        read: Every record of a folder, and what could not be read, as a layout gives them.
    """
    records, problems = read
    return {record.run_id: record for record in records if record.status in FINAL}, problems


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise UserError(
                "the disk is full; every finished run is kept",
                where=str(folder),
                cure="Free some space and start the same command again.",
            ) from None
        raise
