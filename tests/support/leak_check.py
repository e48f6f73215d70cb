"""The last test of each run: the tests leaked nothing on the machine. These are hooks of pytest.

A run has one folder for temporary files, named in the environment of all its processes, and a
separate mount namespace. So its leaks differ from the work of other programs, and the next run
removes what a killed run leaked.
"""

import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from cpi.host import kernel, syscalls
from testing.hosts.private_host import remove_cgroups
from testing.repository import REPOSITORY
from tests.support.machine_snapshot import Processes, Snapshot, changes, is_of_others, snapshot

FOLDER = "BOSH_CPI_TEST_RUN"  # environment variable
PREFIX = "bosh-cpi-tests-"

_NAME = "machine_is_as_it_was"
_SETTLE_SECONDS, _POLL_SECONDS = 30, 0.2
_STALE_SECONDS = 60  # a younger folder may not be locked yet
_BEFORE = pytest.StashKey[Snapshot]()
_RUN = pytest.StashKey["Run"]()


class Run:
    """The folder of this run's temporary files, locked while the run lives."""

    def __init__(self) -> None:
        remove_leaks_of_killed_runs()
        # Pytest keeps the folders of the last runs, for debugging.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.chmod(0o711)  # daemons of other users need their files in it
        self._lock = _locked(self.folder)
        os.environ[FOLDER] = str(self.folder)
        use_folder()

    def end(self) -> None:
        """Remove the folder."""
        tempfile.tempdir = None
        del os.environ[FOLDER]
        _remove(self.folder)
        if self._lock is not None:
            os.close(self._lock)


def use_folder() -> None:
    """Make this process put its temporary files into the folder of the run."""
    tempfile.tempdir = os.environ[FOLDER]


def _locked(folder: Path) -> int | None:
    """Lock the folder; return its descriptor, or None if a live run has it locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # of another user, or just gone
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def remove_leaks_of_killed_runs() -> None:
    """Remove the folders of killed runs, and the cgroups of the hosts in them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        is_old = folder.stat().st_mtime < time.time() - _STALE_SECONDS
        lock = _locked(folder) if is_old else None
        if lock is not None:
            with suppress(OSError):  # one of its processes still runs; the next run removes it
                for host in folder.glob("bosh-cpi-host-*"):
                    remove_cgroups(host.name)
                _remove(folder)
            os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, unless something is mounted in it."""
    if not any(mounted.target.startswith(f"{folder}/") for mounted in syscalls.mounts("self")):
        shutil.rmtree(folder)


def _mount_privately() -> None:
    """Enter a mount namespace, if allowed, so that tests' mounts are not on the machine."""
    clone_newns = 0x20000
    if os.geteuid() == 0 and ctypes.CDLL(None).unshare(clone_newns) == 0:
        syscalls.mount("none", Path("/"), flags=kernel.MS_REC | kernel.MS_PRIVATE)


class MachineAsItWas(pytest.Item):
    """Waits for leaks to go; what ends by itself a moment later is not a leak."""

    def runtest(self) -> None:
        run, before = self.config.stash[_RUN], self.config.stash[_BEFORE]
        end = time.monotonic() + _SETTLE_SECONDS
        while leaks := _leaks(run.folder, before):
            if time.monotonic() > end:
                pytest.fail("\n".join(["the tests have changed the machine:", *leaks]), False)
            time.sleep(_POLL_SECONDS)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name


def _leaks(run: Path, before: Snapshot) -> list[str]:
    after = snapshot(run, REPOSITORY)
    return changes(before, after, partial(is_of_others, Processes.of_machine(run)))


def _is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Start a run, or join one as a worker."""
    if _is_worker(config):
        use_folder()
        return
    config.stash[_RUN] = Run()
    _mount_privately()
    config.stash[_BEFORE] = snapshot(config.stash[_RUN].folder, REPOSITORY)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run."""
    if _RUN in config.stash:
        config.stash[_RUN].end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Count the check as a test, if there are tests."""
    session.testscollected += bool(session.testscollected)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Check for leaks after all fixtures are torn down and all workers have ended."""
    config, failed = session.config, session.testsfailed
    has_run = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if _RUN in config.stash and has_run and not config.option.collectonly:
        item = MachineAsItWas.from_parent(
            session, name=_NAME, path=Path(__file__), nodeid=f"tests/support/leak_check.py::{_NAME}"
        )
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            reporter.currentfspath = None  # it has ended its last line
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        if session.testsfailed > failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
