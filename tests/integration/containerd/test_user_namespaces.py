"""VMs in user namespaces of their own: their ids, and what they see of disks and folders."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testing.hosts.private_host import PrivateHost
from tests.support.containerd.machine import VM, CallFailed, Machine

STORE = "/var/vcap/store"
NETWORKS = {"default": {"type": "dynamic"}}


def first_id(vm: VM) -> int:
    """Return the user id on the host of a VM's root."""
    return int(vm.sh("cat /proc/1/uid_map").split()[1])


def view(vm: VM) -> dict[str, object]:
    rows = json.loads(vm.machine.bosh_cpi("vms", "--json").stdout)
    [row] = [row for row in rows if row["cid"] == vm.cid]
    return dict(row)


def test_each_vm_has_ids_of_its_own_as_long_as_it_exists(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    vm, other = make_vm(), make_vm()
    first = first_id(vm)
    assert first != first_id(other)
    assert view(vm)["first_id"] == first
    assert (machine.host.state / "ids" / str(first)).read_text() == vm.cid
    vm.sh("touch /root/mine; chown 1000:1000 /root/mine")
    machine.call("reboot_vm", vm.cid)
    assert first_id(vm) == first
    assert vm.sh("stat -c %u:%g /root/mine /root") == "1000:1000\n0:0"
    machine.vms.remove(vm)
    vm.delete()
    assert not (machine.host.state / "ids" / str(first)).exists()


def test_a_disk_has_the_same_owners_in_every_vm(
    machine: Machine, make_vm: Callable[..., VM]
) -> None:
    disk, script = machine.create_disk(), f"stat -c %u:%g {STORE}/a {STORE}/b"
    for properties in ({}, {"privileged": True}, {}):
        vm = make_vm(properties=properties)
        vm.wait_for_agent()
        hint = machine.call("attach_disk", vm.cid, disk)
        vm.agent("add_persistent_disk", disk, hint)
        vm.agent("mount_disk", disk)
        vm.sh(f"touch {STORE}/a {STORE}/b; chown 1000:1001 {STORE}/b")
        assert vm.sh(script) == "0:0\n1000:1001"
        vm.agent("unmount_disk", disk)
        machine.call("detach_disk", vm.cid, disk)


def test_folders_of_the_host_keep_their_owners(
    machine: Machine, make_vm: Callable[..., VM], tmp_path: Path
) -> None:
    shared = machine.host.folder / "shared"
    shared.mkdir()
    properties = {"mounts": [{"host": str(shared), "vm": "/mnt/shared", "read_only": False}]}
    vm = make_vm(properties=properties)
    vm.sh("touch /mnt/shared/file; chown 1000:1000 /mnt/shared/file")
    status = (shared / "file").stat()
    assert (status.st_uid, status.st_gid) == (1000, 1000)
    machine.vms.remove(vm)
    vm.delete()
    (shared / "file").unlink()
    shared.rmdir()


def test_what_jobs_of_bosh_do_as_root(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    vm.sh("sysctl -w kernel.shmmax=67108864")  # the director's PostgreSQL
    vm.sh("sysctl -w net.ipv4.ip_forward=1 fs.mqueue.msg_max=20")
    vm.sh("cp /bin/true /root/program && setcap cap_net_bind_service=+ep /root/program || "
          "! command -v setcap")  # routing  # fmt: skip
    vm.sh("unshare --pid --fork --mount-proc mount -t tmpfs none /mnt")  # BPM
    vm.sh("mkdir /sys/fs/cgroup/memory/inner || mkdir /sys/fs/cgroup/inner")
    vm.sh("test -c /dev/fuse && test -c /dev/net/tun")
    with pytest.raises(AssertionError):
        vm.sh("date -s 2001-01-01")


@pytest.fixture
def other_host() -> Iterator[Machine]:
    """Yield a host whose snapshotter stands for a kernel that cannot make user namespaces."""
    with PrivateHost() as host:
        host.write_config(containerd={**host.config()["containerd"], "snapshotter": "native"})
        yield Machine(host)


def test_the_agent_changes_the_flags_of_its_bind_mounts(make_vm: Callable[..., VM]) -> None:
    """Source: bosh-agent, linux_platform, SetupLogDir and linux_mounter, RemountInPlace."""
    vm = make_vm()
    vm.sh("mkdir /var/vcap/data/root_log /root/log; mount --bind /var/vcap/data/root_log /root/log")
    vm.sh("/var/vcap/bosh/bin/mount '' /root/log -o remount -o nodev -o nosuid -o noexec")
    flags = vm.sh("awk '$2 == \"/root/log\" { print $4 }' /proc/mounts").split(",")
    assert {"nodev", "nosuid", "noexec"} <= set(flags)


def test_where_the_host_cannot_do_it(other_host: Machine, runit_image: Path) -> None:
    host = other_host.host
    containerd = {**host.config()["containerd"], "snapshotter": "native"}
    required = {"containerd": {**containerd, "user_namespaces": "required"}}
    stemcell = other_host.call("create_stemcell", str(runit_image), {})
    arguments: tuple[object, ...] = ("agent", stemcell, {}, NETWORKS, [], {})
    strict = host.write_config("strict.json", **required)
    with pytest.raises(CallFailed, match="VMs must run in user namespaces") as failure:
        other_host.call("create_vm", *arguments, config=strict)
    assert failure.value.type == "NotSupported"

    response = host.cpi("create_vm", *arguments)
    assert response["error"] is None, response["error"]
    vm = VM(other_host, *response["result"])
    assert f"{vm.cid} gets no user namespace" in response["log"]
    assert (view(vm)["isolation"], view(vm)["first_id"]) == ("none", None)
    assert vm.sh("cat /proc/1/uid_map").split() == ["0", "0", "4294967295"]
    checks = other_host.bosh_cpi("doctor", "--json", check=False).stdout
    assert "root in a VM can become root on this host" in checks
    vm.delete()
