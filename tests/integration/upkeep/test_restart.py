"""After a restart of the host, VMs are restored."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.host_reboot import reboot
from tests.support.containerd.broken_calls import broken, drop_leases
from tests.support.containerd.machine import VM, Machine, failing

STATIC = {
    "default": {
        "type": "manual",
        "ip": "10.230.0.20",
        "netmask": "255.255.255.0",
        "gateway": "10.230.0.1",
        "default": ["gateway", "dns"],
        "cloud_properties": {"bridge": "bosh30"},
    },
    "six": {
        "type": "manual",
        "ip": "fd00:230::20",
        "netmask": "ffff:ffff:ffff:ffff::",
        "cloud_properties": {"bridge": "bosh30"},
    },
}
LIMITED = {"ephemeral_disk": 64, "memory": 256, "cpu": 0.5, "ports": ["18930:6868"]}


@pytest.fixture
def empty(machine: Machine, stemcell: str) -> Iterator[None]:
    before = machine.leftovers()
    yield
    machine.delete_all()
    assert machine.leftovers() == before


def restored(machine: Machine, status: int = 0) -> dict[str, Any]:
    done = machine.bosh_cpi("restore", "--json", check=False)
    assert done.returncode == status, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _without_names(leftovers: dict[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return leftovers without the names of interfaces, which are others after a restart."""
    return {
        key: sorted(re.sub(r"veth\w+", "veth", part) for part in parts)
        for key, parts in leftovers.items()
    }


def mac_of(vm: VM, interface: str) -> str:
    return vm.sh(f"cat /sys/class/net/{interface}/address")


def limits(vm: VM) -> dict[str, str]:
    """Return the limits of the cgroup above the VM's, on either version."""
    names = ("memory.limit_in_bytes", "cpu.cfs_quota_us", "memory.max", "cpu.max")
    root = Path("/sys/fs/cgroup")
    files = [*root.glob(f"*/{vm.machine.host.folder.name}/{vm.cid}/*"),
             *root.glob(f"{vm.machine.host.folder.name}/{vm.cid}/*")]  # fmt: skip
    return {str(path): path.read_text() for path in files if path.name in names}


def test_vms_are_back_after_a_restart_of_the_host(
    machine: Machine, stemcell: str, empty: None
) -> None:
    fixed = machine.create_vm(stemcell, LIMITED, STATIC)
    dynamic = machine.create_vm(stemcell, {"host_service": True})
    ended = machine.create_vm(stemcell)
    disk = machine.create_disk(vm=fixed.cid)
    hint = machine.call("attach_disk", fixed.cid, disk)
    for vm in (fixed, dynamic):
        vm.wait_for_agent()
    fixed.agent("add_persistent_disk", disk, hint)
    fixed.agent("mount_disk", disk)
    fixed.sh("echo kept | tee /var/vcap/store/mark /var/vcap/data/mark /root/mark; sync")
    dynamic.sh("echo kept > /var/vcap/data/mark; sync")
    macs = [mac_of(fixed, "eth0"), mac_of(fixed, "eth1"), mac_of(dynamic, "eth0")]
    before = _without_names(machine.leftovers()), limits(fixed)
    assert len(before[0]["interfaces"]) == 4
    assert len(limits(fixed)) == 2

    reboot(machine.host)
    assert machine.call("has_vm", fixed.cid) is True
    done = restored(machine)

    assert done == {
        "restored": sorted([fixed.cid, dynamic.cid, ended.cid]), "unchanged": [], "failed": {},
    }  # fmt: skip
    for vm in (fixed, dynamic):
        vm.wait_for_agent()
    assert [mac_of(fixed, "eth0"), mac_of(fixed, "eth1"), mac_of(dynamic, "eth0")] == macs
    assert "fd00:230::20" in fixed.sh("ip -6 address")
    machine.wait_for_port("10.230.0.1", 18930)
    rules = machine.host.run("iptables", "-S", "FORWARD").stdout.splitlines()
    assert len(rules) == len(set(rules)) == 1 + 2 * 2, "two rules for each of two bridges"
    kept = "cat /var/vcap/store/mark /var/vcap/data/mark /root/mark"
    assert fixed.sh(kept) == "kept\nkept\nkept"
    assert dynamic.sh("cat /var/vcap/data/mark") == "kept"
    assert dynamic.sh("stat -c %a:%u /var/vcap/bosh-cpi") == "755:0"
    assert int(fixed.sh("df -k /var/vcap/data | awk 'END {print $2}'")) < 64 << 10
    after = machine.leftovers()
    assert (_without_names(after), limits(fixed)) == before
    filtered = re.findall(r"ports (veth\w+)", "\n".join(after["elements"]))
    assert sorted(filtered) == after["interfaces"], "VMs send only as themselves"
    assert machine.call("get_disks", fixed.cid) == [disk]

    # A VM that ended while the host was up is not restored.
    machine.ctr("tasks", "kill", "--signal", "KILL", ended.cid)
    pids, before_second = fixed.pid, machine.leftovers()
    assert restored(machine)["unchanged"] == done["restored"]
    assert machine.leftovers() == before_second
    assert fixed.pid == pids
    assert failing(lambda: machine.create_vm(stemcell, networks=STATIC)).type == "CloudError"


def test_a_vm_that_cannot_be_restored_does_not_block_others(
    machine: Machine, stemcell: str, empty: None
) -> None:
    """The director may also reboot such a VM; an incomplete VM is left as it is."""
    broken_vm, good = machine.create_vm(stemcell), machine.create_vm(stemcell)
    disk = machine.create_disk(vm=broken_vm.cid)
    machine.call("attach_disk", broken_vm.cid, disk)
    start = "runtimes.containerd.containers:Containers.create"
    networks = {"n": {"type": "dynamic"}}
    assert broken(machine, start, "kill", "create_vm", "a", stemcell, {}, networks, [], {}) == ""
    known = {vm.cid for vm in machine.vms}
    [half] = [path.name for path in (machine.host.state / "vms").iterdir()
              if path.name not in known]  # fmt: skip
    image = machine.image(disk)
    aside = image.with_name("aside")

    reboot(machine.host)
    image.rename(aside)
    done = restored(machine, status=1)
    assert (done["restored"], done["unchanged"]) == ([good.cid], [half])
    assert list(done["failed"]) == [broken_vm.cid]
    assert f"{image} is missing" in done["failed"][broken_vm.cid]

    aside.rename(image)
    machine.call("reboot_vm", broken_vm.cid)
    broken_vm.wait_for_agent()
    assert disk in broken_vm.sh("ls /warden-cpi-dev")
    assert restored(machine)["restored"] == []
    machine.call("delete_vm", half)
    drop_leases(machine)


@pytest.mark.parametrize(
    "target",
    [
        "cpi.host.syscalls:mount_shared_tmpfs",
        "runtimes.containerd.vm_folder:VMFolder.pin_namespaces",
        "cpi.cni.plugins:Plugins.add",
        "runtimes.containerd.cgroups:create",
    ],
)
def test_a_killed_restore_is_done_again(
    machine: Machine, stemcell: str, empty: None, target: str
) -> None:
    vm = machine.create_vm(stemcell, LIMITED, STATIC)
    reboot(machine.host)
    assert broken(machine, target, "kill", "reboot_vm", vm.cid) == ""
    assert restored(machine)["restored"] == [vm.cid]
    vm.wait_for_agent()
    assert len(limits(vm)) == 2
