"""An HTTP proxy as companies have it: CONNECT for TLS, absolute URIs for plain HTTP, a password.

python -m tests.support.registries.forward_proxy, and user:password in PROXY_USER (or nothing),
prints its own HOST:PORT, then method and host of each request. It knows hosts in `.test`, which
nothing else does: they are 127.0.0.1.
"""

import asyncio
import base64
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from testing.hosts.daemon import Daemon
from testing.hosts.private_host import PrivateHost

_REFUSED = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=tests\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


@dataclass(frozen=True)
class ForwardProxy:
    """A running proxy. address: host:port in the private host's network."""

    address: str
    daemon: Daemon

    def requests(self) -> list[str]:
        """Return method and host of each request so far."""
        return self.daemon.lines()[1:]


@contextmanager
def forwarding(host: PrivateHost, user: str = "") -> Iterator[ForwardProxy]:
    """Run a proxy. user: the user:password that it asks for."""
    log = host.folder / "forward_proxy.log"
    daemon = Daemon(host, sys.executable, "-m", __name__, log=log, env={"PROXY_USER": user})
    try:
        yield ForwardProxy(daemon.first_line(), daemon)
    finally:
        daemon.stop()


async def _serve(user: str) -> None:
    wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        with suppress(OSError, asyncio.IncompleteReadError):  # one end is gone
            await _forward(reader, writer, wanted, ends)
        for end in ends:
            end.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def _forward(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    wanted: str,
    ends: list[asyncio.StreamWriter],
) -> None:
    """Pass on one connection: a tunnel, or one request."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, version = first.split()
    headers = dict(line.split(": ", 1) for line in lines if line)
    if wanted and headers.pop("Proxy-Authorization", "") != wanted:
        print(f"{method} refused", flush=True)
        writer.write(_REFUSED)
        await writer.drain()
        return
    is_tunnel = method == "CONNECT"
    url = urlsplit(f"//{target}" if is_tunnel else target)
    print(f"{method} {url.netloc}", flush=True)
    name = url.hostname or ""
    upstream, onward = await asyncio.open_connection(
        "127.0.0.1" if name.endswith(".test") else name, url.port or 80
    )
    ends.append(onward)
    if is_tunnel:
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        path = url._replace(scheme="", netloc="").geturl() or "/"
        headers["Connection"] = "close"
        rest = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        onward.write(f"{method} {path} {version}\r\n{rest}\r\n".encode("latin-1"))
    await asyncio.gather(_pass(reader, onward), _pass(upstream, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(_serve(os.environ["PROXY_USER"]))
