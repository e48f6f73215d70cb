"""HTTP: cheroot's server on one listening socket, and what it is asked.

    POST /v1/call   one call of the contract; see cpi.client.forward for what is sent
    GET  /healthz   whether calls are taken
    GET  /metrics   figures in Prometheus' text form, of all clients: not for guests

Each socket has threads of its own, so that nobody who can reach one of them can make the others
wait. A connection that does not come to the point within a minute is closed.
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
from cpi.errors import CPIError, InvalidCall
from cpi.service.client_calls import ClientCall, ClientCalls
from cpi.service.metrics import CONTENT_TYPE, Metrics
from cpi.service.policy import GUEST, client_of_certificate
from cpi.service.sockets import BACKLOG
from cpi.version import VERSION

THREADS = 64  # of each socket: so many connections are read, or wait for their call, at once
_SILENCE_SECONDS = 20  # between two pieces of what a client sends
_TO_THE_POINT_SECONDS = 60  # until a request is there, apart from a stemcell's image
_HEAD_LIMIT = 16 << 10  # bytes
_LEFTOVER = 64 << 20  # bytes that are read for nothing, so that a client hears why
_LEFTOVER_SECONDS = 2
_PART = re.compile(r"([A-Za-z.]{1,16})=([0-9]{1,15})")


class App:
    """What all sockets of one service have in common."""

    def __init__(self, calls: ClientCalls, metrics: Metrics) -> None:
        self.calls = calls
        self.metrics = metrics
        self.stopping = False


class Listener(HTTPServer):
    """The server of one socket. client: whose calls come from it; "" asks the certificate."""

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
        self.shutdown_timeout = None  # type: ignore[assignment]  # what runs is finished
        self.ssl_adapter = None if tls is None else _TLS(tls)
        self.app = app
        self.client = client
        self.reading: dict[_Connection, float] = {}
        self._listening = listening

    def bind_unix_socket(self, bind_addr: str) -> None:
        """Take the socket that is there; its mode and group are right."""
        self.socket = self._listening

    def bind(self, family: int, type: int, proto: int = 0) -> None:
        """Likewise for TCP."""
        self.socket = self._listening

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """To the service's log, without tracebacks: what clients do wrong is no bug of ours."""
        reason = sys.exc_info()[1]
        told = f"{msg}: {reason!r}" if traceback and reason is not None else msg
        print(f"[{self.client or 'tls'}] {told}", file=sys.stderr)

    def close_slow(self) -> None:
        """Close connections that have not come to the point."""
        late = time.monotonic() - _TO_THE_POINT_SECONDS
        for connection, since in list(self.reading.items()):
            if since < late:
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """One connection; TLS is agreed on in the connection's thread, where it can wait."""

    def communicate(self) -> bool:
        self.server.reading[self] = time.monotonic()
        try:
            if isinstance(self.socket, ssl.SSLSocket):
                self._shake_hands(self.socket)
            return bool(super().communicate())  # type: ignore[no-untyped-call]
        except OSError as error:
            told = getattr(error, "verify_message", None) or error
            self.server.error_log(f"{self.remote_addr or 'a client'} is not served: {told}")
            return False
        finally:
            self.came()

    def _shake_hands(self, connection: ssl.SSLSocket) -> None:
        """Raises OSError for a client that is not to be served, when it has heard why."""
        try:
            connection.do_handshake()
        except OSError:
            _linger(connection, _LEFTOVER)
            raise

    def came(self) -> None:
        """What was to come is there."""
        self.server.reading.pop(self, None)


class _TLS(Adapter):
    """Mutual TLS. Not cheroot's own adapter: that makes all wait for one client's handshake."""

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
    """Answers one request."""

    def respond(self) -> None:
        method, path = self.req.method.decode(), self.req.path.decode(errors="replace")
        if (method, path) == ("POST", PATH):
            self._call()
        elif (method, path) == ("GET", "/metrics") and self.req.server.client != GUEST:
            self._send("200 OK", self._app.metrics.text(), CONTENT_TYPE)
        elif (method, path) == ("GET", "/healthz"):
            status = "503 Service Unavailable" if self._app.stopping else "200 OK"
            told = "stopping" if self._app.stopping else "ok"
            self._json(status, {"status": told, "version": VERSION, "protocol": PROTOCOL})
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
        if self._app.stopping:
            self._refuse("503 Service Unavailable", _stopping())
            return
        try:
            client, sizes = self._client(), self._sizes()
        except CPIError as error:
            self._refuse("400 Bad Request", error)
            return
        connection = self.req.conn
        body = _Body(self.req.rfile, connection)
        call, response = self._app.calls.answer(client, sizes, body, connection.socket)
        try:
            self._json("200 OK", response)
        except OSError:
            self._lost(call, response)

    def _lost(self, call: ClientCall | None, response: dict[str, object]) -> None:
        if call is not None:
            self._app.calls.lost(call, response)

    def _client(self) -> str:
        """Whose call this is. Raises InvalidCall for a certificate without a usable name."""
        if self.req.server.client:
            return str(self.req.server.client)
        subject = (self.req.conn.socket.getpeercert() or {}).get("subject", ())
        names = [value for part in subject for key, value in part if key == "commonName"]
        return client_of_certificate(names)

    def _sizes(self) -> dict[str, int]:
        """What is sent, in bytes. Raises InvalidCall."""
        text = self.req.inheaders.get(b"Cpi-Parts", b"").decode(errors="replace")
        parts = [_PART.fullmatch(word) for word in text.split()]
        sizes = {part[1]: int(part[2]) for part in parts if part}
        told = self.req.inheaders.get(b"Content-Length", b"")
        if len(sizes) != len(parts) or told != b"%d" % sum(sizes.values()):
            raise InvalidCall(
                "a call needs the headers Cpi-Parts and Content-Length, and they must agree"
            )
        return sizes

    def _refuse(self, status: str, error: CPIError) -> None:
        told = {"type": error.type, "message": error.message, "ok_to_retry": error.ok_to_retry}
        self._json(status, {"result": None, "error": told, "log": ""})

    def _json(self, status: str, document: dict[str, object]) -> None:
        self._send(status, json.dumps(document).encode() + b"\n", "application/json")

    def _send(self, status: str, body: bytes, kind: str) -> None:
        self.req.conn.came()
        self.req.status = status.encode()
        self.req.outheaders = [
            (b"Content-Type", kind.encode()),
            (b"Content-Length", b"%d" % len(body)),
        ]
        self.req.close_connection = True
        self.req.ensure_headers_sent()
        self.req.write(body)
        _linger(self.req.conn.socket, self.req.rfile.remaining)


class _Body:
    """What a client sends after its head; with the first piece of it, it has come to the point."""

    def __init__(self, stream: Any, connection: _Connection) -> None:
        self._stream = stream
        self._connection = connection

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._connection.came()
        return data


def _linger(connection: socket.socket, coming: int) -> None:
    """Read the bytes that are still coming: a client that sends would not hear us otherwise."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_LEFTOVER_SECONDS)
        left = min(coming, _LEFTOVER)
        while left > 0 and (chunk := connection.recv(min(left, 1 << 16))):
            left -= len(chunk)


def _stopping() -> CPIError:
    return CPIError("the service is stopping; try again when it is back", ok_to_retry=True)


def serve_all(listeners: list[Listener]) -> list[threading.Thread]:
    """Have all sockets served, each by a thread of its own."""
    threads = []
    for listener in listeners:
        listener.prepare()
        threads.append(threading.Thread(target=listener.serve, name=listener.client, daemon=True))
        threads[-1].start()
    return threads
