"""Tells a VM whose init has come up from one whose init ended at once.

An init that lacks something of the host (inotify instances, a cgroup) ends within milliseconds,
and containerd has started it all the same. What one does that has come up is seen by inotify:
systemd makes the folder for its generators when it has all that it needs of the kernel
(manager_new is over), runsvdir opens its folder of services.
"""

import os
import select
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from cpi.host import kernel
from cpi.host.inotify import Inotify
from runtimes.containerd import console_log
from stemcell_convert.inroot import Root

_FIRST_SECOND = 1.0  # seconds; an init that does nothing we know of has come up when it is over
_LAST_WORDS = 1.0  # seconds until the console's logger has written what init printed last

# Its socket for systemctl would be there 10 to 400 ms later, when all generators have run.
_RUN, _SYSTEMD_FOLDER, _SYSTEMD_SIGN = "/run", "/run/systemd", "/run/systemd/generator"
_RUNIT_SERVICES = "/etc/service"


class InitWatch:
    """Watches the init of one VM from before its first instruction. folder: the VM's.

    Without an inotify instance it watches for the end of the init alone.
    """

    def __init__(self, folder: Path, *, systemd: bool) -> None:
        self._folder = folder
        self._systemd = systemd
        self._stack = ExitStack()
        self._inotify: Inotify | None = None
        self._services = -1  # the watch of runit's
        self._log_is_closed = False

    def __enter__(self) -> "InitWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, pid: int) -> None:
        """Start watching the init of this process id."""
        self._process = os.pidfd_open(pid)
        self._stack.callback(os.close, self._process)
        self._root = self._stack.enter_context(Root(Path(f"/proc/{pid}/root")))
        with suppress(OSError):
            self._inotify = Inotify()
            self._stack.callback(self._inotify.close)
            self._inotify.watch(self._folder, kernel.IN_CLOSE_WRITE)
            if self._systemd:
                self._watch(_RUN, kernel.IN_CREATE)
            else:
                self._services = self._watch(_RUNIT_SERVICES, kernel.IN_OPEN)

    def has_come_up(self) -> bool:
        """Wait until the init has come up or has ended; tell whether it has come up."""
        deadline = time.monotonic() + _FIRST_SECOND
        while ready := self._wait(deadline, self._process):
            if self._process in ready:
                return False
            if self._shows_sign():
                break
        return True

    def last_words(self) -> str:
        """Return what an init that has ended printed last."""
        deadline = time.monotonic() + _LAST_WORDS
        while not self._log_is_closed and self._wait(deadline):
            self._events()
        return console_log.last_words(self._folder)

    def _wait(self, deadline: float, *descriptors: int) -> list[int]:
        """Wait for one of these, or the next event; return those that are there by then."""
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        if self._inotify is not None:
            poll.register(self._inotify, select.POLLIN)
        left = max(0.0, deadline - time.monotonic())
        return [descriptor for descriptor, _ in poll.poll(left * 1000)]

    def _shows_sign(self) -> bool:
        events = self._events()
        if not self._systemd:
            return any(watch == self._services for watch, _ in events)
        with suppress(OSError):  # not made yet
            self._watch(_SYSTEMD_FOLDER, kernel.IN_CREATE)
        return self._root.exists(_SYSTEMD_SIGN)

    def _watch(self, path: str, mask: int) -> int:
        """Watch a folder of the VM; no link leads out of it. Raises OSError."""
        descriptor = self._root.folder(path)
        try:
            assert self._inotify is not None  # noqa: S101 - for the type checker
            return self._inotify.watch(Path(f"/proc/self/fd/{descriptor}"), mask)
        finally:
            os.close(descriptor)

    def _events(self) -> set[tuple[int, str]]:
        events = set() if self._inotify is None else self._inotify.events()
        # The logger closes its file when no process has the terminal any more.
        self._log_is_closed |= any(name == console_log.NAME for _, name in events)
        return events
