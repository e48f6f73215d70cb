"""The thin client: it sends BOSH's request to the host's service and returns the response.

It needs no privilege, no runtime and only the standard library. It speaks HTTP by hand, as the
standard library's module for it takes longer to load than all the rest.

One call is one POST: a JSON document {"request": BOSH's own, "config": our configuration}, after it
the files that only we can read. The header Cpi-Parts gives their sizes in bytes.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack

from cpi.client.endpoint import Endpoint
from cpi.errors import CloudError, CPIError
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from typing import BinaryIO

    from cpi.log import Log

PROTOCOL = "v1"
PATH = f"/{PROTOCOL}/call"
DOCUMENT, MANIFEST, IMAGE = "call", "stemcell.MF", "image"

# Keys of this side of the connection.
OWN_KEYS = ("endpoint", "tls", "program")

_CHUNK = 1 << 20  # bytes
_ANSWER_LIMIT = 64 << 20  # bytes
_PROGRESS_INTERVAL = 10.0  # seconds


def endpoint_of(config: Mapping[str, object], context: Mapping[str, object]) -> Endpoint:
    """Return the service that these name; the context overrides the file. Raises CPIError."""
    text = context.get("endpoint") or config.get("endpoint")
    if not isinstance(text, str):
        raise CPIError("endpoint must be a string")
    tls: dict[str, object] = {}
    for given in (config.get("tls"), context.get("tls")):
        if isinstance(given, dict):
            tls.update({key: value for key, value in given.items() if value})
    return Endpoint(text, tls)


def forward(
    endpoint: Endpoint, request: Mapping[str, object], config: Mapping[str, object], log: Log
) -> dict[str, object]:
    """Send a request and return the response. Raises CPIError when there is none."""
    document = json.dumps({"request": _without_own(request), "config": _mine(config)}).encode()
    with ExitStack() as stack:
        files = _files(request, stack)
        sizes = {DOCUMENT: len(document)}
        sizes |= {name: os.fstat(file.fileno()).st_size for name, file in files.items()}
        connection = stack.enter_context(endpoint.connect())
        failure = None
        try:
            connection.sendall(_head(endpoint, sizes) + document)
            for name, file in files.items():
                _send(connection, name, file, sizes[name], log)
        except OSError as error:  # it may have refused before it had all, and said why
            failure = error
        return _answered(endpoint, _read(connection, failure, endpoint))


def _mine(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in OWN_KEYS}


def _without_own(request: Mapping[str, object]) -> dict[str, object]:
    """Return a request whose context has no keys of this connection: they stay here."""
    context = request.get("context")
    return {**request, "context": _mine(context)} if isinstance(context, dict) else {**request}


def _files(request: Mapping[str, object], stack: ExitStack) -> dict[str, BinaryIO]:
    """Open the files that a request names and the host cannot read. Raises CloudError."""
    arguments = request.get("arguments")
    if request.get("method") != "create_stemcell" or not isinstance(arguments, list):
        return {}
    path = arguments[0] if arguments else None
    if not isinstance(path, str) or not path.startswith("/"):
        return {}  # the service says what is wrong with it
    files: dict[str, BinaryIO] = {}
    manifest = os.path.join(os.path.dirname(path), MANIFEST)
    if os.path.isfile(manifest):
        files[MANIFEST] = stack.enter_context(open(manifest, "rb"))  # noqa: SIM115
    try:
        files[IMAGE] = stack.enter_context(open(path, "rb"))  # noqa: SIM115
    except OSError as error:
        raise CloudError(f"cannot read the image {shown(path, 300)}: {error.strerror}") from None
    return files


def _head(endpoint: Endpoint, sizes: Mapping[str, int]) -> bytes:
    parts = " ".join(f"{name}={size}" for name, size in sizes.items())
    lines = [
        f"POST {PATH} HTTP/1.0",
        f"Host: {endpoint.host or 'localhost'}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {sum(sizes.values())}",
        f"Cpi-Parts: {parts}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def _send(connection: socket.socket, name: str, file: BinaryIO, size: int, log: Log) -> None:
    """Send just `size` bytes of a file."""
    left, last = size, time.monotonic()
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise CloudError(f"the {name} became shorter while it was being sent")
        connection.sendall(chunk)
        left -= len(chunk)
        if time.monotonic() - last >= _PROGRESS_INTERVAL:
            last = time.monotonic()
            log.info(f"sent {(size - left) >> 20} of {size >> 20} MiB of the {name}")


def _read(connection: socket.socket, before: OSError | None, endpoint: Endpoint) -> bytes:
    """Return all that the service sends until it closes the connection."""
    received, size = [], 0
    try:
        while chunk := connection.recv(65536):
            received.append(chunk)
            size += len(chunk)
            if size > _ANSWER_LIMIT:
                raise endpoint.error(f"its answer is larger than {_ANSWER_LIMIT} bytes")
    except OSError as error:
        if not received:
            raise endpoint.failed(before or error) from None
    if not received:
        if before is not None:
            raise endpoint.failed(before)
        raise endpoint.error(
            "it ended the connection without an answer; it may have been stopped. What was being "
            "created is undone",
            retry=True,
        )
    return b"".join(received)


def _answered(endpoint: Endpoint, received: bytes) -> dict[str, object]:
    """Return the response in an HTTP answer. Raises CPIError when there is none in it."""
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = words[1].decode(errors="replace") if head.startswith(b"HTTP/1.") else "none"
    try:
        response = json.loads(body)
    except ValueError:
        response = None
    if isinstance(response, dict) and set(response) == {"result", "error", "log"}:
        return response
    if status == "503":
        raise endpoint.error("it is busy; try again", retry=True)
    if status == "404":
        raise endpoint.error(
            f"it does not know {PATH}; it is too old for this client: upgrade bosh-containerd-cpi "
            "on its host"
        )
    raise endpoint.error(
        f"its answer is none of a CPI (HTTP status {status}); does something else listen there?"
    )
