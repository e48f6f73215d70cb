"""Carries bytes between a command elsewhere and the terminal, pipe or file here."""

import errno
import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Streams:
    """Descriptors that a command reads from and writes to; terminal: all three are one."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2
    terminal: bool = False


def ours() -> Streams:
    """Return this process' own streams."""
    return Streams(terminal=os.isatty(0) and os.isatty(1))


@dataclass(frozen=True)
class Remote:
    """The far ends. stderr: -1 with a terminal, which has only one."""

    stdin: int
    stdout: int
    stderr: int = -1


class Carrier:
    """Carries bytes both ways until the far side's output ends.

    `closed` is called when the near side's input has ended and the far one is closed.
    """

    def __init__(self, near: Streams, far: Remote, closed: Callable[[], None]) -> None:
        self._near = near
        self._far = far
        self._closed = closed
        self._poll = select.poll()
        self._waiting = b""  # what the far side has not taken yet
        self._outputs = {far.stdout: near.stdout}
        if far.stderr >= 0:
            self._outputs[far.stderr] = near.stderr

    def run(self) -> None:
        """Carry. Raises BrokenPipeError when the near side takes no more output."""
        for descriptor in self._outputs:
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._near.stdin, select.POLLIN)
        while self._outputs:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._near.stdin:
                    self._take()
                elif descriptor == self._far.stdin:
                    self._give()
                else:
                    self._show(descriptor)

    def _take(self) -> None:
        # No more is read before that has gone: the far side may want to be read from first.
        self._poll.unregister(self._near.stdin)
        self._waiting = _read(self._near.stdin) or b""
        if self._waiting:
            self._poll.register(self._far.stdin, select.POLLOUT)
        else:
            self._closed()

    def _give(self) -> None:
        try:
            self._waiting = self._waiting[os.write(self._far.stdin, self._waiting) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # the command has closed its input
            self._poll.unregister(self._far.stdin)
            self._closed()
            return
        if not self._waiting:
            self._poll.unregister(self._far.stdin)
            self._poll.register(self._near.stdin, select.POLLIN)

    def _show(self, descriptor: int) -> None:
        data = _read(descriptor)
        if data == b"":
            self._poll.unregister(descriptor)
            del self._outputs[descriptor]
        while data:
            try:
                data = data[os.write(self._outputs[descriptor], data) :]
            except BlockingIOError:
                select.select([], [self._outputs[descriptor]], [])


def _read(descriptor: int) -> bytes | None:
    """Return what is there; b"" at the end, None for nothing yet."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:  # the terminal is gone
            raise
        return b""


def size(descriptor: int) -> tuple[int, int]:
    """Return a terminal's width and height in characters (ioctl_tty(2), TIOCGWINSZ)."""
    answer = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8)
    rows, columns = struct.unpack("HHHH", answer)[:2]
    return columns, rows


@contextmanager
def raw(descriptor: int, resized: Callable[[int, int], None]) -> Iterator[None]:
    """Let a terminal pass on every key, Ctrl-C too; call `resized` when its size changes."""

    def changed(number: int, frame: object) -> None:
        with suppress(Exception):  # a size is no reason to end what runs
            resized(*size(descriptor))

    settings = termios.tcgetattr(descriptor)
    before = signal.signal(signal.SIGWINCH, changed)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
        signal.signal(signal.SIGWINCH, before)
