"""The system calls that Python has no function for; their constants are in cpi.host.kernel.

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

# Flags that are given as words among mount options (overlayfs, binds, devices).
_FLAG_WORDS = {
    "ro": kernel.MS_RDONLY,
    "rw": 0,
    "bind": kernel.MS_BIND,
    "rbind": kernel.MS_BIND | kernel.MS_REC,
    "nosuid": kernel.MS_NOSUID,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
}

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Call mount(2)."""
    result = libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    check(result, target)


def mount_words(source: str, target: Path, fstype: str, words: list[str]) -> None:
    """Call mount(2) with fstab-style options."""
    flags, data = 0, []
    for word in words:
        if word in _FLAG_WORDS:
            flags |= _FLAG_WORDS[word]
        else:
            data.append(word)
    mount(source, target, fstype, flags, ",".join(data))
    if flags & kernel.MS_BIND and flags & kernel.MS_RDONLY:
        mount("none", target, "", flags | kernel.MS_REMOUNT)  # binds ignore MS_RDONLY at first


def umount(target: Path, flags: int = 0) -> None:
    """Call umount2(2); do nothing if the target is gone or not a mount point."""
    result = libc.umount2(os.fsencode(target), flags | kernel.UMOUNT_NOFOLLOW)
    if result and ctypes.get_errno() not in (errno.ENOENT, errno.EINVAL):
        check(result, target)


def bind_folder(source: Path, target: Path) -> None:
    """Bind a folder as a private mount, without what is mounted below it.

    No part of its path may be a symbolic link, not even one created meanwhile: a user who can write
    in a folder above it could have any folder bound. Raises OSError with the part.
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
    """Tell whether something is mounted exactly there; binds of one file system count too."""
    return device_of(path) is not None


def device_of(path: Path) -> str | None:
    """Return the "major:minor" of what is mounted exactly there, or None."""
    devices = [mounted.device for mounted in mounts("self") if mounted.target == str(path)]
    return devices[-1] if devices else None


@dataclass(frozen=True)
class Mounted:
    """A line of mountinfo. device: "major:minor"; root: the mounted part of it; target: the mount
    point as the process sees it."""

    device: str
    root: str
    target: str


def mounts(process: str) -> list[Mounted]:
    """Return a process's mounts in the order they were made (proc(5), mountinfo)."""
    mounted = []
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        for line in file:
            words = line.split(b" ")
            mounted.append(Mounted(words[2].decode(), _unescaped(words[3]), _unescaped(words[4])))
    return mounted


def _unescaped(word: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), word))


def mount_shared_tmpfs(path: Path) -> None:
    """Mount a small shared tmpfs: mounts made below it propagate to its copies."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    mount("tmpfs", path, "tmpfs", flags, "mode=755,size=64k")
    try:
        mount("none", path, flags=kernel.MS_PRIVATE)  # first leave the host's peer group
        mount("none", path, flags=kernel.MS_SHARED)
    except OSError:
        umount(path, kernel.MNT_DETACH)
        raise


def in_private_mounts(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread with its own mount namespace.

    No other process sees what it mounts, and the kernel unmounts it when the thread ends, even if
    the process is killed.
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
            _unshare(kernel.CLONE_FS)  # setns fails while the thread shares its root
            check(libc.setns(fd, kernel.CLONE_NEWNS), Path(f"/proc/{pid}/ns/mnt"))
        finally:
            os.close(fd)
        return work()

    return _in_thread(enter)


def pin_network_namespace(path: Path) -> None:
    """Make a network namespace with its loopback up; it lasts while `path` is mounted."""

    def make() -> None:
        _unshare(kernel.CLONE_NEWNET)
        _set_loopback_up()
        pin_namespace("/proc/thread-self/ns/net", path)

    _in_thread(make)


def pin_namespace(namespace: str, path: Path) -> None:
    """Keep a namespace ("/proc/<pid>/ns/net") while `path`, which must be new, is mounted."""
    path.touch(0o600, exist_ok=False)
    try:
        mount(namespace, path, flags=kernel.MS_BIND)
    except OSError:
        path.unlink()
        raise


def set_loopback_up(namespace: str) -> None:
    """Set the loopback interface of a network namespace ("/proc/<pid>/ns/net") up."""

    def enter() -> None:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(libc.setns(fd, kernel.CLONE_NEWNET), Path(namespace))
        finally:
            os.close(fd)
        _set_loopback_up()

    _in_thread(enter)


def unpin_namespace(path: Path) -> None:
    """Unpin a namespace; do nothing if it is gone."""
    umount(path, kernel.MNT_DETACH)
    path.unlink(missing_ok=True)


def inotify_init() -> int:
    """Call inotify_init1(2); return the descriptor, which does not block."""
    descriptor: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    check(min(descriptor, 0), Path("inotify"))
    return descriptor


def inotify_add_watch(descriptor: int, path: Path, mask: int) -> int:
    """Call inotify_add_watch(2); return the watch's number."""
    watch: int = libc.inotify_add_watch(descriptor, os.fsencode(path), mask)
    check(min(watch, 0), path)
    return watch


def effective_capabilities(process: str = "self") -> frozenset[str]:
    """Return a process's effective capabilities (proc(5), CapEff). Raises OSError."""
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
    check(libc.unshare(flags), Path("/proc/thread-self/ns"))


def check(result: int, path: Path) -> None:
    """Raise OSError with the path if a call of `libc` failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def _in_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a new thread, whose namespaces end with it."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C: wait until its mounts are gone
        thread.join()
        raise
    if failures:
        raise failures[0]
    return results[0]
