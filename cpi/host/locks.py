"""Locks by CID that hold across processes and threads.

BOSH never makes two calls for one VM at once, but a disk moves between VMs, operators run commands,
and a host service answers many directors.
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
    """Wait for the locks of some CIDs and hold them; remove their files on release.

    VMs are locked first, then by name: so calls cannot deadlock, and the holder of a VM's lock may
    still lock its disks. Locking a CID that the same process already holds waits for ever. Raises
    CPIError when run_dir cannot be used.
    """
    if any("/" in cid or cid in ("", ".", "..") for cid in cids):
        raise ValueError("a lock is named by a validated CID")
    folder = os.path.join(run_dir, LOCKS)
    with ExitStack() as held:
        try:
            for path in (run_dir, folder):
                os.makedirs(path, mode=0o700, exist_ok=True)
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
    """Tell whether a call holds the lock of a CID."""
    return is_locked(os.path.join(run_dir, LOCKS, cid))


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file or folder is locked; not if it is gone. Raises OSError."""
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


def _acquire(cid: str, path: str, log: Log) -> int:
    """Lock a file and return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _wait(cid, descriptor, log)
            # If its last holder has unlinked the file, this locks a file without a name, and
            # another call may already hold the lock of a new one.
            if _is_same(path, descriptor):
                os.set_inheritable(descriptor, True)  # see cpi.host.process
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait(cid: str, descriptor: int, log: Log) -> None:
    """Lock an open file; log when that means waiting."""
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
    """Remove the file while its lock is held, so that it is ours; then release the lock."""
    with suppress(OSError):  # the next holder removes a file that stays
        os.unlink(path)
    os.close(descriptor)
