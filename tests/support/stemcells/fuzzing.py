"""Helpers of fuzz and property tests: hypothesis settings, tar headers, disk usage."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings

from stemcell_convert.convert import Means, Result
from stemcell_convert.partitions import FileSystem
from stemcell_convert.stemcell_errors import StemcellError
from tests.support.stemcells.small_stemcells import Quiet

BLOCK = tarfile.BLOCKSIZE
T = TypeVar("T")


def stable(examples: int, *, shrink: bool = True) -> settings:
    """Return settings with the same examples each time, even on a slow machine.

    shrink: whether to shrink failing examples, which takes time.
    """
    phases = (Phase.explicit, Phase.generate, *((Phase.shrink,) if shrink else ()))
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=[*checks, HealthCheck.data_too_large],
    )


def tried(call: Callable[[], T], name: str) -> T | None:
    """Return a call's result, or None after a StemcellError that names `name`."""
    try:
        return call()
    except StemcellError as error:
        message = str(error)
    assert name in message
    return None


def header(name: str, size: int, entry_type: bytes = tarfile.REGTYPE) -> bytearray:
    """Return one header of a tar, which may be wrong."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, entry_type
    return bytearray(info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])


def sparse_header(name: str, size: int, kept: int) -> bytearray:
    """Return GNU's header of a sparse file of `size` bytes that has the first `kept`."""
    made = header(name, kept, tarfile.GNUTYPE_SPARSE)
    made[386:410] = b"%011o\0%011o\0" % (0, kept)
    made[483:495] = b"\x80" + size.to_bytes(11, "big")
    return sealed(made)


def sealed(made: bytearray, offset: int = 0) -> bytearray:
    """Return a tar with the checksum of the header at an offset corrected."""
    made[offset + 148 : offset + 156] = b" " * 8
    made[offset + 148 : offset + 156] = b"%06o\0 " % sum(made[offset : offset + BLOCK])
    return made


def allocated(folder: Path) -> int:
    """Return the bytes that a folder's files take on the disk."""
    files = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    return sum(path.lstat().st_blocks * 512 for path in files)


def of_root(root: Path, limit: int) -> Means:
    """Return means without root privileges: every disk's file system is `root`."""

    def mounted(
        raw: Path, system: FileSystem, target: Path, use: Callable[[Path], Result], /
    ) -> Result:
        return use(root)

    return Means(mounted, limit, Quiet())
