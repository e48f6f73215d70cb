"""Raw disks as files: their layout, growing and copying them.

A disk is a sparse file with a GPT and one partition, which begins at 1 MiB and ends 1 MiB before
the end, with a file system in it. Any tool reads it, and any hypervisor takes it. The GPT's GUID is
the disk's CID, so that another file in its place is noticed.
"""

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path

from cpi.disks import loop
from cpi.disks.filesystems import FILE_SYSTEMS, fstype_of, grow, replay
from cpi.disks.loop import Part
from cpi.errors import CloudError, NoDiskSpace
from cpi.host import kernel, syscalls
from cpi.host.process import CommandFailed, run
from cpi.progress import Progress
from stemcell_convert.gpt import SECTOR, read_table

MIB = 1 << 20
PARTITION_OFFSET = MIB  # bytes
PARTITION_TAIL = MIB  # bytes after the partition: the second copy of the GPT, and room
_SECOND_TABLE = 33 * SECTOR  # bytes of the copy itself (UEFI, "GPT Partition Entry Array")

_GUID_DIGITS = 32
TABLE_HEAD = 3 * SECTOR  # bytes that have the GPT's header and its first entries

_PIECE = 64 * MIB  # copied at a time
_TABLE_SECONDS = 60.0


def quiet(done: int, total: int) -> None:
    """Show no progress."""


def part_of(image: Path) -> Part:
    """Return where a disk's file system is, by the file's size: an interrupted growth is in it.

    The agent of a full VM grows a partition further than we do, up to the GPT's second copy.
    """
    size = image.stat().st_size
    default = size - PARTITION_OFFSET - PARTITION_TAIL
    maximum = size - PARTITION_OFFSET - _SECOND_TABLE
    return Part(image, PARTITION_OFFSET, max(default, min(_partition_size(image), maximum)))


def has_room_left(image: Path) -> bool:
    """Tell whether a disk's file is larger than its partition needs it to be."""
    partition = _partition_size(image)
    return 0 < partition < image.stat().st_size - PARTITION_OFFSET - PARTITION_TAIL


def _partition_size(image: Path) -> int:
    """Return the bytes of the first partition; 0 without a table, or for another layout."""
    with image.open("rb") as file:
        return _table(file.read(TABLE_HEAD))[1]


def create(image: Path, cid: str, size_mib: int, filesystem: str, *, preallocate: bool) -> None:
    """Make a disk of `size_mib` MiB. Raises NoDiskSpace, CloudError."""
    make_sparse(image, size_mib)
    if preallocate:
        allocate(image)
    write_table(image, cid)
    # What a VM's kernel initializes later, by writing zeros, it would give back to the host.
    FILE_SYSTEMS[filesystem].make(part_of(image), lazily=not preallocate)
    if preallocate:
        allocate(image)  # what the tool has made holes of


def make_sparse(image: Path, size_mib: int) -> None:
    """Create a sparse file of `size_mib` MiB for root only. Raises NoDiskSpace."""
    try:
        os.close(os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise NoDiskSpace(f"cannot make {image}: {error.strerror}") from None
    set_size(image, size_mib)


def set_size(image: Path, size_mib: int) -> None:
    """Make a file as long as `size_mib` MiB. Raises NoDiskSpace: its file system has a limit."""
    try:
        os.truncate(image, size_mib * MIB)
    except OSError as error:
        raise NoDiskSpace(f"{image} cannot have {size_mib} MiB: {error.strerror}") from None


def allocate(image: Path) -> None:
    """Reserve the blocks of a whole file on the host. Raises NoDiskSpace, and then keeps none."""
    status = image.stat()
    require_room(image.parent, status.st_size - status.st_blocks * 512, f"all of {image.name}")
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fallocate(fd, 0, status.st_size)
    except OSError as error:
        raise NoDiskSpace(f"cannot reserve all of {image}: {error.strerror}") from None
    finally:
        os.close(fd)


def write_table(image: Path, cid: str) -> None:
    """Write the GPT for the file's size. What is in the partition stays. Raises CloudError."""
    start, size = PARTITION_OFFSET // SECTOR, part_of(image).size // SECTOR
    script = f"label: gpt\nlabel-id: {guid_of(cid)}\nstart={start}, size={size}, type=linux\n"
    argv = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never"]
    argv += ["--wipe-partitions", "never", str(image)]
    hint = "apt-get install fdisk"
    try:
        run(argv, stdin=script.encode(), timeout=_TABLE_SECONDS, install_hint=hint)
    except CommandFailed as error:
        if "No space left" in error.stderr:
            raise NoDiskSpace(f"the file system of {image} is full: {error.stderr}") from None
        raise


def guid_of(cid: str) -> str:
    """Return a CID as the GPT's GUID: its random part, or a hash of it where that is short."""
    digits = cid.rsplit("-", 1)[1]
    if len(digits) < _GUID_DIGITS:
        digits = hashlib.sha256(cid.encode()).hexdigest()[:_GUID_DIGITS]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])).upper()


def check(image: Path, cid: str, size_mib: int, filesystem: str) -> None:
    """Make sure that a file is this disk, and whole.

    Raises CloudError naming the file when it is missing, too short, or of another disk.
    """
    problem = _problem(image, cid, size_mib, filesystem)
    if problem:
        raise CloudError(f"the disk {cid} cannot be used: {image} {problem}")


def _problem(image: Path, cid: str, size_mib: int, filesystem: str) -> str:
    try:
        status = image.lstat()
        if not stat.S_ISREG(status.st_mode):
            return "is no regular file"
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    size = status.st_size
    try:
        head = os.pread(fd, TABLE_HEAD, 0)
    finally:
        os.close(fd)
    if size < size_mib * MIB:
        return f"is truncated: it has {size} bytes of {size_mib * MIB}"
    if problem := table_problem(head, cid):
        return problem
    fstype = fstype_of(part_of(image))
    if fstype != filesystem:
        return f"should have a file system {filesystem}, and has {fstype or 'none that is known'}"
    return ""


def table_problem(head: bytes, cid: str) -> str:
    """Return what is wrong with the GPT in a disk's first TABLE_HEAD bytes, or ""."""
    guid, partition_size = _table(head)
    if not guid:
        return "is no disk of this CPI: it has no GPT"
    if guid != guid_of(cid):
        return f"is another disk: the GPT's GUID is {guid}, not {guid_of(cid)}"
    if not partition_size:
        return "is no disk of this CPI: its partition does not begin at 1 MiB"
    return ""


def _table(head: bytes) -> tuple[str, int]:
    """Read a GPT: its GUID, "" without one, and the bytes of the first partition, 0 elsewhere."""
    try:
        table = read_table(lambda offset, size: head[offset : offset + size], len(head))
    except ValueError:
        return "", 0
    start, size = table.partitions[0] if table.partitions else (0, 0)
    return table.guid, size if start == PARTITION_OFFSET else 0


def require_unused(image: Path, cid: str) -> None:
    """Raise CloudError while a loop device of the host has the disk's file."""
    left = loop.wait_until_free(image)
    if left:
        devices = {loop.device_number(name) for name in left}
        places = [
            mounted.target for mounted in syscalls.mounts("self") if mounted.device in devices
        ]
        where = f", mounted at {', '.join(places)}: unmount it there" if places else ""
        raise CloudError(
            f"the disk {cid} is still in use on this host by {', '.join(left)}{where}",
            ok_to_retry=True,
        )


def enlarge(image: Path, cid: str, size_mib: int, filesystem: str, *, preallocate: bool) -> int:
    """Grow an unused disk to at least `size_mib` MiB, data kept; return what it has now (MiB).

    Idempotent, also after an interrupt, and the disk is good at every moment: the file system
    grows while mounted, with its journal, or where that is not allowed, as a copy which then
    replaces the disk. Raises NoDiskSpace, CloudError.
    """
    before = image.stat().st_size
    if before < size_mib * MIB:
        set_size(image, size_mib)
    if preallocate:
        try:
            allocate(image)
        except NoDiskSpace:
            os.truncate(image, before)
            raise
    write_table(image, cid)
    system = FILE_SYSTEMS[filesystem]
    if system.can_grow_mounted():
        grow(part_of(image), system)
    else:
        fresh = partial(image)
        copy(image, fresh)
        if preallocate:
            allocate(fresh)  # what was reserved and never written is a hole in the copy
        grow_unmounted(fresh, filesystem)
        replace(fresh, image)
    return image.stat().st_size // MIB


def grow_unmounted(image: Path, filesystem: str) -> None:
    """Let the file system of a copy fill its disk; an interrupt makes the copy unusable."""
    part, system = part_of(image), FILE_SYSTEMS[filesystem]
    if system.can_grow_mounted():
        grow(part, system)
        return
    with loop.attached(part) as device:
        system.grow_unmounted(device)


def renew_identity(image: Path, filesystem: str) -> None:
    """Give the file system of a copy a new UUID, so that it can be mounted beside the original."""
    part, system = part_of(image), FILE_SYSTEMS[filesystem]
    replay(part, system)
    with loop.attached(part) as device:
        system.renew_identity(device)


def partial(image: Path) -> Path:
    """Return the name of `image` while it is being written."""
    return image.with_name(image.name + ".part")


def replace(fresh: Path, image: Path) -> None:
    """Replace a file by a finished one, durably."""
    flush(fresh)
    fresh.replace(image)
    flush(image.parent)


def flush(path: Path) -> None:
    """Wait until a file's data, or a folder's names, are on the medium."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy(source: Path, target: Path, progress: Progress = quiet) -> None:
    """Copy a disk, sharing its blocks where the host's file system can, else keeping its holes.

    Replaces what a killed call left at `target`, and leaves nothing there when it fails. Raises
    NoDiskSpace, if possible before it begins.
    """
    target.unlink(missing_ok=True)
    inside = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not _shares_blocks(inside, out):
                needed = os.fstat(inside).st_blocks * 512
                require_room(target.parent, needed, f"a copy of {source.name}")
                _copy_data(inside, out, progress)
        finally:
            os.close(out)
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoDiskSpace(f"no room for a copy of {source} in {target.parent}") from None
        raise CloudError(f"cannot copy {source} to {target}: {error.strerror}") from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(inside)


def _shares_blocks(inside: int, out: int) -> bool:
    try:
        fcntl.ioctl(out, kernel.FICLONE, inside)
    except OSError:
        return False
    return True


def _copy_data(inside: int, out: int, progress: Progress) -> None:
    size = os.fstat(inside).st_size
    os.truncate(out, size)
    total, done, end = os.fstat(inside).st_blocks * 512, 0, 0
    while True:
        try:
            start = os.lseek(inside, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                progress(total, total)
                return
            raise
        end = os.lseek(inside, start, os.SEEK_HOLE)
        os.lseek(out, start, os.SEEK_SET)
        while start < end:
            count = os.sendfile(out, inside, start, min(end - start, _PIECE))
            if count == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += count
            done += count
            progress(min(done, total), total)


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise NoDiskSpace, with the numbers, when a folder's file system has less than `needed`."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise NoDiskSpace(
            f"no room for {what} in {folder}: it takes {-(-needed // MIB)} MiB, "
            f"{free // MIB} MiB are free"
        )
