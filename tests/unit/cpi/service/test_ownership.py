"""Quotas hold, also for many processes at once, and killed ones do not count for ever."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cpi import cid
from cpi.errors import CloudError, CPIError
from cpi.service.ownership import Ownership, OwnershipRecord, QuotaUsage
from tests.support.fake_config import fake_registered
from tests.support.service_clients import Client, Failed, client

MANY = 20

# Not spawned: a child has the fake runtime's world as it is.
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with fake_registered():
        yield


def limited(folder: Path, **quotas: float) -> Client:
    return client(folder, guest={"quotas": quotas})


@pytest.mark.parametrize(
    ("quota", "limit", "properties", "reason"),
    [
        ("vms", 2, {}, "2 of 2 are in use, and this takes 1 more"),
        ("cpu", 1.2, {"cpu": 0.6}, "1.2 of 1.2 CPUs are in use, and this takes 0.6 more"),
        ("memory", 512, {"memory": 256}, "512 of 512 MiB are in use, and this takes 256 more"),
        ("disk", 250, {"ephemeral_disk": 100, "root_disk": 25}, "250 of 250 MiB are in use"),
    ],
)
def test_vms_within_their_quota(
    tmp_path: Path, quota: str, limit: float, properties: dict[str, float], reason: str
) -> None:
    guest = limited(tmp_path, **{quota: limit})
    vms = [guest.vm(properties), guest.vm(properties)]
    error = guest.fails("create_vm", *guest.arguments(guest.stemcell(), properties))
    assert (error.type, error.ok_to_retry) == ("VMCreationFailed", False)
    assert f"the host's rule service.clients.guest.quotas.{quota} " in error.message
    assert reason in error.message
    guest.call("delete_vm", vms[0])
    assert guest.vm(properties)


@pytest.mark.parametrize(
    ("quota", "missing"), [("cpu", "cpu"), ("memory", "memory"), ("disk", "ephemeral_disk")]
)
def test_what_is_counted_has_to_be_limited(tmp_path: Path, quota: str, missing: str) -> None:
    guest = limited(tmp_path, **{quota: 10_000})
    error = guest.fails("create_vm", *guest.arguments(guest.stemcell()))
    assert error.type == "VMCreationFailed"
    assert error.message == (
        f"the host's rule service.clients.guest.quotas.{quota} needs to know what the VM takes; "
        f"set cloud_properties.{missing}"
    )


def test_disks_snapshots_and_growth_share_the_disk_quota(tmp_path: Path) -> None:
    guest = limited(tmp_path, disk=300)
    disk = guest.disk(100)
    snapshot = guest.call("snapshot_disk", disk, {})
    assert guest.fails("resize_disk", disk, 201).type == "NoDiskSpace"
    assert guest.fails("update_disk", disk, 201, {}).type == "NoDiskSpace"
    guest.call("resize_disk", disk, 200)
    calls: dict[str, list[Any]] = {"create_disk": [1, {}, None], "snapshot_disk": [disk, {}]}
    for method, arguments in calls.items():
        error = guest.fails(method, *arguments)
        assert error.type == "NoDiskSpace"
        assert "service.clients.guest.quotas.disk does not allow" in error.message
    assert guest.fails("resize_disk", disk, 50).type == "NotSupported"
    guest.call("delete_snapshot", snapshot)
    assert guest.fails("create_disk", 101, {}, None).type == "NoDiskSpace"
    small = guest.disk(100)
    guest.call("delete_disk", disk)
    assert guest.call("update_disk", small, 300, {})


def test_stemcells_are_counted_once(tmp_path: Path) -> None:
    guest = limited(tmp_path, stemcells=2)
    guest.stemcell()
    assert guest.stemcell() == guest.stemcell()
    guest.stemcell(b"another")
    with pytest.raises(Failed, match=r"quotas\.stemcells does not allow this: 2 of 2"):
        guest.stemcell(b"a third")


def test_a_lowered_quota_takes_nothing_away_and_allows_what_takes_less(tmp_path: Path) -> None:
    guest = client(tmp_path)
    disk = guest.disk(200)
    lowered = limited(tmp_path, disk=100)
    assert lowered.call("has_disk", disk) is True
    lowered.call("resize_disk", disk, 200)
    assert lowered.fails("create_disk", 1, {}, None).type == "NoDiskSpace"
    lowered.call("delete_disk", disk)


def in_processes(work: Any) -> list[Any]:
    """Run `work(number)` in many processes at the same moment and return what each gave."""
    start = FORK.Barrier(MANY)

    def run(number: int, answer: Any) -> None:
        start.wait()
        try:
            answer.send(work(number))
        except Failed as error:
            answer.send(error.type)
        os._exit(0)

    pipes = [FORK.Pipe(duplex=False) for _ in range(MANY)]
    processes = [
        FORK.Process(target=run, args=(number, pipe[1])) for number, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    answers = [pipe[0].recv() for pipe in pipes]
    for process in processes:
        process.join()
    return answers


def test_many_processes_at_once_do_not_go_over_a_quota(tmp_path: Path) -> None:
    guest = limited(tmp_path, memory=700)
    arguments = guest.arguments(guest.stemcell(), {"memory": 100})
    made = in_processes(lambda _: guest.call("create_vm", *arguments)[0])
    assert made.count("VMCreationFailed") == MANY - 7
    vms = {cid for cid in made if cid != "VMCreationFailed"}
    assert len(vms) == 7
    assert vms < set(guest.records())
    assert not [name for name in guest.records() if name.startswith(("pending", "fresh"))]


def test_many_threads_at_once_do_not_go_over_a_quota(tmp_path: Path) -> None:
    guest = limited(tmp_path, disk=700)
    made: list[str] = []
    refused: list[Failed] = []

    def make() -> None:
        try:
            made.append(guest.disk(100))
        except Failed as error:
            refused.append(error)

    threads = [Thread(target=make) for _ in range(MANY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (7, MANY - 7)
    assert guest.records() == sorted(made)


def test_many_resizes_at_once_do_not_go_over_a_quota(tmp_path: Path) -> None:
    guest = limited(tmp_path, disk=MANY * 10 + 70)
    disks = [guest.disk(10) for _ in range(MANY)]

    def grow(number: int) -> str:
        return str(guest.call("resize_disk", disks[number], 20))

    assert sorted(in_processes(grow)) == ["NoDiskSpace"] * (MANY - 7) + ["None"] * 7
    assert Ownership(Path(guest.config.text("state_dir")), "guest").used().disk == MANY * 10 + 70


def allowed_up_to(limit: int) -> Any:
    def check(used: QuotaUsage, record: OwnershipRecord) -> None:
        if used.plus(record).vms > limit:
            raise CloudError("too many")

    return check


def test_what_is_being_made_counts_until_its_maker_is_killed(tmp_path: Path) -> None:
    ownership = Ownership(tmp_path, "guest")
    ours, theirs = FORK.Pipe()

    def make() -> None:
        with Ownership(tmp_path, "guest").reserve(OwnershipRecord(cid.VM), allowed_up_to(1)):
            theirs.send("reserved")
            signal.pause()

    maker = FORK.Process(target=make)
    maker.start()
    assert ours.recv() == "reserved"
    assert ownership.used().vms == 1
    with pytest.raises(CloudError), ownership.reserve(OwnershipRecord(cid.VM), allowed_up_to(1)):
        pass
    assert maker.pid
    os.kill(maker.pid, signal.SIGKILL)
    wait([maker.sentinel])
    maker.join()
    assert len(list((tmp_path / "clients" / "guest").iterdir())) == 1
    with ownership.reserve(OwnershipRecord(cid.VM), allowed_up_to(1)) as name:
        name("fake-vm-1")
    assert [path.name for path in (tmp_path / "clients" / "guest").iterdir()] == ["fake-vm-1"]


def test_a_damaged_record_is_named_and_not_passed_over(tmp_path: Path) -> None:
    ownership = Ownership(tmp_path, "guest")
    with ownership.reserve(OwnershipRecord(cid.VM), allowed_up_to(1)) as name:
        name("fake-vm-1")
    record = tmp_path / "clients" / "guest" / "fake-vm-1"
    for damage in ("", "{", "[]", '{"kind": "vm"}', '{"kind": "vm", "runtimes": [], "x": 1}'):
        record.write_text(damage)
        with pytest.raises(CPIError, match=str(record)):
            ownership.used()
        with pytest.raises(CPIError, match=str(record)):
            ownership.find("fake-vm-1", cid.VM)


@pytest.mark.parametrize("odd", ["../guest", "..", ".", "", "a/b", "fake-vm-1/../x", "pending-1"])
def test_only_a_cid_becomes_a_path(tmp_path: Path, odd: str) -> None:
    ownership = Ownership(tmp_path, "guest")
    assert ownership.find(odd, cid.VM) is None
    assert ownership.other_owners(odd, cid.VM) == []
