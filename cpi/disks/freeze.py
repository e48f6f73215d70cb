"""Hold a mounted file system still, so that its file on the host can be copied.

A process that is killed would leave it frozen for ever, and every job that writes to it. So a small
child process freezes it, and thaws it when its input ends, as it does however this process ends.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpi.errors import CloudError
from cpi.host import kernel
from cpi.host.process import ENVIRONMENT

_HOLDER = f"""
import errno, fcntl, os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
try:
    fcntl.ioctl(fd, {kernel.FIFREEZE}, 0)
except OSError as error:
    if error.errno != errno.EBUSY:
        sys.exit(error.strerror)
    # A process like this one was killed: only the holder of the disk's lock freezes it.
    fcntl.ioctl(fd, {kernel.FITHAW}, 0)
    fcntl.ioctl(fd, {kernel.FIFREEZE}, 0)
try:
    os.write(1, b"frozen")
    os.read(0, 1)
finally:
    fcntl.ioctl(fd, {kernel.FITHAW}, 0)
"""


@contextmanager
def frozen(target: Path) -> Iterator[None]:
    """Freeze the file system mounted at `target`, flushed; writers wait. Raises CloudError."""
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOLDER, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
        close_fds=False,  # see cpi.host.process: the disk's lock lasts as long as it is frozen
    )
    try:
        if holder.stdout is None or holder.stdout.read(6) != b"frozen":
            _, reason = holder.communicate()
            text = reason.decode(errors="replace").strip()
            raise CloudError(f"cannot freeze the file system at {target}: {text}")
        yield
    finally:
        holder.communicate()
    if holder.returncode:
        raise CloudError(f"the file system at {target} did not stay frozen; try again")


def thaw(target: Path) -> None:
    """Thaw a file system, if it was left frozen."""
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, kernel.FITHAW, 0)
    except OSError:
        return  # EINVAL: it is not frozen
    finally:
        os.close(fd)
