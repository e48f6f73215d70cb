"""The few system calls that Python has no function for, in the kernel's own terms.

Raises OSError with the path, like the functions of `os`.
"""

import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_SYNCHRONOUS, MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME = 0x10, 0x80, 0x400, 0x800
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25
MS_REMOUNT = 0x20
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x1000, 0x4000, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
CLONE_FS, CLONE_NEWNS, CLONE_NEWNET = 0x200, 0x20000, 0x40000000

# Flags that come as words among mount options (overlayfs, binds, devices).
_FLAG_WORDS = {
    "ro": MS_RDONLY,
    "rw": 0,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
}

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    _check(result, target)


def mount_words(source: str, target: Path, kind: str, words: list[str]) -> None:
    """mount(2) with fstab-style options."""
    flags, data = 0, []
    for word in words:
        if word in _FLAG_WORDS:
            flags |= _FLAG_WORDS[word]
        else:
            data.append(word)
    mount(source, target, kind, flags, ",".join(data))
    if flags & MS_BIND and flags & MS_RDONLY:
        mount("none", target, "", flags | MS_REMOUNT)  # a bind is read-only on second ask


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2); a target that is no mount point or is gone is no error."""
    result = _libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW)
    if result and ctypes.get_errno() not in (errno.ENOENT, errno.EINVAL):
        _check(result, target)


def bind_folder(source: Path, target: Path) -> None:
    """Bind a folder, without what is mounted below it, apart from all sharing of mounts.

    No part of its path may be a symbolic link, not even one that is put there meanwhile: whoever
    can write in a folder above it could have anything bound. Raises OSError with the part.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("/", flags)
    seen = Path("/")
    try:
        for part in source.parts[1:]:
            seen /= part
            try:
                below = os.open(part, flags, dir_fd=descriptor)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(seen)) from None
            os.close(descriptor)
            descriptor = below
        mount(f"/proc/self/fd/{descriptor}", target, flags=MS_BIND)
    finally:
        os.close(descriptor)
    mount("none", target, flags=MS_PRIVATE)


def is_mount_point(path: Path) -> bool:
    """Tell whether something is mounted exactly there, a bind of the same file system included."""
    return device_of(path) is not None


def device_of(path: Path) -> str | None:
    """Return the "major:minor" of what is mounted exactly there, or None."""
    found = [mounted.device for mounted in mounts("self") if mounted.target == str(path)]
    return found[-1] if found else None


@dataclass(frozen=True)
class Mounted:
    """A line of mountinfo: device is "major:minor", root the part of it that is mounted, target
    where the process sees it."""

    device: str
    root: str
    target: str


def mounts(process: str) -> list[Mounted]:
    """Return what is mounted for a process, in the order it was mounted (proc(5), mountinfo)."""
    found = []
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        for line in file:
            words = line.split(b" ")
            found.append(Mounted(words[2].decode(), _unescaped(words[3]), _unescaped(words[4])))
    return found


def _unescaped(word: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), word))


def mount_shared_tmpfs(path: Path) -> None:
    """Mount a small tmpfs that is shared: what is mounted below reaches the copies of it."""
    mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k")
    try:
        mount("none", path, flags=MS_PRIVATE)  # out of the host's own sharing first
        mount("none", path, flags=MS_SHARED)
    except OSError:
        umount(path, MNT_DETACH)
        raise


def in_private_mounts(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread with a mount namespace of its own.

    What it mounts no other process sees, and the kernel takes it away with the thread, even when
    the process is killed half-way.
    """

    def enter() -> Result:
        _unshare(CLONE_NEWNS)
        mount("none", Path("/"), flags=MS_REC | MS_SLAVE)
        return work()

    return _in_thread(enter)


def in_mount_namespace(pid: int, work: Callable[[], Result]) -> Result:
    """Run `work` in a thread inside the mount namespace of process `pid`."""

    def enter() -> Result:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _unshare(CLONE_FS)  # setns refuses while the thread shares its root with others
            _check(_libc.setns(fd, CLONE_NEWNS), Path(f"/proc/{pid}/ns/mnt"))
        finally:
            os.close(fd)
        return work()

    return _in_thread(enter)


def pin_network_namespace(path: Path) -> None:
    """Make a network namespace, its loopback up, that lives as long as `path` is mounted."""
    path.touch(0o600, exist_ok=False)

    def make() -> None:
        _unshare(CLONE_NEWNET)
        _set_loopback_up()
        mount("/proc/thread-self/ns/net", path, flags=MS_BIND)

    try:
        _in_thread(make)
    except OSError:
        path.unlink()
        raise


def unpin_network_namespace(path: Path) -> None:
    """Let a pinned network namespace go; one that is gone is no error."""
    umount(path, MNT_DETACH)
    path.unlink(missing_ok=True)


def _set_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", IFF_UP)  # struct ifreq, netdevice(7)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), Path("/proc/thread-self/ns"))


def _check(result: int, path: Path) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def _in_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread that ends afterwards: its namespaces end with it."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # carried over to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C: what it mounted is gone before anything else is tidied up
        thread.join()
        raise
    if failures:
        raise failures[0]
    return results[0]
