"""Small stemcells, made of nothing, the same bytes everywhere."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from stemcell_convert.convert import Means
from stemcell_convert.report import Progress

ELF = b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\x00" + bytes(44)  # of amd64
MANIFEST = b"""\
name: bosh-test-go_agent
version: 1.2
api_version: 3
operating_system: debian-test
stemcell_formats: [warden-tar]
cloud_properties: {name: bosh-test-go_agent, version: '1.2'}
"""
ROOTFS: dict[str, bytes | str] = {
    "./": "",
    "./bin": "-> usr/bin",
    "./etc/os-release": "-> ../usr/lib/os-release",
    "./usr/bin/dash": ELF,
    "./usr/bin/sh": "-> dash",
    "./usr/lib/os-release": b'PRETTY_NAME="Test"\nID=test\n',
    "./usr/sbin/runsvdir-start": ELF,
    "./var/data": bytes(100_000),
}


class Quiet:
    """A report that nobody reads; `on_step` gets every step of every progress."""

    def __init__(self, on_step: Callable[[str], None] = lambda what: None) -> None:
        self._on_step = on_step

    def say(self, text: str) -> None:
        self._on_step(text)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        yield lambda done, total: self._on_step(what)


def no_mounts(*arguments: object) -> NoReturn:
    """Stands where disks would be mounted, in tests that have none."""
    raise AssertionError(f"nothing is to be mounted here: {arguments}")


def means(limit: int = 64 << 20, on_step: Callable[[str], None] = lambda what: None) -> Means:
    """What conversions without disks work with."""
    return Means(no_mounts, limit, Quiet(on_step))


def tar(members: Mapping[str, bytes | str]) -> bytes:
    """A tar of files (bytes), folders (""), and links ("-> target")."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                continue
            info.type = tarfile.SYMTYPE if content else tarfile.DIRTYPE
            info.linkname = content.removeprefix("-> ")
            archive.addfile(info)
    return buffer.getvalue()


def zipped(data: bytes) -> bytes:
    """A gzip (RFC 1952) that is the same everywhere: stored, since compressing depends on zlib."""
    blocks = [data[at : at + 65535] for at in range(0, len(data), 65535)] or [b""]
    stored = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block
        for block in blocks
    )
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return head + stored + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def image() -> bytes:
    """A warden stemcell's `image`."""
    return zipped(tar(ROOTFS))


def tarball(path: Path, members: Mapping[str, bytes] | None = None) -> Path:
    """A stemcell; by default as the stemcell builder orders it, the manifest last."""
    path.write_bytes(zipped(tar(members or {"image": image(), "stemcell.MF": MANIFEST})))
    return path
