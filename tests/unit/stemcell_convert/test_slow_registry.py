"""A registry that sends a layer so slowly that it would never end."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stemcell_convert import registry
from stemcell_convert.reference import parse
from stemcell_convert.registry import Registry
from stemcell_convert.registry_client import Access
from stemcell_convert.stemcell_errors import StemcellError
from tests.support.stemcells.small_stemcells import Quiet

LAYER = bytes(200)


class _Slow(BaseHTTPRequestHandler):
    """Sends a byte of a blob each time that `ticks` lets it, or all at once."""

    ticks = 0.0

    def do_GET(self) -> None:
        is_blob = "/blobs/" in self.path
        self.send_response(200)
        self.send_header("Content-Length", str(len(LAYER)) if is_blob else "0")
        self.end_headers()
        for index in range(len(LAYER) if is_blob else 0):
            if threading.Event().wait(self.ticks):
                return
            try:
                self.wfile.write(LAYER[index : index + 1])
            except OSError:  # the client gave up
                return

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def download(address: str, target: Path) -> None:
    opened = Registry(parse(f"{address}/slow:1"), Access(plain_http=(address,)), Quiet())
    digest = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
    opened._download(digest, len(LAYER), target, lambda done, total: None)


def test_it_is_given_up(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_WINDOW_SECONDS", 0.3)
    monkeypatch.setattr(_Slow, "ticks", 0.05)
    with pytest.raises(StemcellError, match="is given up"):
        download(address, tmp_path / "layer")


def test_one_that_is_fast_enough_is_not(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(registry, "_WINDOW_BYTES", 1)
    download(address, tmp_path / "layer")
    assert (tmp_path / "layer").read_bytes() == LAYER
