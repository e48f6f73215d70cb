"""Tars that would hurt whoever reads them as they are."""

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stemcell_convert import tars
from stemcell_convert.stemcell_errors import StemcellError
from tests.support.stemcells.fuzzing import BLOCK, header, sealed, sparse_header
from tests.support.stemcells.small_stemcells import tar

END = bytes(2 * BLOCK)
GIB = 1 << 30


def _read(data: bytes, limit: int | None = None) -> dict[str, bytes]:
    with tars.opened(io.BytesIO(data), "the tar", zipped=False, limit=limit) as members:
        return {name: content.read(GIB) for name, content in tars.files(members)}


def _extended(header_type: bytes, data: bytes) -> bytes:
    """Return a header of a type with its data, before a file."""
    padding = bytes(-len(data) % BLOCK)
    return bytes(header("x", len(data), header_type)) + data + padding + tar({"image": b"content"})


@contextmanager
def _in_little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read(form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in (("./image", b"a" * 1000), ("other", b"b")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(data))
    assert _read(buffer.getvalue()) == {"image": b"a" * 1000, "other": b"b"}


def test_a_size_that_only_pax_can_say() -> None:
    record = b"17 comment=more!\n10 size=7\n"
    data = bytearray(_extended(tarfile.XHDTYPE, record))
    offset = 2 * BLOCK
    data[offset + 124 : offset + 136] = b"%011o\0" % 0
    assert _read(bytes(sealed(data, offset))) == {"image": b"content"}


@pytest.mark.parametrize(
    "header_type", [tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, tarfile.XHDTYPE]
)
def test_headers_that_follow_each_other_without_end(header_type: bytes) -> None:
    assert _read(bytes(header("x", 0, header_type)) * 5000 + tar({"a": b"b"})) == {"a": b"b"}
    with pytest.raises(StemcellError, match="the tar has more than"):
        _read(bytes(header("x", 0, header_type)) * 20_000 + tar({"a": b"b"}))


@pytest.mark.parametrize(
    "header_type", [tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, tarfile.XHDTYPE]
)
def test_what_extends_a_header_is_not_taken_into_memory(header_type: bytes) -> None:
    bomb = gzip.compress(bytes(header("x", 48 << 20, header_type)) + bytes(48 << 20), 1)
    with (
        _in_little_memory(),
        tars.opened(io.BytesIO(bomb), "the tar", zipped=True) as members,
    ):
        try:
            assert list(members) == []
        except tarfile.ReadError:
            assert header_type == tarfile.XHDTYPE


@pytest.mark.parametrize(
    "record",
    [
        b"1" * 900_000,
        b"1 " * 9000,
        b"0 a=b\n",
        b"-5 a=b\n",
        b"12 size=-1\n",
        b"a",
        b"9" * 19 + b" ",
    ],
)
def test_a_pax_header_that_is_none(record: bytes) -> None:
    with pytest.raises(StemcellError, match="the tar is cut short or damaged"):
        _read(_extended(tarfile.XHDTYPE, record))


def test_holes_that_only_pax_can_say_are_refused() -> None:
    with pytest.raises(StemcellError, match="the tar has a file with holes"):
        _read(_extended(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n"))


def test_holes_as_gnu_tar_has_them() -> None:
    data = bytes(sparse_header("disk", 5000, 4)) + b"data".ljust(BLOCK, b"\0") + END
    assert _read(data) == {"disk": b"data" + bytes(4996)}


def test_holes_count() -> None:
    data = bytes(sparse_header("disk", 1 << 40, 4)) + b"data".ljust(BLOCK, b"\0") + END
    with pytest.raises(StemcellError, match=r"the files in the tar have more than 1 MiB"):
        _read(data, limit=1 << 20)
    many = b"".join(bytes(header(f"{n}", 600 << 10)) + bytes(600 << 10) for n in range(3))
    with pytest.raises(StemcellError, match="stemcell_limit"):
        _read(many + END, limit=1 << 20)


def test_a_map_of_holes_without_end() -> None:
    start = sparse_header("disk", GIB, 4)
    start[482] = 1  # isextended
    more = (b"%011o\0%011o\0" % (4096, 1)) * 21 + b"\1" + bytes(7)
    bomb = gzip.compress(bytes(sealed(start)) + more * (8 << 11), 1)
    with (
        pytest.raises(StemcellError, match="more header than file"),
        _in_little_memory(),
        tars.opened(io.BytesIO(bomb), "the tar", zipped=True) as members,
    ):
        list(members)
    with pytest.raises(StemcellError, match="damaged"):
        _read(bytes(start))


@pytest.mark.parametrize(
    "header_type", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, b"S", b"?"]
)
def test_a_negative_size_does_not_lead_back(header_type: bytes) -> None:
    back = header("back", 0, header_type)
    back[124:136] = b"\xff" * 10 + b"\xfe\x00"
    with pytest.raises(StemcellError, match="the tar is cut short or damaged"):
        _read(tar({"a": b"b"})[: 2 * BLOCK] + bytes(sealed(back)) + END)


def test_a_file_of_any_size_is_not_waited_for() -> None:
    endless = header("endless", 0)
    endless[124:136] = b"\x80\x7f" + b"\xff" * 10
    with (
        pytest.raises(StemcellError, match="the tar is cut short or damaged: it ends too early"),
        tars.opened(io.BytesIO(bytes(sealed(endless))), "the tar", zipped=False) as members,
    ):
        list(members)
