"""Garbage of a host without a daemon: files of disks, reservations, uploads; and what is none."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpi.config.config import Config
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.errors import CPIError
from cpi.host import locks
from cpi.log import Log
from cpi.model import Garbage
from cpi.upkeep.garbage_collection import Collected, collect_garbage, read_cids
from testing.patience import PATIENCE
from tests.support.fake_config import fake_config, fake_registered
from tests.support.fake_runtime import FakeDisk, FakeRuntime

VM, GONE = "fake-vm-1", "fake-vm-2"


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with fake_registered():
        yield


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "state/vms" / VM).mkdir(parents=True)
    return fake_config(tmp_path, disk_stores={"fast": str(tmp_path / "fast")})


def write(path: Path, text: str = "x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def collect(config: Config, *, certain: bool = False, yes: bool = True) -> Collected:
    collected = collect_garbage(config, Log("error"), yes=yes, only_certain=certain)
    assert collected.failed == {}
    assert collected.removed == (collected.garbage if yes else [])
    return collected


def names(collected: Collected) -> set[str]:
    return {item.name for item in collected.garbage}


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def test_files_of_disks(tmp_path: Path, config: Config) -> None:
    store = DiskStore(folders_of(config))
    default, fast = tmp_path / "state/disks", tmp_path / "fast"
    for folder in (default, fast):
        folder.mkdir()
    store.save(Disk("fake-disk-1", 64, moves=1, store="fast"))
    store.save(Disk("fake-disk-1", 64))
    store.save(Disk("fake-disk-2", 64, attached_to=VM))
    good = {write(fast / "fake-disk-1.raw"), write(default / "fake-disk-2.raw")}
    good |= {str(fast / "fake-disk-1.json"), str(default / "fake-disk-2.json")}
    # Not ours, or damaged, which an operator may repair.
    for name in ("notes.txt", "other-disk-1.raw", "fake-disk-.raw", "fake-disk-9.qcow2"):
        good.add(write(default / name))
    good |= {write(default / "fake-disk-3.json", "{"), write(default / "fake-disk-3.raw")}
    certain = {str(default / "fake-disk-1.json"), write(default / "fake-disk-1.raw")}
    certain |= {write(default / "fake-disk-2.raw.part"), write(fast / "fake-disk-2.json.part")}
    write(default / "fake-disk-2.snapshot.part/disk.raw")
    certain.add(str(default / "fake-disk-2.snapshot.part"))
    unborn = write(default / "fake-disk-4.raw")
    assert names(collect(config, certain=True, yes=False)) == certain
    assert names(collect(config, yes=False)) == {*certain, unborn}
    collect(config)
    assert files(default) | files(fast) == good
    assert collect(config).garbage == []


def test_what_a_call_is_at_work_on_is_left_alone(tmp_path: Path, config: Config) -> None:
    part = write(tmp_path / "state/disks/fake-disk-2.raw.part")
    with locks.hold(str(tmp_path / "run"), "fake-disk-2", log=Log("error")):
        assert collect(config).garbage == []
    assert names(collect(config)) == {part}


def test_a_call_that_begins_after_the_look_is_left_alone(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding and removing, a call takes the lock."""
    removed: list[str] = []
    item = Garbage("thing", "one", "orphaned", "fake-vm-7", lambda: removed.append("one"))
    begun, end = threading.Event(), threading.Event()

    def call() -> None:
        with locks.hold(str(tmp_path / "run"), "fake-vm-7", log=Log("error")):
            begun.set()
            assert end.wait(PATIENCE)

    thread = threading.Thread(target=call)

    def garbage(_self: FakeRuntime) -> list[Garbage]:
        thread.start()
        assert begun.wait(PATIENCE)
        return [item]

    monkeypatch.setattr(FakeRuntime, "garbage", garbage)
    try:
        collected = collect_garbage(config, Log("error"), yes=True)
    finally:
        end.set()
    thread.join()
    assert (collected.garbage, collected.removed, removed) == ([item], [], [])


def test_reservations_of_vms_that_are_gone(tmp_path: Path, config: Config) -> None:
    state = tmp_path / "state"
    good = {
        write(state / "addresses/bosh0/10.0.0.5", f"{VM}\r\neth0"),
        write(state / "addresses/bosh0/last_reserved_ip.0", "10.0.0.6"),
        write(state / "addresses/bosh0/lock", ""),
        write(state / "addresses/bosh0/10.0.0.7", "other-vm-1\r\neth0"),
        write(state / "ports/tcp-80", VM),
    }
    gone = {
        write(state / "addresses/bosh0/10.0.0.6", f"{GONE}\r\neth0"),
        write(state / "addresses/libvirt-x/10.0.0.6", GONE),
        write(state / "ports/tcp-81", GONE),
        write(state / f"ports/.{GONE}", GONE),
    }
    assert names(collect(config, certain=True)) == gone
    assert files(state) == good


def test_uploads(tmp_path: Path, config: Config) -> None:
    uploads, scratch = tmp_path / "state/uploads", tmp_path / "state/scratch"
    for name in ("old", "young"):
        write(uploads / name / "image")
    for path in (uploads / "old/image", uploads / "old"):
        os.utime(path, (0, 0))
    write(scratch / "fake-disk-5")
    assert names(collect(config, certain=True)) == {
        str(uploads / "old"),
        str(scratch / "fake-disk-5"),
    }
    assert files(tmp_path / "state") == {str(uploads / "young/image")}


def test_records_of_what_is_gone(tmp_path: Path, config: Config) -> None:
    world = FakeRuntime(config, Log("error")).world
    world.disks["fake-disk-1"] = FakeDisk(64)
    clients = tmp_path / "state/clients"
    good = {write(clients / f"guest/{name}") for name in ("fake-disk-1", "fake-stemcell-1")}
    good.add(write(clients / "guest/pending-fake-vm-3"))
    for name in ("guest/fake-vm-8", "local/fake-disk-8"):
        write(clients / name)
    assert collect(config, certain=True).garbage == []
    assert names(collect(config)) == {"guest/fake-vm-8", "local/fake-disk-8"}
    assert files(clients) == good


def test_locks_of_killed_calls(tmp_path: Path, config: Config) -> None:
    write(tmp_path / "run/locks" / GONE)
    assert names(collect(config, certain=True)) == {GONE}
    assert files(tmp_path / "run") == set()


def test_a_runtime_that_fails_keeps_nothing_else(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeRuntime, "garbage", lambda _: 1 // 0)
    port = write(tmp_path / "state/ports/tcp-81", GONE)
    collected = collect_garbage(config, Log("error"), yes=True)
    assert [item.name for item in collected.removed] == [port]
    assert list(collected.failed) == ["the runtime fake"]
    assert collected.failed["the runtime fake"].startswith("ZeroDivisionError")


def test_cids_are_found_in_whatever_is_around_them() -> None:
    text = '{"vm_cid": "fake-vm-1f0c"}\n| x | kvm-vm-22 |\nfake-disk-7 not-a-vm-? fake-vm-3'
    assert read_cids(text) >= {"fake-vm-1f0c", "kvm-vm-22", "fake-vm-3"}
    with pytest.raises(CPIError, match="has no CID"):
        read_cids("Tables: []")
