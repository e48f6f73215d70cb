"""Extracts the disk of a stemcell from tar, gzip and bzip2."""

import bz2
import os
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, cast

from stemcell_convert import tars
from stemcell_convert.recognise import BZIPPED, DISK, GZIP, HEAD, disk_format_of
from stemcell_convert.stemcell_errors import StemcellError, over_limit
from stemcell_convert.streams import CHUNK, Source

_HOLE = 4096  # bytes; as much as a file system gives for a block


def unwrap(source: Source, image_format: str, target: Path, limit: int) -> Path:
    """Write the disk in a stemcell's `image` of this format to `target`, sparse, and return that.

    Names in an archive are never used. Raises StemcellError when there is no disk in it, it is
    damaged, or it has more than `limit` bytes.
    """
    name = source.name
    try:
        if image_format in (DISK, BZIPPED):
            # bz2 only reads, whatever its stub asks for.
            plain = cast(BinaryIO, source)
            with bz2.open(plain) if image_format == BZIPPED else nullcontext(plain) as stream:
                _write(cast(BinaryIO, stream), b"", target, limit, name)
            return target
        zipped = source.peek(HEAD).startswith(GZIP)
        with tars.opened(source, name, zipped=zipped, limit=limit) as members:
            for _, content in tars.files(members):
                head = content.read(HEAD)
                if disk_format_of(head):
                    _write(content, head, target, limit, name)
                    return target
    except EOFError as error:
        raise StemcellError(f"{name} is cut short or damaged: {error}") from None
    except OSError as error:
        if error.errno is None:  # bz2's error for a corrupt stream
            raise StemcellError(f"{name} is cut short or damaged: {error}") from None
        raise StemcellError(f"the disk in {name} cannot be unpacked: {error}") from None
    raise StemcellError(f"{name} is an archive without a disk in it")


def _write(stream: BinaryIO, head: bytes, target: Path, limit: int, name: str) -> None:
    """Write a stream to a new file, leaving out blocks of zeros."""
    size = 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", buffering=0) as file:
        data = head + stream.read(CHUNK - len(head))
        while data:
            size += len(data)
            if size > limit:
                raise over_limit(f"the disk in {name} has", limit)
            _write_sparse(file.fileno(), data, size - len(data))
            data = stream.read(CHUNK)
        file.truncate(size)


def _write_sparse(fd: int, data: bytes, offset: int) -> None:
    view, zeros = memoryview(data), bytes(_HOLE)
    if not data.strip(b"\0"):
        return
    start = None
    for position in range(0, len(data), _HOLE):
        piece = view[position : position + _HOLE]
        if piece != zeros[: len(piece)]:
            start = position if start is None else start
        elif start is not None:
            os.pwrite(fd, view[start:position], offset + start)
            start = None
    if start is not None:
        os.pwrite(fd, view[start:], offset + start)
