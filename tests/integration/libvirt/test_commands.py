"""`bosh-cpi` on full VMs: their rows, and what is not supported."""

import json
from collections.abc import Callable
from pathlib import Path

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_libvirt import Libvirt
from tests.support.libvirt.kvm_machine import Guest, KvmMachine

NAMED = {"deployment": "cf", "job": "db", "instance_group": "db", "id": "aaaa-1", "index": "0"}


def test_a_full_vm_is_shown(machine: KvmMachine, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(properties={"cpu": 1})  # with more, emulation can hang at boot
    machine.call("set_vm_metadata", guest.cid, NAMED)
    (vm,) = json.loads(machine.bosh_cpi("vms", "--json").stdout)
    assert (vm["cid"], vm["runtime"], vm["state"]) == (guest.cid, "kvm", "running")
    assert (vm["instance"], vm["cpu"], vm["memory"]) == ("db/aaaa-1", 1, 192)
    assert vm["addresses"] == [guest.ip]
    stemcells = json.loads(machine.bosh_cpi("stemcells", "--json").stdout)
    assert vm["stemcell"] in [row["cid"] for row in stemcells]
    guest.wait_for_agent()
    assert "listening on port" in machine.bosh_cpi("logs", "db/0").stdout
    (used,) = json.loads(machine.bosh_cpi("top", "--json", "--interval", "0.2").stdout)
    assert (used["instance"], used["pids"]) == ("db/aaaa-1", None)
    assert used["cpu_seconds"] > 0
    assert used["memory_bytes"] > 1 << 20
    assert used["disk_bytes"] > 0
    refused = machine.bosh_cpi("exec", "db/0", "--", "true", check=False)
    assert refused.returncode == 1
    assert "bosh ssh" in refused.stderr
    assert f"bosh-cpi console {guest.cid}" in refused.stderr
    machine.virsh("destroy", guest.cid)
    (vm,) = json.loads(machine.bosh_cpi("vms", "--json").stdout)
    assert vm["state"] == "stopped"


def test_the_doctor_looks_at_libvirt(machine: KvmMachine) -> None:
    machine.configure()
    report = json.loads(machine.bosh_cpi("doctor", "--json", check=False).stdout)
    checks = {row["check"]: row for row in report["checks"] if row["scope"] == "kvm"}
    assert checks["libvirt"]["status"] == "ok"
    assert "QEMU" in checks["libvirt"]["message"]
    assert "qemu" in checks["hypervisor"]["message"]
    assert checks["/dev/kvm"]["status"] == "ok"  # kvm.accelerator does not need it
    assert checks["qemu-img"]["status"] == "ok"
    (virtualbox,) = [row for row in report["checks"] if row["scope"] == "virtualbox"]
    assert virtualbox["status"] == "warning"
    assert "(only for runtime virtualbox)" in virtualbox["message"]
    machine.configure(kvm={"accelerator": "kvm", "uri": "qemu+tcp://127.0.0.1:1/system"})
    report = json.loads(machine.bosh_cpi("doctor", "--json", check=False).stdout)
    (libvirt,) = [row for row in report["checks"] if row["scope"] == "kvm"]
    assert (libvirt["status"], "virsh --connect" in libvirt["fix"]) == ("failure", True)


def test_nothing_is_left_in_libvirt(image: Path) -> None:
    with PrivateHost() as host, Libvirt(host) as libvirt:
        machine = KvmMachine(libvirt)
        machine.configure()
        stemcell = str(machine.call("create_stemcell", str(image), {}))
        guest = machine.create_guest(stemcell)
        assert {"bosh", "bosh-bosh0"} <= {*_names(machine, "pool"), *_names(machine, "net")}
        shown = machine.bosh_cpi("setup", "--undo", "--vms", "--dry-run").stdout
        for title in (f"VM {guest.cid}", "pool bosh", "network bosh-bosh0", f"stemcell {stemcell}"):
            assert f"delete the {title}" in shown.replace("libvirt ", "")
        machine.bosh_cpi("setup", "--undo", "--vms", "--yes")
        assert (_names(machine, "pool"), _names(machine, "net")) == ([], [])
        assert machine.virsh("list", "--all", "--name").split() == []
        assert not host.state.exists()


def _names(machine: KvmMachine, noun: str) -> list[str]:
    return machine.virsh(f"{noun}-list", "--all", "--name").split()
