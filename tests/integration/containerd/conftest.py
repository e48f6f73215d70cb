"""Two VMs with BOSH's metadata, for tests of operators' commands."""

from collections.abc import Iterator

import pytest

from tests.support.containerd.machine import VM, Machine


@pytest.fixture(scope="module")
def before(machine: Machine) -> Iterator[None]:
    """Check at the end that nothing of these VMs is leaked."""
    left = machine.leftovers()
    yield
    machine.delete_all()
    assert machine.leftovers() == left


@pytest.fixture(scope="module")
def router(machine: Machine, stemcell: str, before: None) -> VM:
    """Return a VM with runit, all limits and a port."""
    limits = {"cpu": 1.5, "memory": 512, "pids": 300, "ephemeral_disk": 64, "ports": ["8080:80"]}
    return _named(machine.create_vm(stemcell, limits), "router", "aaaa-1", "0")


@pytest.fixture(scope="module")
def db(machine: Machine, systemd: str, before: None) -> VM:
    """Return a VM with systemd and a persistent disk."""
    vm = _named(machine.create_vm(systemd), "db", "bbbb-2", "3")
    machine.call("attach_disk", vm.cid, machine.create_disk(64, vm=vm.cid))
    return vm


def _named(vm: VM, group: str, identifier: str, index: str) -> VM:
    vm.machine.call(
        "set_vm_metadata",
        vm.cid,
        {"deployment": "cf", "job": group, "instance_group": group, "id": identifier,
         "index": index},
    )  # fmt: skip
    return vm


@pytest.fixture
def outside(machine: Machine) -> Iterator[str]:
    """Yield the address of another host behind the VMs' host: a network namespace."""
    ip = "192.0.2.2"
    commands = (
        "ip netns add outside",
        "ip link add out0 type veth peer name in0 netns outside",
        "ip address add 192.0.2.1/24 dev out0",
        "ip link set out0 up",
        f"ip -n outside address add {ip}/24 dev in0",
        "ip -n outside link set in0 up",
    )
    for command in commands:
        machine.host.run(*command.split())
    yield ip
    machine.host.run("ip", "link", "delete", "out0")
    machine.host.run("ip", "netns", "delete", "outside")
