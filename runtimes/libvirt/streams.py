"""Files through libvirt's streams, holes as holes."""

import errno
import os
from typing import Any, BinaryIO

from cpi.progress import Progress


def send_file(stream: Any, file: BinaryIO, size: int, progress: Progress) -> None:
    """Send a sparse file's first `size` bytes into a stream that takes holes."""
    fd = file.fileno()

    def send(_stream: Any, count: int, _opaque: Any) -> bytes:
        data = os.read(fd, count)
        progress(os.lseek(fd, 0, os.SEEK_CUR), size)
        return data

    def at_hole(_stream: Any, _opaque: Any) -> tuple[bool, int]:
        here = os.lseek(fd, 0, os.SEEK_CUR)
        data = _next(fd, here, os.SEEK_DATA, size)
        if data > here:
            os.lseek(fd, here, os.SEEK_SET)
            return False, data - here
        hole = _next(fd, here, os.SEEK_HOLE, size)
        os.lseek(fd, here, os.SEEK_SET)
        return here < size, hole - here

    def skip(_stream: Any, count: int, _opaque: Any) -> int:
        return os.lseek(fd, count, os.SEEK_CUR)

    os.lseek(fd, 0, os.SEEK_SET)
    stream.sparseSendAll(send, at_hole, skip, None)
    stream.finish()


def _next(fd: int, here: int, what: int, size: int) -> int:
    """Where data, or a hole, comes next; the end of the file when there is none."""
    try:
        return min(os.lseek(fd, here, what), size)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def send_bytes(stream: Any, data: bytes) -> None:
    """Send all of `data`."""
    sent = 0

    def send(_stream: Any, count: int, _opaque: Any) -> bytes:
        nonlocal sent
        piece = data[sent : sent + count]
        sent += len(piece)
        return piece

    stream.sendAll(send, None)
    stream.finish()


def receive_bytes(stream: Any, limit: int) -> bytes:
    """Receive what a stream brings, `limit` bytes at most. Raises ValueError for more."""
    pieces: list[bytes] = []
    total = 0

    def keep(_stream: Any, data: bytes, _opaque: Any) -> int:
        nonlocal total
        total += len(data)
        if total > limit:
            return -1
        pieces.append(data)
        return 0

    try:
        stream.recvAll(keep, None)
    except Exception:
        if total > limit:
            raise ValueError(f"more than {limit} bytes") from None
        raise
    stream.finish()
    return b"".join(pieces)
