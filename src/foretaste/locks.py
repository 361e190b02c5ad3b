"""A lock between processes on one machine, for folders that several sweeps share."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None

POLL_SECONDS = 0.2
# Only for the lock without flock, which a killed process leaves behind. Longer than a slow download.
STALE_SECONDS = 1800.0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes, waiting for it as long as needed.

    flock is released by the system when its holder dies, so it is preferred. Where the platform has none,
    or the file system refuses it (some network shares), a file that only one process can create stands in.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _flock(handle):
            yield
        else:
            with _lock_file(path.with_suffix(".held")):
                yield
    finally:
        os.close(handle)  # also releases flock; the file stays, removing it would race with a waiter


def _flock(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}:
            return False
        raise
    return True


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            # Two waiters may both take over a stale lock. They then both download and the later one
            # replaces the earlier one's folder by the same content: wasteful, not wrong.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
                    continue
            time.sleep(POLL_SECONDS)
        else:
            break
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
