"""A package index on this machine that may fail in the middle of a file."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = "tiny-bert"


class _Handler(SimpleHTTPRequestHandler):
    """`/simple/tiny-bert/` lists the wheel; its bytes come up to a share of them, or not at all."""

    def __init__(self, *arguments: Any, share: Any, **options: Any) -> None:
        self._share = share
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        """Answer pip."""
        folder = Path(str(self.directory))
        if self.path.rstrip("/") == f"/simple/{PROJECT}":
            links = "".join(f'<a href="/{path.name}">{path.name}</a>' for path in folder.glob("*.whl"))
            self._send(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html", 1.0)
        elif (file := folder / Path(self.path).name).is_file():
            self._send(file.read_bytes(), "application/octet-stream", self._share.value)
        else:
            self.send_error(404)

    def _send(self, data: bytes, kind: str, share: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: int(len(data) * share)])
        if share < 1:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Index:
    """The index, as those see it that use it."""

    def __init__(self, share: Any) -> None:
        self._share = share

    @contextmanager
    def broken_after(self, share: float) -> Iterator[None]:
        """Meanwhile every connection ends after a share of the wheel."""
        self._share.value = share
        try:
            yield
        finally:
            self._share.value = 1.0


@contextmanager
def served(folder: Path) -> Iterator[Index]:
    """Serve the wheels in a folder to pip, in a process of its own, and let pip ask nobody else."""
    context = multiprocessing.get_context("fork")
    share = context.Value("d", 1.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, share=share, directory=str(folder)))
    process = context.Process(target=server.serve_forever, daemon=True)
    process.start()
    address = f"http://127.0.0.1:{server.server_port}/simple/"
    server.server_close()  # the child has its own
    alone = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": address, "PIP_RETRIES": "0", "NO_PROXY": "*"}
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        os.environ.pop(name, None)
    os.environ.update(alone)
    try:
        yield Index(share)
    finally:
        process.kill()
        process.join()
