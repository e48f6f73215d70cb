"""Calls of clients: read within limits, run, and undone when the client has gone."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from cpi.client.forward import DOCUMENT, IMAGE, MANIFEST
from cpi.config.config import Config
from cpi.documents import REQUEST_LIMIT, decode, failure, require_object
from cpi.errors import CPIError, InvalidCall, NoDiskSpace
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.service.metrics import Metrics
from cpi.service.worker_pool import WorkerPool, is_gone
from cpi.text import shown

_MANIFEST_LIMIT = 1 << 20  # bytes
_CHUNK = 1 << 20  # bytes

# What undoes a creation. A stemcell needs nothing: its next upload finds it.
_UNDONE_BY = {
    "create_vm": "delete_vm",
    "create_disk": "delete_disk",
    "snapshot_disk": "delete_snapshot",
}
_INTERRUPTIBLE = (*_UNDONE_BY, "create_stemcell")


class Readable(Protocol):
    """What a client sends."""

    def read(self, size: int) -> bytes: ...


class ClientCall:
    """A call: its client, its request, and what came with it."""

    def __init__(self, client: str, document: Mapping[str, object]) -> None:
        request = document.get("request")
        self.client = client
        self.request = require_object(request)
        self.config = document.get("config")
        self.method = self.request.get("method")
        self.named_image = ""  # as the client knows it
        self.upload = ""

    def job(self) -> dict[str, object]:
        """Return the job for a worker."""
        return {
            "client": self.client,
            "request": self.request,
            "config": self.config,
            "upload": self.upload,
        }

    def take(self, image: Path) -> None:
        """Have the call use the image that came with it."""
        arguments = self.request.get("arguments")
        if self.method == "create_stemcell" and isinstance(arguments, list) and arguments:
            self.named_image, self.upload = str(arguments[0]), str(image)
            self.request = {**self.request, "arguments": [self.upload, *arguments[1:]]}

    def in_client_terms(self, response: dict[str, object]) -> dict[str, object]:
        """Return a response that names files as the client does."""
        if not self.upload:
            return response
        text = json.dumps(response)
        translated: dict[str, object] = json.loads(
            text.replace(json.dumps(self.upload)[1:-1], json.dumps(self.named_image)[1:-1])
        )
        return translated


class ClientCalls:
    """Answers the calls of all clients."""

    def __init__(self, config: Config, pool: WorkerPool, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._folder = Layout.of(config).uploads
        self._limit = config.integer("service.upload_limit") << 20

    def answer(
        self, client: str, sizes: Mapping[str, int], body: Readable, connection: socket.socket
    ) -> tuple[ClientCall | None, dict[str, object]]:
        """Read a call from a connection, run it and return the response. Raises OSError."""
        started = time.monotonic()
        call = None
        try:
            self._check(sizes)
            call = ClientCall(client, require_object(decode(_exactly(body, sizes[DOCUMENT]))))
            with self._received(call, sizes, body):
                interruptible = call.method in _INTERRUPTIBLE
                response = self._pool.run(call.job(), connection, interruptible)
                response = call.in_client_terms(response)
        except CPIError as error:
            log = Log(tag=client)
            log.error(error.message)
            response = failure(error, log)
        method = call.method if call else None
        self._metrics.called(method, client, response["error"], time.monotonic() - started)
        if call is not None and is_gone(connection):
            self.lost(call, response)
        return call, response

    def lost(self, call: ClientCall, response: Mapping[str, object]) -> None:
        """Delete what was created for a client that has gone."""
        made = response.get("result")
        made = made[0] if isinstance(made, list) and made else made
        method = _UNDONE_BY.get(str(call.method))
        if method is None or not isinstance(made, str):
            return
        print(f"[{call.client}] has gone away; {method} {shown(made)}", file=sys.stderr)
        request = {**call.request, "method": method, "arguments": [made]}
        with suppress(CPIError):  # which the worker has logged
            self._pool.run({**call.job(), "request": request, "upload": ""}, None, False)

    def _check(self, sizes: Mapping[str, int]) -> None:
        """Refuse what is too large before it is received. Raises InvalidCall, NoDiskSpace."""
        limits = {DOCUMENT: REQUEST_LIMIT, MANIFEST: _MANIFEST_LIMIT, IMAGE: self._limit}
        if list(sizes) != [name for name in limits if name in sizes] or DOCUMENT not in sizes:
            raise InvalidCall("the header Cpi-Parts is not one of this protocol")
        for name, size in sizes.items():
            if size > limits[name]:
                key = " (service.upload_limit)" if name == IMAGE else ""
                raise InvalidCall(f"the {name} has {size} bytes; {limits[name]}{key} is the most")

    @contextmanager
    def _received(
        self, call: ClientCall, sizes: Mapping[str, int], body: Readable
    ) -> Iterator[None]:
        """Receive a call's files into a folder that lasts as long as the call."""
        if IMAGE not in sizes:
            yield
            return
        self._require_room(sizes[IMAGE])
        folder = self._folder / os.urandom(8).hex()
        try:
            folder.mkdir(parents=True, mode=0o700)
            if MANIFEST in sizes:
                (folder / MANIFEST).write_bytes(_exactly(body, sizes[MANIFEST]))
            with open(folder / IMAGE, "wb") as file:
                # A folder without this lock is orphaned.
                fcntl.flock(file, fcntl.LOCK_EX)
                self._receive(sizes[IMAGE], body, file)
                call.take(folder / IMAGE)
                yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _receive(self, left: int, body: Readable, file: BinaryIO) -> None:
        while left:
            chunk = body.read(min(left, _CHUNK))
            if not chunk:
                raise ConnectionError("the client went away while it sent an image")
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise NoDiskSpace(
                    f"the image cannot be kept in {self._folder}: {error.strerror}"
                ) from None
            self._metrics.uploaded(len(chunk))
            left -= len(chunk)

    def _require_room(self, size: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(self._folder).free
        if size > free:
            raise NoDiskSpace(
                f"the image has {size >> 20} MiB, and {free >> 20} MiB are free in {self._folder}"
            )


def _exactly(body: Readable, size: int) -> bytes:
    data = body.read(size)
    if len(data) != size:
        raise ConnectionError("the client went away while it sent its request")
    return data
