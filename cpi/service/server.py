"""HTTP: cheroot's server on one listening socket, and what it is asked.

    POST /v1/call   one call of the contract; see cpi.client.forward for what is sent
    GET  /healthz   whether calls are taken
    GET  /metrics   metrics of all clients in Prometheus' text format: not for guests

Each socket has its own threads, so that clients of one cannot block the others. Connections that
send no request within 60 s are closed, and those that then send less than 64 KiB in 60 s.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from cheroot.makefile import MakeFile
from cheroot.server import Gateway, HTTPConnection, HTTPServer
from cheroot.ssl import Adapter
from cheroot.workers.threadpool import ThreadPool

from cpi.client.forward import PATH, PROTOCOL
from cpi.documents import failure
from cpi.errors import CPIError, InvalidCall
from cpi.log import Log
from cpi.service.client_calls import ClientCalls
from cpi.service.metrics import CONTENT_TYPE, Metrics
from cpi.service.policy import GUEST, client_of_certificate
from cpi.service.sockets import BACKLOG
from cpi.version import VERSION

THREADS = 64  # of each socket: connections that are read, or wait for their call, at once
_SILENCE_SECONDS = 20  # between two pieces of a request
_REQUEST_SECONDS = 60  # until a request's head is received, and then each piece of its body
_PIECE = 64 << 10  # bytes
_HEAD_LIMIT = 16 << 10  # bytes
_LEFTOVER = 64 << 20  # bytes that are read and dropped, so that a client gets its error
_LEFTOVER_SECONDS = 2
_PART = re.compile(r"([A-Za-z.]{1,16})=([0-9]{1,15})")


class App:
    """What all listeners of a service share."""

    def __init__(self, calls: ClientCalls, metrics: Metrics) -> None:
        self.calls = calls
        self.metrics = metrics
        self.stopping = False


class Listener(HTTPServer):
    """The server of one socket. client: the name of its clients, "" for their certificates'."""

    def __init__(
        self, listening: socket.socket, client: str, app: App, tls: ssl.SSLContext | None = None
    ) -> None:
        address = listening.getsockname()
        super().__init__(address if isinstance(address, str) else address[:2], _Gateway)
        self.requests = ThreadPool(self, THREADS, THREADS, BACKLOG, 0)
        self.ConnectionClass = _Connection
        self.timeout = _SILENCE_SECONDS
        self.max_request_header_size = _HEAD_LIMIT
        self.request_queue_size = BACKLOG
        self.shutdown_timeout = None  # type: ignore[assignment]  # running calls are finished
        self.ssl_adapter = None if tls is None else _TLS(tls)
        self.app = app
        self.client = client
        self.reading: dict[_Connection, float] = {}
        self._listening = listening

    def bind_unix_socket(self, bind_addr: str) -> None:
        """Use the open socket, whose mode and group are right."""
        self.socket = self._listening

    def bind(self, family: int, type: int, proto: int = 0) -> None:
        """Use the open socket, likewise for TCP."""
        self.socket = self._listening

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """Write to the service's log, without tracebacks: errors of clients are no bugs of ours."""
        reason = sys.exc_info()[1]
        text = f"{msg}: {reason!r}" if traceback and reason is not None else msg
        print(f"[{self.client or 'tls'}] {text}", file=sys.stderr)

    def close_slow(self) -> None:
        """Close connections that have sent no request in time."""
        late = time.monotonic() - _REQUEST_SECONDS
        for connection, since in list(self.reading.items()):
            if since < late:
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """A connection; its TLS handshake blocks only its own thread."""

    def communicate(self) -> bool:
        self.expect()
        try:
            if isinstance(self.socket, ssl.SSLSocket):
                self._shake_hands(self.socket)
            return bool(super().communicate())  # type: ignore[no-untyped-call]
        except OSError as error:
            reason = getattr(error, "verify_message", None) or error
            self.server.error_log(f"{self.remote_addr or 'a client'} is not served: {reason}")
            return False
        finally:
            self.request_received()

    def _shake_hands(self, connection: ssl.SSLSocket) -> None:
        """Perform the TLS handshake. Raises OSError when it fails, once the client knows."""
        try:
            connection.do_handshake()
        except OSError:
            _linger(connection, _LEFTOVER)
            raise

    def expect(self) -> None:
        """Note that the client has a while, from now on, to send what is read next."""
        self.server.reading[self] = time.monotonic()

    def request_received(self) -> None:
        """Note that what was expected has come in time."""
        self.server.reading.pop(self, None)


class _TLS(Adapter):
    """Mutual TLS. cheroot's own adapter blocks all clients during one's handshake."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def bind(self, sock: socket.socket) -> socket.socket:
        return sock

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {}

    def get_environ(self) -> dict[str, str]:
        return {}

    def makefile(self, sock: socket.socket, mode: str = "r", bufsize: int = -1) -> Any:
        return MakeFile(sock, mode, bufsize)


class _Gateway(Gateway):
    """Answers a request."""

    def respond(self) -> None:
        method, path = self.req.method.decode(), self.req.path.decode(errors="replace")
        if (method, path) == ("POST", PATH):
            self._call()
        elif (method, path) == ("GET", "/metrics") and self.req.server.client != GUEST:
            self._send("200 OK", self._app.metrics.text(), CONTENT_TYPE)
        elif (method, path) == ("GET", "/healthz"):
            status = "503 Service Unavailable" if self._app.stopping else "200 OK"
            health = "stopping" if self._app.stopping else "ok"
            self._json(status, {"status": health, "version": VERSION, "protocol": PROTOCOL})
        else:
            self._refuse(
                "404 Not Found",
                InvalidCall(
                    f"this service (bosh-containerd-cpi {VERSION}) knows {PATH}, and not {path}; "
                    "upgrade whichever of service and client is older"
                ),
            )

    @property
    def _app(self) -> App:
        app: App = self.req.server.app
        return app

    def _call(self) -> None:
        try:
            client, sizes = self._client(), self._sizes()
        except CPIError as error:
            self._refuse("400 Bad Request", error)
            return
        connection = self.req.conn
        body = _Body(self.req.rfile, connection)
        try:
            call, response = self._app.calls.answer(client, sizes, body, connection.socket)
        except ConnectionError as error:  # its end of the connection may be closed one way only
            self._refuse("400 Bad Request", InvalidCall(f"the request is incomplete: {error}"))
            return
        try:
            self._json("200 OK", response)
        except OSError:
            if call is not None:
                self._app.calls.lost(call, response)

    def _client(self) -> str:
        """Return the client's name. Raises InvalidCall for a certificate without a valid one."""
        if self.req.server.client:
            return str(self.req.server.client)
        subject = (self.req.conn.socket.getpeercert() or {}).get("subject", ())
        names = [value for part in subject for key, value in part if key == "commonName"]
        return client_of_certificate(names)

    def _sizes(self) -> dict[str, int]:
        """Return the sizes of the request's parts in bytes. Raises InvalidCall."""
        text = self.req.inheaders.get(b"Cpi-Parts", b"").decode(errors="replace")
        parts = [_PART.fullmatch(word) for word in text.split()]
        sizes = {part[1]: int(part[2]) for part in parts if part}
        length = self.req.inheaders.get(b"Content-Length", b"")
        if len(sizes) != len(parts) or length != b"%d" % sum(sizes.values()):
            raise InvalidCall(
                "a call needs the headers Cpi-Parts and Content-Length, and they must agree"
            )
        return sizes

    def _refuse(self, status: str, error: CPIError) -> None:
        self._json(status, failure(error, Log()))

    def _json(self, status: str, document: dict[str, object]) -> None:
        self._send(status, json.dumps(document).encode() + b"\n", "application/json")

    def _send(self, status: str, body: bytes, media_type: str) -> None:
        self.req.conn.request_received()
        self.req.status = status.encode()
        self.req.outheaders = [
            (b"Content-Type", media_type.encode()),
            (b"Content-Length", b"%d" % len(body)),
        ]
        self.req.close_connection = True
        self.req.ensure_headers_sent()
        self.req.write(body)
        _linger(self.req.conn.socket, self.req.rfile.remaining)


class _Body:
    """What a client sends after its head, piece by piece, each of which has its time."""

    def __init__(self, stream: Any, connection: _Connection) -> None:
        self._stream = stream
        self._connection = connection

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size > 0:
            self._connection.expect()
            pieces.append(self._stream.read(min(size, _PIECE)))
            self._connection.request_received()
            size -= len(pieces[-1])
            if not pieces[-1]:
                break
        return b"".join(pieces)


def _linger(connection: socket.socket, coming: int) -> None:
    """Drop the bytes that still come: a client that sends would not read its response."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_LEFTOVER_SECONDS)
        left = min(coming, _LEFTOVER)
        while left > 0 and (chunk := connection.recv(min(left, 1 << 16))):
            left -= len(chunk)


def serve_all(listeners: list[Listener]) -> list[threading.Thread]:
    """Serve all sockets, each in its own thread."""
    threads = []
    for listener in listeners:
        listener.prepare()
        threads.append(threading.Thread(target=listener.serve, name=listener.client, daemon=True))
        threads[-1].start()
    return threads
