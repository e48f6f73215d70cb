"""Logs in a VM's root file system, which may not run.

It is read as an untrusted tree: no link leads out of it.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cpi.host import kernel, syscalls
from cpi.views import LogPart, LogPlaces
from runtimes.containerd import rootfs
from stemcell_convert.inroot import Root

if TYPE_CHECKING:
    from runtimes.containerd.api import types_pb2

Result = TypeVar("Result")

# The agent's own, as runit's svlogd writes it; then the system's. BOSH's agent binds /var/log to
# root_log (bosh-agent, SetupLogDir), so in a VM that does not run they are there.
_AGENT = "/var/vcap/bosh/log/current"
_SYSTEM = ("/var/log/messages", "/var/log/syslog")
_DATA = "/var/vcap/data"
_ROOT_LOG = f"{_DATA}/root_log"
_JOURNAL = "/usr/bin/journalctl"


def stopped(
    mounts: "Sequence[types_pb2.Mount]",
    mount_point: Path,
    data: Path,
    work: Callable[[Root], Result],
) -> Result:
    """Look into a VM that does not run, its /var/vcap/data in place."""

    def look(root: Root) -> Result:
        # By a descriptor: the path may be a link to anywhere.
        with suppress(FileNotFoundError):
            target = root.folder(_DATA)
            try:
                syscalls.mount(str(data), Path(f"/proc/self/fd/{target}"), flags=kernel.MS_BIND)
            finally:
                os.close(target)
        return work(root)

    return rootfs.enter(mounts, mount_point, look)


def places(root: Root, *, runs: bool, systemd: bool) -> LogPlaces:
    """Return the logs that exist."""
    system = _SYSTEM if runs else (*(f"{_ROOT_LOG}/{Path(p).name}" for p in _SYSTEM), *_SYSTEM)
    files = tuple(path for path in (_AGENT, *system) if root.exists(path))
    if runs and systemd and root.exists(_JOURNAL):
        return LogPlaces(files, (_JOURNAL, "--no-pager", "--output=short-iso"))
    return LogPlaces(files)


def part(root: Root, path: str, after: LogPart | None, limit: int) -> LogPart | None:
    """Read a log (Runtime.read_log); one that was replaced or truncated, from its start."""
    try:
        with root.open(path) as file:
            status = os.fstat(file.fileno())
            which = (status.st_dev, status.st_ino)
            start = max(0, status.st_size - limit)
            if after is not None:
                start = after.end if which == after.file and after.end <= status.st_size else 0
            file.seek(start)
            data = file.read(limit)
            return LogPart(data, start + len(data), which)
    except (FileNotFoundError, NotADirectoryError):
        return None
