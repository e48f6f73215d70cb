"""Locks: across threads and processes, in one order, leaving nothing."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpi.errors import CPIError
from cpi.host.locks import hold, is_held, is_locked
from cpi.log import Log
from testing.patience import PATIENCE
from testing.repository import REPOSITORY
from tests.support.processes import ended

VM = "containerd-vm-1"
DISK = "containerd-disk-1"

HOLDER = f"""
import sys
from cpi.host.locks import hold
from cpi.log import Log
with hold(sys.argv[1], "{VM}", log=Log("error")):
    print("held", flush=True)
    sys.stdin.read()
"""


def files(run_dir: Path) -> list[str]:
    """Return what the locks' folder holds."""
    return sorted(path.name for path in (run_dir / "locks").iterdir())


def test_nothing_is_left(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with hold(str(run_dir), DISK, VM, VM, log=Log("error")):
        assert files(run_dir) == [DISK, VM]
        for folder in (run_dir, run_dir / "locks"):
            assert folder.stat().st_mode & 0o777 == 0o700
        assert (run_dir / "locks" / VM).stat().st_mode & 0o777 == 0o600
    assert files(run_dir) == []


def test_released_on_errors(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), hold(str(tmp_path), VM, log=Log("error")):
            raise error
    assert files(tmp_path) == []


@contextmanager
def holder(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the VM's lock until its stdin ends."""
    with ended(
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


class Waiting(Log):
    """A log that signals when a call waits."""

    def __init__(self) -> None:
        super().__init__("error")
        self.waits = threading.Semaphore(0)

    def info(self, message: str) -> None:
        assert message == f"waiting for another call on {VM}"
        self.waits.release()


def test_another_process_is_waited_for(tmp_path: Path) -> None:
    log = Waiting()
    held = threading.Event()

    def wait_for_it() -> None:
        with hold(str(tmp_path), VM, log=log):
            held.set()

    with holder(tmp_path) as process:
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert log.waits.acquire(timeout=PATIENCE)
        assert not held.is_set()
        with hold(str(tmp_path), DISK, log=Log("error")):  # others are free meanwhile
            pass
        process.communicate("")
        thread.join(PATIENCE)
    assert held.is_set()
    assert files(tmp_path) == []


def test_a_killed_holder_blocks_no_other(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert files(tmp_path) == [VM]
    with hold(str(tmp_path), VM, log=Log("error")):
        pass
    assert files(tmp_path) == []


def test_many_threads_take_turns(tmp_path: Path) -> None:
    """A call that waits for a file that is unlinked meanwhile must not share the lock."""
    inside: list[int] = []
    counts: list[int] = []

    def work() -> None:
        for _ in range(25):
            with hold(str(tmp_path), DISK, VM, log=Log("error")):
                inside.append(1)
                counts.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert counts == [1] * 200
    assert files(tmp_path) == []


def test_vm_before_disk_so_that_its_holder_may_take_disks(tmp_path: Path) -> None:
    log = Waiting()

    def attach() -> None:
        with hold(str(tmp_path), DISK, VM, log=log):
            pass

    thread = threading.Thread(target=attach, daemon=True)
    with hold(str(tmp_path), VM, log=Log("error")):
        thread.start()
        assert log.waits.acquire(timeout=PATIENCE)
        with hold(str(tmp_path), DISK, log=Log("error")):  # would wait for ever the other way round
            pass
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("odd", ["", ".", "..", "a/b", "/etc/x"])
def test_a_lock_is_no_path(tmp_path: Path, odd: str) -> None:
    with (
        pytest.raises(ValueError, match="named by a validated CID"),
        hold(str(tmp_path), odd, log=Log()),
    ):
        pass


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    os.symlink(tmp_path / "target", tmp_path / "locks" / VM)
    with pytest.raises(CPIError, match="cannot lock in"), hold(str(tmp_path), VM, log=Log("error")):
        pass
    assert not (tmp_path / "target").exists()


def test_unusable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(CPIError, match="cannot lock in"),
        hold(str(tmp_path / "run"), VM, log=Log("error")),
    ):
        pass


def test_whether_a_call_is_at_work(tmp_path: Path) -> None:
    run_dir = str(tmp_path)
    assert not is_held(run_dir, "kvm-vm-1")
    with hold(run_dir, "kvm-vm-1", log=Log("error")):
        assert is_held(run_dir, "kvm-vm-1")
        assert not is_held(run_dir, "kvm-vm-2")
    assert not is_held(run_dir, "kvm-vm-1")
    (tmp_path / "locks" / "kvm-vm-1").touch()  # of a process that was killed
    assert not is_held(run_dir, "kvm-vm-1")


def test_folders_are_locked_too_and_what_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert not is_locked(tmp_path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert is_locked(tmp_path)
    os.close(descriptor)
    assert not is_locked(tmp_path / "gone")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        is_locked(tmp_path / "link")
