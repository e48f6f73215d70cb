"""Count how often any process opens a file (inotify(7))."""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

IN_ACCESS, IN_CLOSE_NOWRITE, IN_OPEN = 0x1, 0x10, 0x20
_EVENT = struct.Struct("iIII")  # struct inotify_event; without a name, as of a file that is watched


@contextmanager
def counted_opens(path: Path) -> Iterator[Callable[[], int]]:
    """Yield a function that returns how often the file has been opened so far."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    # The kernel merges equal consecutive events: the other events keep opens apart.
    mask = IN_OPEN | IN_ACCESS | IN_CLOSE_NOWRITE
    if libc.inotify_add_watch(descriptor, os.fsencode(path), mask) < 0:
        raise OSError(ctypes.get_errno(), "cannot watch", str(path))
    opens = 0

    def count() -> int:
        nonlocal opens
        while True:
            try:
                events = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return opens
            opens += sum(bool(mask & IN_OPEN) for _, mask, _, _ in _EVENT.iter_unpack(events))

    try:
        yield count
    finally:
        os.close(descriptor)
