"""libvirt on another machine, over TLS: the contract, and disks in guests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cpi.errors import NotSupported
from tests.support.containerd.disk_actions import attach_and_mount, unmount_and_detach
from tests.support.containerd.machine import BOSH_CPI, failing
from tests.support.contract_lab import Cpi, Lab, MetadataOf
from tests.support.contract_suite import RuntimeContract
from tests.support.libvirt.kvm_machine import Guest
from tests.support.libvirt.remote import RemoteMachine, own_state, remote_machine
from tests.support.operator_contract import OperatorContract

DISK = 128  # MiB
PARTITION_OFFSET = 1 << 20  # bytes

# Is idle for longer than libvirt's keepalive timeout here, and then calls libvirt.
IDLE = """
import sys, time
from cpi.log import Log
from runtimes.libvirt.client import Connection
connection = Connection(sys.argv[1], Log("error"))
first = connection.raw
time.sleep(12)
print(isinstance(connection.domains(), list), connection.raw is first)
connection.close()
"""


@pytest.fixture(scope="module")
def remote(_can_run: None) -> Iterator[RemoteMachine]:
    with remote_machine() as machine:
        before = machine.leftovers()
        yield machine
        machine.configure()
        machine.delete_all()
        assert machine.leftovers() == before


@pytest.fixture(scope="module")
def remote_stemcell(remote: RemoteMachine, image: Path) -> str:
    return str(remote.call("create_stemcell", str(image), {}))


@pytest.fixture(scope="module")
def guests(remote: RemoteMachine, remote_stemcell: str) -> list[Guest]:
    """Return two VMs with listening agents."""
    guests = [remote.create_guest(remote_stemcell) for _ in range(2)]
    for guest in guests:
        guest.wait_for_agent()
    return guests


@pytest.fixture
def disk(remote: RemoteMachine) -> str:
    remote.configure()
    return remote.create_disk(DISK)


class TestRemote(RuntimeContract, OperatorContract):
    """Everything that the contract asks, by processes that share nothing with libvirt."""

    preconfigured: ClassVar[bool] = False

    @pytest.fixture
    def cpi(self, remote: RemoteMachine) -> Cpi:
        remote.configure()
        call: Callable[..., dict[str, Any]] = remote.host.cpi
        return call

    @pytest.fixture
    def stemcell(self, image: Path) -> Path:
        return image

    @pytest.fixture
    def metadata_of(self, remote: RemoteMachine) -> MetadataOf:
        return remote.metadata_of

    @pytest.fixture
    def verb(self, remote: RemoteMachine) -> Callable[..., Any]:
        return remote.verb

    def test_a_vm_that_was_shut_down_is_restored(self, lab: Lab, verb: Callable[..., Any]) -> None:
        """It is on a machine that does not stop with this one."""
        with pytest.raises(NotSupported, match="is on another machine"):
            verb("shut_down", lab.vm(), 5)


def store_mib(guest: Guest) -> int:
    """Return the size of the mounted persistent disk's file system."""
    return int(guest.sh("df -P -m /var/vcap/store | awk 'END {print $2}'"))


def test_a_disk_goes_from_vm_to_vm_with_its_data_and_grows(
    remote: RemoteMachine, guests: list[Guest], disk: str
) -> None:
    first, second = guests
    attach_and_mount(first, disk)
    assert store_mib(first) < DISK
    first.sh("echo one > /var/vcap/store/mark; sync")
    unmount_and_detach(first, disk)
    remote.call("resize_disk", disk, 3 * DISK)
    attach_and_mount(second, disk)
    assert second.sh("cat /var/vcap/store/mark") == "one"
    assert 2 * DISK < store_mib(second) < 3 * DISK
    remote.call("resize_disk", disk, 5 * DISK)  # while the VM runs with it
    unmount_and_detach(second, disk)
    attach_and_mount(first, disk)
    assert first.sh("cat /var/vcap/store/mark") == "one"
    assert store_mib(first) > 4 * DISK
    unmount_and_detach(first, disk)
    assert remote.kept_by_cpi() == []


def test_a_snapshot_has_what_the_disk_had(
    remote: RemoteMachine, guests: list[Guest], disk: str
) -> None:
    guest = guests[0]
    attach_and_mount(guest, disk)
    guest.sh("echo before > /var/vcap/store/mark; sync")
    running = remote.call("snapshot_disk", disk, {"deployment": "one"})
    guest.sh("echo between > /var/vcap/store/mark; sync")
    unmount_and_detach(guest, disk)
    free = remote.call("snapshot_disk", disk, {})
    attach_and_mount(guest, disk)
    guest.sh("echo after > /var/vcap/store/mark; sync")
    unmount_and_detach(guest, disk)
    remote.call("delete_disk", disk)
    assert content(remote, running) == "before"
    assert content(remote, free) == "between"
    for snapshot in (running, free):
        remote.call("delete_snapshot", snapshot)
    assert not [name for name in remote.volumes() if "snapshot" in name]


def content(remote: RemoteMachine, snapshot: str) -> str:
    """Return the file `mark` in a snapshot, read where libvirt has it."""
    source, raw = remote.pool / f"{snapshot}.snapshot", remote.host.folder / "read.raw"
    remote.host.run("qemu-img", "convert", "-O", "raw", str(source), str(raw))
    # Mounted, since the last writes may be only in the journal.
    remote.host.run("mkdir", "-p", "/run/read")
    options = f"loop,offset={PARTITION_OFFSET}"
    remote.host.run("mount", "-t", "ext4", "-o", options, str(raw), "/run/read")
    try:
        return str(remote.host.run("cat", "/run/read/mark").stdout).strip()
    finally:
        remote.host.run("umount", "/run/read")
        raw.unlink()


def test_nothing_of_one_machine_is_named_on_the_other(
    remote: RemoteMachine, guests: list[Guest], disk: str
) -> None:
    remote.call("attach_disk", guests[0].cid, disk)
    document = remote.virsh("dumpxml", guests[0].cid)
    remote.call("detach_disk", guests[0].cid, disk)
    assert f"{remote.pool}/{disk}.raw" in document
    assert str(remote.host.state) not in document
    assert not list(remote.host.state.rglob("*"))  # as libvirt sees it
    assert not (own_state(remote.host) / "disks").exists()


def test_the_console_comes_through_the_pool(remote: RemoteMachine, guests: list[Guest]) -> None:
    words = (str(BOSH_CPI), "--config", str(remote.configure()), "console", guests[0].cid)
    assert "listening on port" in remote.host.run(*remote.host.around, *words).stdout


def test_another_machine_uses_the_same_libvirt(
    remote: RemoteMachine, remote_stemcell: str, guests: list[Guest], disk: str
) -> None:
    remote.call("attach_disk", guests[0].cid, disk)
    remote.configure(state_dir="/run/another-state", run_dir="/run/another-run")
    third = remote.create_guest(remote_stemcell)
    assert third.ip not in [guest.ip for guest in guests]
    taken = {"type": "manual", "ip": guests[1].ip, "netmask": "255.255.0.0"}
    error = failing(lambda: remote.create_guest(remote_stemcell, networks={"default": taken}))
    assert guests[1].cid in error.message
    assert remote.call("get_disks", guests[0].cid) == [disk]
    remote.call("detach_disk", guests[0].cid, disk)
    remote.call("delete_disk", disk)
    remote.configure()
    remote.call("delete_vm", third.cid)
    assert not [name for name in remote.volumes() if third.cid in name]


def test_what_a_vanished_vm_had_is_free(
    remote: RemoteMachine, remote_stemcell: str, guests: list[Guest], disk: str
) -> None:
    gone = remote.create_guest(remote_stemcell)
    remote.call("attach_disk", gone.cid, disk)
    remote.virsh("destroy", gone.cid)
    remote.virsh("undefine", gone.cid)
    remote.call("attach_disk", guests[0].cid, disk)
    assert remote.call("get_disks", guests[0].cid) == [disk]
    remote.call("detach_disk", guests[0].cid, disk)


def test_a_disk_of_this_machine_is_refused(remote: RemoteMachine, guests: list[Guest]) -> None:
    remote.configure(runtime="containerd")
    local = remote.create_disk(64)
    error = failing(lambda: remote.call("attach_disk", guests[0].cid, local))
    remote.call("delete_disk", local)
    remote.configure()
    assert error.type == "NotSupported"
    assert local in error.message
    assert "a file of this machine" in error.message


def test_what_only_files_of_this_machine_can_have_is_not_supported(
    remote: RemoteMachine, disk: str
) -> None:
    remote.configure(disk_stores={"fast": "/fast"})
    refused = [
        failing(lambda: remote.call("create_disk", 64, {"store": "fast"}, None)),
        failing(lambda: remote.call("create_disk", 64, {"preallocate": True}, None)),
        failing(lambda: remote.call("update_disk", disk, DISK, {"store": "fast"})),
        failing(lambda: remote.call("update_disk", disk, DISK, {"preallocate": True})),
        failing(lambda: remote.call("update_disk", disk, DISK, {"filesystem": "xfs"})),
    ]
    assert {error.type for error in refused} == {"NotSupported"}


def test_too_much_metadata_is_refused_and_changes_nothing(remote: RemoteMachine, disk: str) -> None:
    remote.call("set_disk_metadata", disk, {"deployment": "é" * 200})
    error = failing(lambda: remote.call("set_disk_metadata", disk, {"deployment": "x" * 4096}))
    assert error.type == "CloudError"
    assert disk in error.message
    facts = (remote.pool / f"{disk}.facts").read_bytes()
    assert (len(facts), b"xxx" in facts) == (4096, False)


def test_a_volume_that_is_not_the_disk_is_refused(
    remote: RemoteMachine, guests: list[Guest], disk: str
) -> None:
    other = remote.create_disk(DISK)
    mine, theirs = (remote.pool / f"{cid}.raw" for cid in (disk, other))
    good = mine.read_bytes()
    problems = {"another disk": theirs.read_bytes(), "truncated": good[: 1 << 20]}
    for words, damaged in problems.items():
        mine.write_bytes(damaged)
        error = failing(lambda: remote.call("attach_disk", guests[0].cid, disk))
        assert (error.type, words in error.message) == ("CloudError", True), error.message
    mine.write_bytes(good)
    assert remote.call("attach_disk", guests[0].cid, disk)
    remote.call("detach_disk", guests[0].cid, disk)


def test_what_a_killed_call_left_here_is_removed(remote: RemoteMachine, disk: str) -> None:
    left = own_state(remote.host) / "scratch" / disk
    left.write_bytes(b"left")
    remote.create_disk(64)
    assert not left.exists()


def test_a_connection_outlives_other_work(remote: RemoteMachine) -> None:
    host = remote.host
    done = host.run(*host.around, sys.executable, "-c", IDLE, remote.uri())
    assert done.stdout.split() == ["True", "True"]


def test_certificates_are_asked_for(remote: RemoteMachine) -> None:
    nothing = remote.host.folder / "pki" / "nothing"
    nothing.mkdir()
    (nothing / "cacert.pem").write_bytes((remote.certificates.folder / "cacert.pem").read_bytes())
    for client in (nothing, remote.certificates.stranger(), Path("/nowhere")):
        uri = remote.uri(client)
        remote.configure({"uri": uri})
        error = failing(lambda: remote.call("has_vm", "kvm-vm-0000000000000000"))
        assert (error.type, error.ok_to_retry) == ("CloudError", False), error.message
        assert f"connecting to {uri}" in error.message
        assert "client certificate" in error.message
    remote.configure()
