"""Locks by CID that hold across processes and threads.

BOSH never makes two calls for one VM at once, but a disk moves between VMs, people run commands by
hand, and a host service answers many directors.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack, contextmanager, suppress

from cpi.errors import CPIError
from cpi.host.layout import LOCKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpi.log import Log


@contextmanager
def hold(run_dir: str, *cids: str, log: Log) -> Iterator[None]:
    """Hold the locks of some CIDs, waiting for them; nothing stays behind on release.

    VMs come first, then by name: so two calls cannot wait for each other, and whoever holds a VM's
    lock may still take those of its disks. A CID that is held already must not be taken again, not
    even by the same process: that waits for ever. Raises CPIError when run_dir cannot be used.
    """
    if any("/" in cid or cid in ("", ".", "..") for cid in cids):
        raise ValueError("a lock is named by a validated CID")
    folder = os.path.join(run_dir, LOCKS)
    with ExitStack() as held:
        try:
            _make_folders(run_dir, folder)
            for cid in sorted(set(cids), key=lambda cid: ("-vm-" not in cid, cid)):
                path = os.path.join(folder, cid)
                held.callback(_release, path, _acquire(cid, path, log))
        except OSError as error:
            raise CPIError(
                f"cannot lock in {folder}: {error.strerror}; the CPI needs root, or a run_dir of "
                "its own"
            ) from error
        yield


def is_held(run_dir: str, cid: str) -> bool:
    """Tell whether a call is at work on a CID just now."""
    return is_locked(os.path.join(run_dir, LOCKS, cid))


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Tell whether somebody holds the lock of a file or folder; not if it is gone.

    Raises OSError when it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _make_folders(*folders: str) -> None:
    """Make folders that only their owner can look into."""
    for folder in folders:
        os.makedirs(folder, mode=0o700, exist_ok=True)


def _acquire(cid: str, path: str, log: Log) -> int:
    """Return a descriptor that holds the lock of this file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _wait(cid, descriptor, log)
            # Whoever held it before has unlinked it: then this is the lock of a file without a
            # name, and somebody else may already hold that of a new one.
            if _is_same(path, descriptor):
                os.set_inheritable(descriptor, True)  # see cpi.host.process
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait(cid: str, descriptor: int, log: Log) -> None:
    """Lock an open file; say so when that means waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        log.info(f"waiting for another call on {cid}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_same(path: str, descriptor: int) -> bool:
    """Tell whether the path still names the open file."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))


def _release(path: str, descriptor: int) -> None:
    """Remove the file while its lock is still held, so that it is ours; then give up the lock."""
    with suppress(OSError):  # a file that stays is only litter, and the next holder's to remove
        os.unlink(path)
    os.close(descriptor)
