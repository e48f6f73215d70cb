"""The few system calls that Python has no function for; their constants are cpi.host.kernel's.

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

from cpi.host import kernel

Result = TypeVar("Result")

# Flags that come as words among mount options (overlayfs, binds, devices).
_FLAG_WORDS = {
    "ro": kernel.MS_RDONLY,
    "rw": 0,
    "bind": kernel.MS_BIND,
    "rbind": kernel.MS_BIND | kernel.MS_REC,
    "nosuid": kernel.MS_NOSUID,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
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
    if flags & kernel.MS_BIND and flags & kernel.MS_RDONLY:
        mount("none", target, "", flags | kernel.MS_REMOUNT)  # a bind is read-only on second ask


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2); a target that is no mount point or is gone is no error."""
    result = _libc.umount2(os.fsencode(target), flags | kernel.UMOUNT_NOFOLLOW)
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
        mount(f"/proc/self/fd/{descriptor}", target, flags=kernel.MS_BIND)
    finally:
        os.close(descriptor)
    mount("none", target, flags=kernel.MS_PRIVATE)


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
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    mount("tmpfs", path, "tmpfs", flags, "mode=755,size=64k")
    try:
        mount("none", path, flags=kernel.MS_PRIVATE)  # out of the host's own sharing first
        mount("none", path, flags=kernel.MS_SHARED)
    except OSError:
        umount(path, kernel.MNT_DETACH)
        raise


def in_private_mounts(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread with a mount namespace of its own.

    What it mounts no other process sees, and the kernel takes it away with the thread, even when
    the process is killed half-way.
    """

    def enter() -> Result:
        _unshare(kernel.CLONE_NEWNS)
        mount("none", Path("/"), flags=kernel.MS_REC | kernel.MS_SLAVE)
        return work()

    return _in_thread(enter)


def in_mount_namespace(pid: int, work: Callable[[], Result]) -> Result:
    """Run `work` in a thread inside the mount namespace of process `pid`."""

    def enter() -> Result:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _unshare(kernel.CLONE_FS)  # setns refuses while the thread shares its root with others
            _check(_libc.setns(fd, kernel.CLONE_NEWNS), Path(f"/proc/{pid}/ns/mnt"))
        finally:
            os.close(fd)
        return work()

    return _in_thread(enter)


def pin_network_namespace(path: Path) -> None:
    """Make a network namespace, its loopback up, that lives as long as `path` is mounted."""
    path.touch(0o600, exist_ok=False)

    def make() -> None:
        _unshare(kernel.CLONE_NEWNET)
        _set_loopback_up()
        mount("/proc/thread-self/ns/net", path, flags=kernel.MS_BIND)

    try:
        _in_thread(make)
    except OSError:
        path.unlink()
        raise


def unpin_network_namespace(path: Path) -> None:
    """Let a pinned network namespace go; one that is gone is no error."""
    umount(path, kernel.MNT_DETACH)
    path.unlink(missing_ok=True)


def effective_capabilities(process: str = "self") -> frozenset[str]:
    """Return the capabilities that a process has (proc(5), CapEff). Raises OSError."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            names = enumerate(kernel.CAPABILITIES)
            return frozenset(name for number, name in names if mask >> number & 1)
    return frozenset()


def _set_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", kernel.IFF_UP)  # struct ifreq, netdevice(7)
        fcntl.ioctl(any_socket, kernel.SIOCSIFFLAGS, request)


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
