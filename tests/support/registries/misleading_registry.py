"""A registry that sends its clients elsewhere, and the server that they are sent to.

python -m tests.support.registries.misleading_registry TARGET [CERTIFICATE KEY] prints its own
host:port, then a line for each request: method, path and what is authorized. Requests below
/v2/realm are answered with TARGET as the realm to log in at, those below /v2/redirect with a
redirect to it, and all others with a token.
"""

import json
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from testing.hosts.daemon import Daemon
from testing.hosts.private_host import PrivateHost
from tests.support.registries.docker_registry import Authority

TOKEN = "token-of-the-inside"  # noqa: S105 - nothing takes it


class MisleadingRegistry:
    """A running server. address: host:port in the private host's network."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.address = daemon.first_line()

    def requests(self) -> list[str]:
        """Return a line for each request so far."""
        return self._daemon.lines()[1:]


@contextmanager
def misleading(
    host: PrivateHost, target: str = "", authority: Authority | None = None
) -> Iterator[MisleadingRegistry]:
    """Run the server; target: a URL. Without an authority it speaks plain HTTP."""
    tls = [str(authority.certificate), str(authority.key)] if authority else []
    argv = [sys.executable, "-m", __name__, target, *tls]
    daemon = Daemon(host, *argv, log=host.folder / "misleading_registry.log")
    try:
        yield MisleadingRegistry(daemon)
    finally:
        daemon.stop()


class _Handler(BaseHTTPRequestHandler):
    target = ""

    def do_GET(self) -> None:
        print(self.command, self.path, self.headers.get("Authorization", "-"), flush=True)
        if self.path.startswith("/v2/realm/"):
            self._answer(401, "WWW-Authenticate", f'Bearer realm="{self.target}",service="inside"')
        elif self.path.startswith("/v2/redirect/"):
            self._answer(307, "Location", self.target)
        else:
            self._answer(200, "Content-Type", "application/json", {"token": TOKEN})

    do_HEAD = do_GET

    def _answer(self, status: int, header: str, value: str, document: Any = None) -> None:
        body = json.dumps(document).encode() if document else b""
        self.send_response(status)
        self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing else."""


def main() -> None:
    _Handler.target, *tls = sys.argv[1:]
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        print(f"127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
