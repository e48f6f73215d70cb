"""A TCP proxy that cuts connections, to test how clients handle it.

python -m tests.support.registries.cutting_proxy HOST:PORT {up,down} BYTES TIMES prints its own
HOST:PORT, then a line for each connection that it resets.
"""

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from testing.hosts.daemon import Daemon
from testing.hosts.private_host import PrivateHost

UP = "up"
DOWN = "down"


@dataclass(frozen=True)
class CuttingProxy:
    """A running proxy. address: host:port in the private host's network."""

    address: str
    daemon: Daemon

    def cuts(self) -> int:
        """Return how many connections it has cut, counted before the client sees the cut."""
        return len(self.daemon.lines()) - 1


@contextmanager
def cutting(
    host: PrivateHost, target: str, direction: str, after: int, times: int = 1
) -> Iterator[CuttingProxy]:
    """Run a proxy for `target`, a host:port.

    It resets the first connections, so many `times`, in which `after` bytes have gone UP to the
    target or DOWN from it, and passes on what all others carry.
    """
    argv = [sys.executable, "-m", __name__, target, direction, str(after), str(times)]
    daemon = Daemon(host, *argv, log=host.folder / "cutting_proxy.log")
    try:
        yield CuttingProxy(daemon.first_line(), daemon)
    finally:
        daemon.stop()


class _Proxy:
    def __init__(self, target: str, direction: str, after: int, times: int) -> None:
        self._target = target.rsplit(":", 1)
        self._direction = direction
        self._after = after
        self._times = times

    async def serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        print(f"127.0.0.1:{port}", flush=True)
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            upstream, target = await asyncio.open_connection(*self._target)
            ends.append(target)
            await asyncio.gather(
                self._pass(reader, target, UP, ends), self._pass(upstream, writer, DOWN, ends)
            )
        except OSError:
            _reset(ends)  # one end is gone, or refused: the other is to see the same
        for end in ends:
            end.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: str,
        ends: list[asyncio.StreamWriter],
    ) -> None:
        left = self._after
        writer.transport.set_write_buffer_limits(0)  # `drain` waits until the kernel has it all
        while data := await reader.read(65536):
            cut = direction == self._direction and self._times > 0 and len(data) >= left
            if cut:
                self._times -= 1
                data = data[:left]
            left -= len(data)
            writer.write(data)
            await writer.drain()
            if cut:
                print(f"cut {direction} after {self._after} bytes", flush=True)
                _reset(ends)
                return
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()


def _reset(ends: list[asyncio.StreamWriter]) -> None:
    """Close connections so that the other sides see them reset, not ended."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        end.transport.abort()


def main() -> None:
    target, direction, after, times = sys.argv[1:]
    asyncio.run(_Proxy(target, direction, int(after), int(times)).serve())


if __name__ == "__main__":
    main()
