"""Streams that hash, count and peek."""

import fcntl
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK = 1 << 20  # bytes


def widen(pipe: int) -> None:
    """Let a pipe hold a whole chunk, if the system allows it: then both ends rarely wait."""
    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)


class Readable(Protocol):
    """A stream to read from."""

    def read(self, size: int, /) -> bytes: ...


class Source:
    """A stream that is hashed as it is read, and whose beginning can be seen first.

    name: what errors call it; show: gets the bytes read so far.
    """

    def __init__(
        self, stream: Readable, name: str, *, show: Callable[[int], None] | None = None
    ) -> None:
        self.name = name
        self.size = 0  # bytes read so far
        self._stream = stream
        self._head = b""
        self._sha = hashlib.sha256()
        self._show = show

    def peek(self, size: int = CHUNK) -> bytes:
        """Return the first `size` bytes, which are still to be read; fewer if there are fewer."""
        while len(self._head) < size and (data := self._stream.read(size - len(self._head))):
            self._head += data
        return self._head

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes; none at the end."""
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._stream.read(size)
        self._sha.update(data)
        self.size += len(data)
        if self._show:
            self._show(self.size)
        return data

    def readinto(self, buffer: memoryview, /) -> int:
        """Read into a buffer, as isal does."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def drain(self) -> str:
        """Read what is left and return the digest of it all."""
        while self.read(CHUNK):
            pass
        return f"sha256:{self._sha.hexdigest()}"


class Written:
    """A new file that is hashed while it is written. Raises FileExistsError."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("xb")
        self.size = 0
        self._sha = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The digest of what is written so far."""
        return f"sha256:{self._sha.hexdigest()}"

    def write(self, data: bytes) -> int:
        self._sha.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
