"""Loop devices: a part of a file as a block device.

Each is cleared by the kernel when its last user is gone, a mount or an open file: so a process that
is killed at any point leaves none. Needs Linux 5.8 (loop(4), linux/loop.h).
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cpi.errors import CloudError
from cpi.host import kernel

CONTROL = "/dev/loop-control"
_BLOCK = 512  # bytes
_TRIES = 100  # another process may be faster to take the device that was free
_FREE_SECONDS = 3.0


@dataclass(frozen=True)
class Part:
    """A part of a file: `size` bytes (0: up to its end) at `offset`."""

    image: Path
    offset: int
    size: int


@contextmanager
def attached(part: Part, *, read_only: bool = False) -> Iterator[Path]:
    """Attach a loop device to a part of a file.

    When this ends the device goes, or stays as long as it is mounted. It does not go through the
    host's page cache (direct I/O, where the host's file system has it), as the guest has its own.
    Raises CloudError.
    """
    mode = os.O_RDONLY if read_only else os.O_RDWR
    flags = kernel.LO_FLAGS_AUTOCLEAR | kernel.LO_FLAGS_DIRECT_IO
    flags |= kernel.LO_FLAGS_READ_ONLY if read_only else 0
    try:
        backing = os.open(part.image, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            device, path = _configured(backing, part, mode, flags)
        finally:
            os.close(backing)
    except OSError as error:
        hint = "; loop devices need Linux 5.8" if error.errno == errno.ENOTTY else ""
        raise CloudError(f"no loop device for {part.image}: {error.strerror}{hint}") from None
    try:
        yield path
    finally:
        os.close(device)


def _configured(backing: int, part: Part, mode: int, flags: int) -> tuple[int, Path]:
    """Return an open loop device over a file, and its path."""
    # struct loop_config: fd, block size, struct loop_info64, reserved. The block size would else be
    # that of the host's file system, and a disk made for small blocks is not read in large ones.
    info = struct.pack("=24xQQ12xI176x", part.offset, part.size, flags)
    config = struct.pack("=2I", backing, _BLOCK) + info + bytes(64)
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = Path(f"/dev/loop{fcntl.ioctl(control, kernel.LOOP_CTL_GET_FREE)}")
            device = os.open(path, mode | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, kernel.LOOP_CONFIGURE, config)
                return device, path
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no device stays free long enough")


def backing_files() -> dict[str, str]:
    """Return the file of each loop device ("loop7") that has one; it may have been deleted."""
    files = {}
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            try:
                backing = Path(f"/sys/block/{name}/loop/backing_file").read_bytes()
            except OSError:
                continue  # it is free
            files[name] = os.fsdecode(backing.rstrip(b"\n")).removesuffix(" (deleted)")
    return files


def clear(name: str) -> None:
    """Free a loop device ("loop7"), if it is not, now or when its last user is gone."""
    device = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, kernel.LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    finally:
        os.close(device)


def over(image: Path) -> list[str]:
    """Return the names of the loop devices ("loop7") over a file."""
    wanted = os.path.realpath(image)
    return sorted(name for name, file in backing_files().items() if file == wanted)


def wait_until_free(image: Path) -> list[str]:
    """Wait a moment for a file's loop devices to go, and return those that stay.

    After the last umount the kernel may clear them in the background, without an event.
    """
    end = time.monotonic() + _FREE_SECONDS
    while True:
        left = over(image)
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.01)


def device_number(name: str) -> str:
    """Return the "major:minor" of a loop device ("loop7")."""
    return Path(f"/sys/block/{name}/dev").read_text().strip()
