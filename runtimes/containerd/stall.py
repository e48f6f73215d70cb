"""Gives up on a stream whose other side has stopped."""

import os
import socket
import stat
import threading
from collections.abc import Callable


def disconnect(address: str) -> None:
    """Cut this process' connections to a unix socket.

    gRPC cannot: what is in the socket's buffer counts as being written, so a cancelled call, and
    the close of its channel, would wait for the other side.
    """
    path = os.path.realpath(address)
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                peer = connection.getpeername()
                if isinstance(peer, str) and peer and os.path.realpath(peer) == path:
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # not connected, or closed meanwhile
            continue


class Stall:
    """Calls `cancel` when nothing has moved for some seconds although replies are owed.

    Use it with `with`. While nothing is owed the sender may take its time, and while `is_alive`
    says so the other side: a large blob is long on its way to the disk.
    """

    def __init__(
        self, cancel: Callable[[], object], is_alive: Callable[[], bool], seconds: float
    ) -> None:
        self.was_noticed = False
        self._cancel = cancel
        self._is_alive = is_alive
        self._seconds = seconds
        self._moved = threading.Event()
        self._lock = threading.Lock()
        self._owed = 0
        self._ended = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Stall":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._moved.set()
        self._thread.join()

    def sent(self) -> None:
        """Note that a request was sent, whose reply is owed from now on."""
        self._count(1)

    def answered(self) -> None:
        """Note that a reply has come."""
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._owed += change
        self._moved.set()

    def _watch(self) -> None:
        while not self._ended:
            moved = self._moved.wait(self._seconds)
            self._moved.clear()
            if not moved and self._owed and not self._is_alive() and not self._moved.is_set():
                self.was_noticed = True
                self._cancel()
                return
