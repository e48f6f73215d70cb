"""Wait for changes in folders: inotify(7)."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from cpi.host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name


class Inotify:
    """An inotify instance, which select takes; closing it ends its watches."""

    def __init__(self) -> None:
        """Make an instance. Raises OSError (EMFILE) when the host has none left."""
        self._descriptor = syscalls.inotify_init()

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def watch(self, path: Path, mask: int) -> int:
        """Watch a folder; return the watch's number, the same for the same folder."""
        return syscalls.inotify_add_watch(self._descriptor, path, mask)

    def events(self) -> set[tuple[int, str]]:
        """Return the watches and names of what has happened since the last call."""
        events = set()
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, 1 << 16)
        while data:
            watch, _, _, length = _EVENT.unpack_from(data)
            end = _EVENT.size + length
            events.add((watch, os.fsdecode(data[_EVENT.size : end].rstrip(b"\0"))))
            data = data[end:]
        return events
