"""Ids of a user namespace, and mounts that show files under them (mount_setattr(2), Linux 5.12).

A VM's user 0 is user `first` on the host, and so on for SIZE ids. An id-mapped mount shows a file
of user 0 as one of user `first`; what is written through it is stored as user 0's. So what lies on
a disk does not depend on the VM that has it.
"""

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cpi.errors import CloudError
from cpi.host import kernel, syscalls

SIZE = 65536  # ids of a VM

_SECONDS = 30


class _MountAttr(ctypes.Structure):
    """struct mount_attr, linux/mount.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    )


def pin(user: Path, network: Path, first: int) -> None:
    """Make a user namespace, and a network namespace that it owns, with its loopback up.

    They last while `user` and `network` are mounted. Raises OSError, CloudError.
    """
    with _process_in_namespaces() as process:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process}/{name}").write_text(f"0 {first} {SIZE}\n")
        syscalls.pin_namespace(f"/proc/{process}/ns/user", user)
        try:
            syscalls.set_loopback_up(f"/proc/{process}/ns/net")
            syscalls.pin_namespace(f"/proc/{process}/ns/net", network)
        except BaseException:
            syscalls.unpin_namespace(user)
            raise


@contextmanager
def _process_in_namespaces() -> Iterator[int]:
    """Run a process in new namespaces; unshare(2) of a user namespace refuses threads."""
    argv = ["unshare", "--user", "--net", "--", "cat"]
    ours, theirs = socket.socketpair()
    end, pipe = theirs.fileno(), subprocess.PIPE
    with ours, subprocess.Popen(argv, stdin=end, stdout=end, stderr=pipe) as process:
        theirs.close()
        try:
            ours.settimeout(_SECONDS)
            ours.sendall(b"\n")  # cat returns it from inside
            if not ours.recv(1):
                _, reason = process.communicate()
                message = reason.decode(errors="replace").strip()
                raise CloudError(f"cannot make a user namespace: {message}")
            yield process.pid
        finally:
            process.kill()


def mount_read_only(source: Path, target: Path, user: Path) -> None:
    """Mount a folder at `target` with the ids of a pinned user namespace, without mounts below it.

    Raises OSError: EINVAL where the file system of `source` cannot do it.
    """
    tree = clone(source, user, kernel.MOUNT_ATTR_RDONLY)
    try:
        attach(tree, target)
    finally:
        os.close(tree)


def umount(target: Path) -> None:
    """Undo `mount_read_only`; do nothing if it is gone."""
    syscalls.umount(target, kernel.MNT_DETACH)
    with suppress(FileNotFoundError):
        target.rmdir()


def clone(source: Path, user: Path, attributes: int = 0) -> int:
    """Return a descriptor of a mount of `source` with a user namespace's ids, attached nowhere.

    attributes: more of them, MOUNT_ATTR_*.
    """
    flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC
    path = os.fsencode(source)
    tree: int = syscalls.libc.syscall(kernel.SYS_open_tree, kernel.AT_FDCWD, path, flags)
    syscalls.check(tree, source)
    try:
        namespace = os.open(user, os.O_RDONLY | os.O_CLOEXEC)
        try:
            wanted = _MountAttr(attr_set=kernel.MOUNT_ATTR_IDMAP | attributes, userns_fd=namespace)
            size, pointer = ctypes.sizeof(wanted), ctypes.byref(wanted)
            syscalls.check(
                syscalls.libc.syscall(
                    kernel.SYS_mount_setattr, tree, b"", kernel.AT_EMPTY_PATH, pointer, size
                ),
                source,
            )
        finally:
            os.close(namespace)
    except BaseException:
        os.close(tree)
        raise
    return tree


def attach(tree: int, target: Path) -> None:
    """Attach what `clone` returned at a path."""
    flags = kernel.MOVE_MOUNT_F_EMPTY_PATH
    path = os.fsencode(target)
    syscalls.check(
        syscalls.libc.syscall(kernel.SYS_move_mount, tree, b"", kernel.AT_FDCWD, path, flags),
        target,
    )
