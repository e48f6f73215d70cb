"""Inits that come up, that end, and that do nothing we know of: as processes of this host."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpi.host import syscalls
from runtimes.containerd import console_log, init_watch
from runtimes.containerd.init_watch import InitWatch
from testing.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="openat2 in /proc/PID/root needs root")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both inits show their signs below tmp_path."""
    for name in ("services", "run", "vm"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(init_watch, "_RUNIT_SERVICES", f"{tmp_path}/services")
    monkeypatch.setattr(init_watch, "_RUN", f"{tmp_path}/run")
    monkeypatch.setattr(init_watch, "_SYSTEMD_FOLDER", f"{tmp_path}/run/systemd")
    monkeypatch.setattr(init_watch, "_SYSTEMD_SIGN", f"{tmp_path}/run/systemd/generator")


@contextmanager
def started(folder: Path, script: str, *, systemd: bool) -> Iterator[InitWatch]:
    """Yield the watch of a process that waits before it runs a script, and is let go on."""
    held = ["sh", "-c", f"read go; cd {folder}; {script}"]
    process = subprocess.Popen(held, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with InitWatch(folder / "vm", systemd=systemd) as watch:
        watch.begin(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        try:
            yield watch
        finally:
            process.kill()
            process.wait(PATIENCE)
            process.stdin.close()


@pytest.mark.parametrize(
    ("systemd", "script"),
    [
        (False, "ls services; exec sleep 600"),
        (True, "mkdir run/systemd run/other; touch run/systemd/generator; exec sleep 600"),
        (
            True,
            "cd run; mkdir systemd; touch systemd/units systemd/generator; exec sleep 600",
        ),
    ],
)
def test_an_init_that_comes_up_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: bool, script: str
) -> None:
    monkeypatch.setattr(init_watch, "_FIRST_SECOND", float(PATIENCE))
    with started(tmp_path, script, systemd=systemd) as watch:
        assert watch.has_come_up()


@pytest.mark.parametrize("systemd", [False, True])
def test_an_init_that_ends_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: bool
) -> None:
    monkeypatch.setattr(init_watch, "_FIRST_SECOND", float(PATIENCE))
    script = "mkdir run/systemd; echo no inotify >vm/console.log; exit 255"
    with started(tmp_path, script, systemd=systemd) as watch:
        assert not watch.has_come_up()
        assert watch.last_words() == "no inotify"


def test_last_words_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logger may write them when init has ended."""
    monkeypatch.setattr(init_watch, "_LAST_WORDS", float(PATIENCE))
    with started(tmp_path, "exit 1", systemd=False) as watch:
        assert not watch.has_come_up()
        log = tmp_path / "vm" / console_log.NAME
        late = subprocess.Popen(["sh", "-c", f"exec >{log}; sleep 0.2; echo late"])
        assert watch.last_words() == "late"
        assert late.wait(PATIENCE) == 0


def test_an_init_that_does_nothing_we_know_of_has_come_up_after_a_second(tmp_path: Path) -> None:
    with started(tmp_path, "touch run/other; exec sleep 600", systemd=True) as watch:
        began = time.monotonic()
        assert watch.has_come_up()
        assert time.monotonic() - began > 0.5


def test_without_an_inotify_instance_an_end_is_still_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(syscalls, "inotify_init", none_left)
    monkeypatch.setattr(init_watch, "_LAST_WORDS", 0.0)
    with started(tmp_path, "exit 1", systemd=True) as watch:
        assert not watch.has_come_up()
        assert watch.last_words() == ""
