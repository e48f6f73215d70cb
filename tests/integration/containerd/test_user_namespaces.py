"""VMs in user namespaces of their own: their ids, and what they see of disks and folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.containerd.machine import VM, CallFailed, Machine

STORE = "/var/vcap/store"


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
    vm.sh("ip link add dummy0 type dummy && ip address add 169.254.0.2/32 dev dummy0")  # bosh-dns
    vm.sh("cp /bin/true /root/program && setcap cap_net_bind_service=+ep /root/program || "
          "! command -v setcap")  # routing  # fmt: skip
    vm.sh("unshare --pid --fork --mount-proc mount -t tmpfs none /mnt")  # BPM
    vm.sh("mkdir /sys/fs/cgroup/memory/inner || mkdir /sys/fs/cgroup/inner")
    vm.sh("test -c /dev/fuse && test -c /dev/net/tun")
    with pytest.raises(AssertionError):
        vm.sh("date -s 2001-01-01")


def test_where_the_host_cannot_do_it(machine: Machine, runit_image: Path, clean: None) -> None:
    """Another snapshotter than overlayfs stands for a kernel that cannot."""
    containerd = {**machine.host.config()["containerd"], "snapshotter": "native"}
    auto = machine.host.write_config("auto.json", containerd=containerd)
    required = machine.host.write_config(
        "required.json", containerd={**containerd, "user_namespaces": "required"}
    )
    stemcell = machine.call("create_stemcell", str(runit_image), {}, config=auto)
    arguments = ("agent", stemcell, {}, {"default": {"type": "dynamic"}}, [], {})
    with pytest.raises(CallFailed, match="VMs must run in user namespaces") as failure:
        machine.call("create_vm", *arguments, config=required)
    assert failure.value.type == "NotSupported"

    response = machine.host.cpi("create_vm", *arguments, config=auto)
    vm = VM(machine, *response["result"])
    try:
        assert f"{vm.cid} gets no user namespace" in response["log"]
        assert (view(vm)["isolation"], view(vm)["first_id"]) == ("none", None)
        assert vm.sh("cat /proc/1/uid_map").split() == ["0", "0", "4294967295"]
        checks = json.loads(machine.bosh_cpi("doctor", "--json", config=auto, check=False).stdout)
        assert "root in a VM can become root on this host" in json.dumps(checks)
    finally:
        machine.call("delete_vm", vm.cid, config=auto)
        machine.call("delete_stemcell", stemcell, config=auto)
