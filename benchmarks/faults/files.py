"""Faults of files: damaged records, a half-written cache, a network that goes, a spec that is edited."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import subject
from benchmarks.faults.index import Index
from benchmarks.faults.trial import Trial, numbers
from foretaste.assets import ASSETS, cache_dir

Damage = Callable[[Trial, bytes], bytes]


def flipped(trial: Trial, content: bytes) -> bytes:
    """One bit of one byte is the other."""
    place = trial.rng.randrange(len(content))
    changed = bytearray(content)
    changed[place] ^= 1 << trial.rng.randrange(8)
    return bytes(changed)


def digit(trial: Trial, content: bytes) -> bytes:
    """One digit of a result is another: JSON that is as valid as before."""
    places = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    place = trial.rng.choice(places)
    changed = bytearray(content)
    changed[place] = ord(str((int(chr(content[place])) + trial.rng.randint(1, 9)) % 10))
    return bytes(changed)


def cut(trial: Trial, content: bytes) -> bytes:
    """The file ends early."""
    return content[: trial.rng.randrange(1, len(content))]


def emptied(_: Trial, __: bytes) -> bytes:
    """The file is there and holds nothing, as after a power cut on some file systems."""
    return b""


def record_damaged(damage: Damage) -> Callable[[Trial], None]:
    """A finished run's record is damaged between two sessions."""

    def inject(trial: Trial) -> None:
        shutil.copytree(trial.place.baseline, trial.sweep)
        trial.look()
        path = trial.rng.choice(sorted(trial.layout.runs.iterdir()))
        trial.spared.add(path.stem)
        path.write_bytes(damage(trial, path.read_bytes()))
        trial.reported(path.name)
        trial.said = trial.resumed().line("warning")

    return inject


def evidence_damaged(folder: str) -> Callable[[Trial], None]:
    """A file beside the records is damaged: per-row predictions, or a manifest of poisoned rows.

    No record is, so that no run is done again by itself; the page has to say it.
    """

    def inject(trial: Trial) -> None:
        shutil.copytree(trial.place.baseline, trial.sweep)
        trial.look()
        path = trial.rng.choice(sorted((trial.sweep / folder).iterdir()))
        damage = trial.rng.choice([flipped, cut, emptied])
        whole = path.read_bytes()
        path.write_bytes(damage(trial, whole))
        trial.reported(path.name)
        if trial.wrong and _reads_as_before(trial):
            trial.wrong.clear()  # a bit that says nothing, such as one of a statistic in the file's footer
        page = (trial.folder / "page" / "index.html").read_text() if not trial.wrong else ""
        trial.said = _sentence_with(page, path.name) or "nothing: the bit says nothing"
        # As the page says: without its records, the file is made again.
        if folder == "manifests":
            path.unlink()
        named = [r for r in trial.records() if path.name in str(r.predictions) or _manifest(r) == path.name]
        for record in named:
            trial.spared.add(record.run_id)
            trial.layout.record(record.run_id).unlink()
        trial.resumed()
        if folder == "manifests" and path.read_bytes() != whole:
            trial.wrong.append("the manifest was not made again")

    return inject


def _reads_as_before(trial: Trial) -> bool:
    try:
        return numbers(trial.sweep) == trial.place.expected
    except (OSError, ValueError):
        return False


def _manifest(record: object) -> str | None:
    poison = getattr(record, "poison", None)
    return None if poison is None else Path(poison.manifest).name


def _sentence_with(page: str, word: str) -> str:
    from html import unescape

    shown = page.split('type="application/json" id="data"')[0]
    pieces = [piece for piece in shown.replace("<", "\n<").replace(">", ">\n").splitlines() if word in piece]
    return unescape(pieces[-1].strip()) if pieces else ""


def cache_half_written(trial: Trial) -> None:
    """A file of the model in the cache is cut, missing, or a killed download's folder lies there."""
    trial.place = trial.place.fetched or trial.place
    trial.partly_done()
    store = cache_dir() / ASSETS.get(subject.MODEL).wheel.key
    how = trial.rng.choice(["cut", "missing", "manifest", "killed"])
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.name != "asset.json")
    path = trial.rng.choice(files)
    if how == "cut":
        path.write_bytes(cut(trial, path.read_bytes()))
    elif how == "missing":
        path.unlink()
    elif how == "manifest":
        (store / "asset.json").write_bytes(cut(trial, (store / "asset.json").read_bytes()))
    else:
        half = store.with_name(f".{store.name}.killed.part")
        shutil.copytree(store, half)
        shutil.rmtree(store)
    trial.said = trial.resumed().first


def network_gone(index: Index) -> Callable[[Trial], None]:
    """The connection ends in the middle of the model's wheel; later it is there again."""

    def inject(trial: Trial) -> None:
        trial.place = trial.place.fetched or trial.place
        trial.partly_done()
        store = cache_dir() / ASSETS.get(subject.MODEL).wheel.key
        shutil.rmtree(store)
        with index.broken_after(trial.rng.uniform(0.0, 0.95)):
            session = trial.measure().wait()
        trial.said = session.first
        if session.code != 2:
            trial.wrong.append(f"without a model the sweep ended with code {session.code}")
        left = [path.name for path in cache_dir().iterdir() if path.suffix != ".lock"]
        if left:
            trial.wrong.append(f"something half-done stayed in the cache: {', '.join(left)}")
        trial.resumed()

    return inject


EDITS = (
    {"training": {"steps": 31, "batch_size": 8}},
    {"seeds": [1]},
    {"adapters": [{"method": "full"}, {"method": "lora", "r": 3}]},
    {"attacks": [{"method": "label-flip", "rates": [0.25]}]},
)


def spec_edited(trial: Trial) -> None:
    """The spec is another when the sweep goes on; with --extend both are done, and none is mixed up."""
    trial.partly_done()
    path = trial.place.edited(trial.folder / "edited", **trial.rng.choice(EDITS))
    before = trial.layout.spec.read_bytes()
    session = trial.measure(spec=path).wait()
    trial.said = session.first
    if session.code != 2 or trial.layout.spec.read_bytes() != before:
        trial.wrong.append(f"the edited spec was taken (code {session.code})")
    extended = trial.measure("--extend", spec=path).wait()
    if extended.code != 0:
        trial.wrong.append(f"--extend ended with code {extended.code}: {extended.first}")
    trial.resumed("--extend")
