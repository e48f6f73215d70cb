"""JSON documents between the service and its workers: a length of 8 bytes, then the document."""

from __future__ import annotations

import json
import socket
import struct

_LENGTH = struct.Struct("!Q")


def send(connection: socket.socket, document: object) -> None:
    """Send a document. Raises OSError when the other side is closed."""
    data = json.dumps(document).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> dict[str, object] | None:
    """Return the next document, or None at the end. Raises OSError."""
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    data = _exactly(connection, _LENGTH.unpack(head)[0])
    if data is None:
        return None
    document: dict[str, object] = json.loads(data)
    return document


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
