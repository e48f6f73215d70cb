"""Snapshots as the host sees them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cpi.host import kernel, linux
from runtimes.containerd.api import types_pb2


@contextmanager
def mounted(mounts: Sequence[types_pb2.Mount], at: Path) -> Iterator[Path]:
    """Mount a snapshot, for use inside linux.in_private_mounts.

    `at` is made when missing. Calls at the same time may share it: each has mounts of its own.
    """
    at.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        for mount in mounts:
            linux.mount_words(mount.source, at, mount.type, list(mount.options))
            stack.callback(linux.umount, at, kernel.MNT_DETACH)
        yield at
