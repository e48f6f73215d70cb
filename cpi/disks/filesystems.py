"""The file systems that a persistent disk can have, ext4 and xfs, and their own tools."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from cpi.disks import loop, superblock
from cpi.disks.loop import Part
from cpi.errors import CloudError, NoDiskSpace
from cpi.host import kernel, syscalls
from cpi.host.process import CommandFailed, run

_HOURS = 24 * 3600.0  # seconds; checking a big disk takes as long as it takes


class FileSystem(ABC):
    """A type of file system.

    min_mib: the smallest disk (MiB) for it. no_replay: the mount option that leaves the journal
    alone. copy_options: those to mount a copy beside its original. magic: offset and bytes of its
    signature.
    """

    name: str
    min_mib: int
    no_replay: str
    copy_options: tuple[str, ...] = ()
    magic: tuple[int, bytes]

    @abstractmethod
    def make(self, part: Part, *, lazily: bool = True) -> None:
        """Make a new file system. Raises NoDiskSpace, CloudError.

        lazily: leave to the kernel what it can initialize when it is mounted.
        """

    @abstractmethod
    def grow(self, device: Path, target: Path) -> None:
        """Let it fill its device, while it is mounted at `target`. Raises CloudError."""

    def can_grow_mounted(self) -> bool:
        """Tell whether this process may use `grow`."""
        return True

    @abstractmethod
    def grow_unmounted(self, device: Path) -> None:
        """Let it fill its device. Not safe when interrupted: only for a copy."""

    @abstractmethod
    def renew_identity(self, device: Path) -> None:
        """Give it a new UUID, unmounted and with nothing in its journal."""

    @abstractmethod
    def check(self, device: Path, *, repair: bool) -> tuple[bool, str]:
        """Check it, unmounted; return whether it is sound now, and what the tool said."""


class Ext4(FileSystem):
    """ext4, which BOSH's agent uses by default."""

    name = "ext4"
    min_mib = 8
    no_replay = "noload"
    magic = (1080, b"\x53\xef")

    def make(self, part: Part, *, lazily: bool = True) -> None:
        # Inode tables and the journal, lazily: 100 GiB take no longer than 1 GiB.
        lazy = f"lazy_itable_init={lazily:d},lazy_journal_init={lazily:d}"
        options = f"{lazy},nodiscard,root_owner=0:0"
        if part.offset:
            options += f",offset={part.offset}"
        # Reserved blocks are for a system's root. On an error, to write on would make it worse.
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-e", "remount-ro"]
        _tool([*argv, "-E", options, str(part.image), f"{part.size // 1024}k"], part.image)

    def grow(self, device: Path, target: Path) -> None:
        _tool(["resize2fs", str(device)], device)

    def can_grow_mounted(self) -> bool:
        # The kernel asks for it (ext4_resize_begin), and some containers' root lacks it.
        return "CAP_SYS_RESOURCE" in syscalls.effective_capabilities()

    def grow_unmounted(self, device: Path) -> None:
        _run_fsck(["e2fsck", "-f", "-p", str(device)], sound=(0, 1))
        _tool(["resize2fs", str(device)], device)

    def renew_identity(self, device: Path) -> None:
        _run_fsck(["e2fsck", "-f", "-p", str(device)], sound=(0, 1))  # tune2fs insists
        _tool(["tune2fs", "-U", "random", str(device)], device)

    def check(self, device: Path, *, repair: bool) -> tuple[bool, str]:
        argv = ["e2fsck", "-f", "-y" if repair else "-n", str(device)]
        sound = (0, 1) if repair else (0,)  # 1: errors were corrected (e2fsck(8))
        return _verdict(argv, sound)


class Xfs(FileSystem):
    """xfs, for the jobs that ask for it."""

    name = "xfs"
    min_mib = 304  # mkfs.xfs makes none below 300 MiB
    no_replay = "norecovery"
    copy_options = ("nouuid",)
    magic = (0, b"XFSB")

    def make(self, part: Part, *, lazily: bool = True) -> None:
        with loop.attached(part) as device:
            _tool(["mkfs.xfs", "-q", "-f", "-K", str(device)], part.image)

    def grow(self, device: Path, target: Path) -> None:
        _tool(["xfs_growfs", "-d", str(target)], device)

    def grow_unmounted(self, device: Path) -> None:
        raise NotImplementedError("xfs grows while it is mounted, and needs no privilege for it")

    def renew_identity(self, device: Path) -> None:
        _tool(["xfs_admin", "-U", "generate", str(device)], device)

    def check(self, device: Path, *, repair: bool) -> tuple[bool, str]:
        return _verdict(["xfs_repair", *([] if repair else ["-n"]), str(device)], (0,))


FILE_SYSTEMS: dict[str, FileSystem] = {"ext4": Ext4(), "xfs": Xfs()}
DEFAULT = "ext4"


def make_ext4(image: Path, size: int) -> None:
    """Make an ext4 of `size` bytes that is a whole file. Raises NoDiskSpace, CloudError."""
    FILE_SYSTEMS["ext4"].make(Part(image, 0, size))


def grow(part: Part, system: FileSystem) -> None:
    """Let a file system fill its part, with its journal at work: safe to interrupt."""
    _while_mounted(part, system, system.grow)


def replay(part: Part, system: FileSystem) -> None:
    """Let the kernel replay a file system's journal."""
    _while_mounted(part, system, lambda device, target: None)


def _while_mounted(part: Part, system: FileSystem, work: Callable[[Path, Path], None]) -> None:
    """Mount a file system where no other process sees it, and nothing has to be removed after."""
    folder = part.image.parent

    def mounted() -> None:
        with loop.attached(part) as device:
            # Tools look for the mount by its path, so that must be one where nothing else is.
            syscalls.mount("tmpfs", folder, "tmpfs", kernel.MS_NODEV, "mode=700,size=64k")
            target = folder / "mounted"
            target.mkdir()
            mount_device(device, target, system.name, options=system.copy_options)
            try:
                work(device, target)
            finally:
                syscalls.umount(target)

    syscalls.in_private_mounts(mounted)


def mount_device(
    device: Path, target: Path, fstype: str, flags: int = 0, options: tuple[str, ...] = ()
) -> None:
    """Mount a device, whoever wrote it.

    Raises CloudError naming it, and its superblock's fault, or the options when they may be the
    reason.
    """
    try:
        with device.open("rb") as file:
            head, size = file.read(superblock.SIZE), file.seek(0, os.SEEK_END)
    except OSError as error:
        raise CloudError(f"cannot read {device}: {error.strerror}") from None
    if problem := superblock.problem(fstype, head, size):
        raise CloudError(f"the {fstype} of {device} is not mounted: {problem}")
    # After an error the superblock may ask for a panic of the host.
    if fstype == "ext4" and not any(option.startswith("errors=") for option in options):
        options = (*options, "errors=remount-ro")
    try:
        syscalls.mount(str(device), target, fstype, flags, ",".join(options))
    except OSError as error:
        with_options = f" with the options {', '.join(options)}" if options else ""
        raise CloudError(
            f"cannot mount the {fstype} of {device}{with_options}: {error.strerror}"
        ) from None


def _tool(argv: list[str], what: Path) -> None:
    try:
        run(argv, timeout=_HOURS, install_hint=_hint(argv))
    except CommandFailed as error:
        if "No space left" in error.stderr:
            raise NoDiskSpace(f"the file system of {what} is full: {error.stderr}") from None
        raise


def _run_fsck(argv: list[str], sound: tuple[int, ...]) -> None:
    good, text = _verdict(argv, sound)
    if not good:
        raise CloudError(f"{argv[0]} finds the file system of {argv[-1]} damaged: {text}")


def _verdict(argv: list[str], sound: tuple[int, ...]) -> tuple[bool, str]:
    try:
        text = run(argv, timeout=_HOURS, install_hint=_hint(argv)).decode(errors="replace")
    except CommandFailed as error:
        if error.status is None:
            raise
        text = f"{error.stdout.decode(errors='replace')}\n{error.stderr}"
        return error.status in sound, text.strip()
    return True, text.strip()


def _hint(argv: list[str]) -> str:
    return f"apt-get install {'xfsprogs' if 'xfs' in argv[0] else 'e2fsprogs'}"


def fstype_of(part: Part) -> str:
    """Return the name of the file system that is there, or ""."""
    fd = os.open(part.image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for system in FILE_SYSTEMS.values():
            offset, magic = system.magic
            if os.pread(fd, len(magic), part.offset + offset) == magic:
                return system.name
    finally:
        os.close(fd)
    return ""
