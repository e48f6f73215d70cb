"""Reads untrusted tars, one member after the other.

tarfile reads what extends a header (pax, long names) into memory at any size, recurses from such
headers into the next until Python's stack ends, and searches them in quadratic time. So they are
hidden from it: here they are members of their own, of which only a size is used.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from tarfile import ReadError
from typing import BinaryIO, cast

from isal import igzip, igzip_lib

from stemcell_convert.stemcell_errors import StemcellError, UnsupportedStemcell, over_limit
from stemcell_convert.streams import CHUNK, Readable

_MAX_MEMBERS = 10_000  # members; no stemcell and no image has that many
_HEADERS = 1 << 20  # bytes between the contents of two members, or in what extends a header

# What extends the header after it, under names that no header can have: those are of one byte.
_PAX, _IGNORED = b"pax", b"ignored"
_EXTENSIONS = {
    tarfile.XHDTYPE: _PAX,
    tarfile.SOLARIS_XHDTYPE: _PAX,
    tarfile.XGLTYPE: _IGNORED,
    tarfile.GNUTYPE_LONGNAME: _IGNORED,
    tarfile.GNUTYPE_LONGLINK: _IGNORED,
}

Member = tuple[tarfile.TarInfo, BinaryIO | None]


@contextmanager
def opened(
    stream: Readable, name: str, *, zipped: bool, limit: int | None = None
) -> Iterator[Iterator[Member]]:
    """Open a tar, gzipped or not, and give its members, each with its content if it is a file.

    A name is cut to the 100 bytes that a header has for it. Raises StemcellError, calling the tar
    `name`, when it is damaged, also where the contents are read, or its files have more than
    `limit` bytes, those of holes as well.
    """
    plain = igzip.IGzipFile(fileobj=cast(BinaryIO, stream), mode="rb") if zipped else stream
    bounded = _Bounded(plain)
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, bounded), mode="r|", bufsize=CHUNK, tarinfo=_Header
        ) as tar:
            yield _members(tar, bounded, name, limit)
    # igzip_lib's stub calls its exception class a value.
    except (tarfile.TarError, EOFError, igzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise StemcellError(f"{name} is cut short or damaged: {error}") from None


def files(members: Iterator[Member]) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the files among members, each with its name, without a "./"."""
    for member, content in members:
        if content is not None:
            yield member.name.removeprefix("./"), content


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile)
        except (ValueError, IndexError, OverflowError) as error:  # of a damaged map of holes
            raise ReadError(f"a header is damaged: {error}") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise ReadError("a header has a negative size")
        header.type = _EXTENSIONS.get(header.type, header.type)
        return header


class _Bounded:
    """A stream with a limit, which raises at its end, where tarfile would read for ever."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._done = 0
        self._ended = False
        self.end = _HEADERS

    def read(self, size: int, /) -> bytes:
        if self._done >= self.end:
            raise ReadError("there is more header than file")
        if self._ended:
            raise ReadError("it ends too early")
        data = self._stream.read(size)
        self._ended = not data
        self._done += len(data)
        return data


def _members(
    tar: tarfile.TarFile, bounded: _Bounded, name: str, limit: int | None
) -> Iterator[Member]:
    total, size = 0, None
    for _ in range(_MAX_MEMBERS):
        member = tar.next()
        if member is None:
            return
        if member.size < 0:
            raise ReadError("a header has a negative size")
        if member.type == _PAX:
            size = _size_in_pax(tar, member, name)
        elif member.type != _IGNORED and size is not None:
            member.size, size = size, None
            tar.offset = member.offset_data + -(-member.size // 512) * 512
        # tarfile reads ahead by a chunk.
        bounded.end = tar.offset + CHUNK + _HEADERS
        content = tar.extractfile(member) if member.isreg() else None
        total += member.size if content else 0
        if limit is not None and total > limit:
            raise over_limit(f"the files in {name} have", limit)
        if member.type not in (_PAX, _IGNORED):
            yield member, cast("BinaryIO | None", content)
    raise StemcellError(f"{name} has more than {_MAX_MEMBERS} members, as no stemcell has")


def _size_in_pax(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> int | None:
    """Return the size in a pax header, of a next member of more than 8 GiB, or None."""
    content = tar.extractfile(member)
    if content is None or member.size > _HEADERS:
        raise ReadError(f"a pax header has {member.size} bytes")
    records, start, size = content.read(), 0, None
    while start < len(records):
        # "LENGTH KEY=VALUE\n", where LENGTH is that of it all
        space = records.find(b" ", start, start + 20)
        digits = records[start : max(space, start)]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) + 1 < length <= len(records) - start:
            raise ReadError("a pax header is damaged")
        key, _, value = records[space + 1 : start + length - 1].partition(b"=")
        if key.startswith(b"GNU.sparse."):
            raise UnsupportedStemcell(f"{name} has a file with holes as pax has them; use another")
        if key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise ReadError("a pax header is damaged")
            size = int(value)
        start += length
    return size
