"""A run that was stopped goes on, computes only what is missing, and ends with the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_oracles import LENGTHS, compute, subject, whole

from foretaste.errors import UserError
from foretaste.kernels import Gram, Parts, Ranks, below, logits
from foretaste.kernels import compute as computing
from foretaste.kernels.store import InFolder, Unit

PRODUCTS = [Gram("sgd"), Gram("asymmetric"), Ranks((1, 3), seed=0)]
# Three blocks of two rows, the last to test on: pairs (0,0), (1,0), (2,0), (1,1), (2,1).
UNITS = 5


class Stopped(BaseException):
    """As Ctrl-C: nothing in between may catch it."""


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows of every capture that is made, in blocks of two rows."""
    monkeypatch.setattr(computing, "BLOCK_ROWS", 2)
    seen: list[list[int]] = []
    original = computing._capture

    def counted(job: Any, group: Any, rows: Any, *rest: Any) -> Any:
        seen.append(list(rows))
        return original(job, group, rows, *rest)

    monkeypatch.setattr(computing, "_capture", counted)
    return seen


def run(folder: Path | None, **options: Any) -> Any:
    it = subject("bert")
    return compute(it.model, logits, it.rows(), PRODUCTS, folder=folder, **options)


def stop_after(units: int) -> Callable[[float], None]:
    calls = []

    def on_progress(_: float) -> None:
        calls.append(1)
        if len(calls) == units:
            raise Stopped

    return on_progress


def same_bits(one: Parts, other: Parts) -> None:
    assert list(one) == list(other)
    for name in one:
        for mine, theirs in ((one[name].train, other[name].train), (one[name].test, other[name].test)):
            assert mine.dtype == theirs.dtype == np.float64
            assert mine.shape == theirs.shape
            assert mine.tobytes() == theirs.tobytes()


def test_kernels_in_a_folder_are_those_in_memory(tmp_path: Path, captures: Any) -> None:
    memory, _ = run(None)
    stored, _ = run(tmp_path)
    same_bits(stored, memory)
    assert Ranks.KEY in stored
    assert whole(stored["asymmetric/head"]).any()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix != ".safetensors") == [
        "asymmetric",
        "sgd",
    ]  # units are gone, nothing half-written is left
    again = Parts(folders=[tmp_path])
    same_bits(again, memory)
    assert len(again) == len(memory)
    with pytest.raises(KeyError):
        again["sgd/nothing"]
    with pytest.raises(UserError, match="unknown kernel 'sgdd'"):
        again.total("sgdd")


@pytest.mark.parametrize("done", range(1, UNITS + 1))
def test_a_stopped_run_computes_only_what_is_missing(done: int, tmp_path: Path, captures: Any) -> None:
    memory, at_once = run(None)
    blocks = [at_once.plan.block(number) for number in range(3)]
    pairs = list(at_once.plan.pairs())
    assert pairs == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1)]
    captures.clear()
    with pytest.raises(Stopped):
        run(tmp_path, on_progress=stop_after(done))
    assert len(list((tmp_path / "units").iterdir())) == done
    captures.clear()
    stored, finished = run(tmp_path)
    assert finished.resumed == done
    # Blocks 1 and 2 are held from one pair to the next; block 0 is not needed after pair (2, 0).
    needed = {1: [0, 1, 2, 1, 2], 2: [0, 2, 1, 2], 3: [1, 2], 4: [1, 2], 5: []}
    first = {1: [0, 1, 2, 1], 2: [0, 2, 1], 3: [1, 2], 4: [1, 2], 5: []}[done]
    assert captures in ([blocks[n] for n in first], [blocks[n] for n in needed[done]])
    same_bits(stored, memory)
    np.testing.assert_allclose(finished.values, at_once.values, rtol=0, atol=1e-12)
    assert not np.isnan(finished.values).any()


def test_progress_goes_up_to_one_also_over_finished_units(tmp_path: Path, captures: Any) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, on_progress=stop_after(2))
    shares: list[float] = []
    run(tmp_path, on_progress=shares.append)
    assert len(shares) == UNITS
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1, abs=1e-12)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    wrong = {
        "empty": b"",
        "cut": content[:-8],
        "header": b"\x08" + content[1:],
        "zeros": bytes(len(content)),
        "noise": bytes(255 - byte for byte in content),
        "one bit of a number": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    }
    path.write_bytes(wrong[how])


@pytest.mark.parametrize("how", ["empty", "cut", "header", "zeros", "noise", "one bit of a number"])
def test_a_damaged_unit_is_computed_again(how: str, tmp_path: Path, captures: Any) -> None:
    memory, _ = run(None)
    with pytest.raises(Stopped):
        run(tmp_path, on_progress=stop_after(3))
    damage(sorted((tmp_path / "units").iterdir())[1], how)
    stored, finished = run(tmp_path)
    assert finished.resumed == 2
    same_bits(stored, memory)


def test_a_unit_that_is_half_written_does_not_count(tmp_path: Path) -> None:
    store, unit = InFolder(tmp_path / "units"), Unit("abc", (0,), (0,))
    tile = torch.eye(2, dtype=torch.float64)
    (tmp_path / "units" / "abc.partial").write_bytes(b"begun")
    assert not store.has(unit)
    store.put(unit, {"sgd/a": tile, "sgd/b": 2 * tile})
    assert store.has(unit)
    assert store.names([unit]) == ["sgd/a", "sgd/b"]
    assert store.take(unit, "nothing") == (None, None)
    got, mirror = store.take(unit, "sgd/b")
    assert mirror is None
    assert got is not None
    assert torch.equal(got, 2 * tile)
    store.clear()
    assert not (tmp_path / "units").exists()


def test_a_damaged_part_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    stored, _ = run(tmp_path)
    path = tmp_path / "sgd" / "head.safetensors"
    damage(path, "cut")
    with pytest.raises(UserError, match="this file of a kernel cannot be read") as caught:
        stored["sgd/head"]
    assert caught.value.where == str(path)


def test_another_budget_does_not_mistake_other_blocks_for_its_own(
    tmp_path: Path, captures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, on_progress=stop_after(4))
    monkeypatch.setattr(computing, "BLOCK_ROWS", 1)
    stored, finished = run(tmp_path)
    assert finished.resumed == 0
    memory, _ = run(None)
    same_bits(stored, memory)


def test_names_of_users_stay_below_the_folder(tmp_path: Path) -> None:
    for name in ("arms/../../outside", "arms//etc/passwd", "arms/a b:c", "arms/.hidden", "arms/ä"):
        path = below(tmp_path, name)
        assert path.resolve().is_relative_to(tmp_path)
        assert ".." not in path.parts
    assert below(tmp_path, "arms/lora-r8") == tmp_path / "arms" / "lora-r8"


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {here!r})
    from pathlib import Path
    from foretaste.kernels import compute as computing
    from test_store_resume import run
    computing.BLOCK_ROWS = 2
    units = []
    def on_progress(_):
        units.append(1)
        if len(units) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    run(Path({folder!r}), on_progress=on_progress)
"""


@pytest.mark.slow  # imports torch anew
def test_a_run_killed_from_outside_goes_on(tmp_path: Path, captures: Any) -> None:
    code = textwrap.dedent(KILLED.format(here=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    stored, finished = run(tmp_path)
    assert finished.resumed == 3
    same_bits(stored, run(None)[0])
    assert len(finished.values) == len(LENGTHS)
