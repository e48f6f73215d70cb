"""`bosh-cpi setup --undo` on a host that has had VMs: nothing of the CPI is left."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.hosts.private_host import PrivateHost, cgroup_hierarchies
from tests.support.containerd.machine import Machine


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Yield a host of its own, whose /etc and /usr/local can be changed."""
    with PrivateHost() as host:
        for number, path in enumerate(("/etc", "/usr/local")):
            layer = host.folder / f"layer-{number}"
            for part in ("upper", "work"):
                (layer / part).mkdir(parents=True)
            options = f"lowerdir={path},upperdir={layer}/upper,workdir={layer}/work"
            host.run("mount", "-t", "overlay", "-o", options, "overlay", path)
        yield Machine(host)


def traces(machine: Machine) -> dict[str, list[str]]:
    """Return what there is of the CPI on the host, outside its own folder's containerd."""
    host = machine.host
    rules = host.run("iptables-save").stdout.splitlines()
    tables = host.run("nft", "list", "tables").stdout.splitlines()
    links = json.loads(host.run("ip", "-json", "link").stdout)
    listed = host.run("ctr", "--address", str(host.address), "namespaces", "ls", "-q").stdout
    return {
        "namespaces": listed.split(),
        "links": sorted(link["ifname"] for link in links if link["ifname"] not in ("lo", "sit0")),
        "rules": [rule for rule in (*rules, *tables) if "CNI" in rule or "bosh-cpi" in rule],
        "cgroups": [
            str(path) for root in cgroup_hierarchies() for path in root.glob(host.cgroup.strip("/"))
        ],
        "folders": [str(path) for path in (host.state, host.folder / "run") if path.exists()],
    }


def test_nothing_is_left(machine: Machine, runit_image: Path) -> None:
    before = traces(machine)
    stemcell = str(machine.call("create_stemcell", str(runit_image), {}))
    vm = machine.create_vm(stemcell, {"ports": ["8080:80"]})
    disk = machine.create_disk(32, vm=vm.cid)
    machine.call("attach_disk", vm.cid, disk)

    done = machine.bosh_cpi("setup", "--undo", "--yes", check=False)
    assert done.returncode == 1
    assert f"this host has 1 VMs ({vm.cid})" in done.stderr
    assert machine.call("has_vm", vm.cid) is True

    during = traces(machine)
    done = machine.bosh_cpi("setup", "--undo", "--vms", "--dry-run")
    for title in (
        f"delete the VM {vm.cid}",
        f"delete the stemcell {stemcell}",
        "delete the bridge",
    ):
        assert title in done.stdout
    assert "1 persistent disks and snapshots stay" in done.stdout
    assert traces(machine) == during
    assert during != before

    done = machine.bosh_cpi("setup", "--undo", "--vms", "--yes")
    assert done.stderr == ""
    assert traces(machine) == {**before, "folders": [str(machine.host.state)]}
    files = machine.host.run("find", str(machine.host.state), "-type", "f").stdout.split()
    assert sorted(Path(file).name for file in files) == [f"{disk}.json", f"{disk}.raw"]

    done = machine.bosh_cpi("setup", "--undo", "--disks", "--yes")
    assert "ALL DATA of 1 persistent disks" in done.stdout
    assert traces(machine) == before
    assert "0 steps" in machine.bosh_cpi("setup", "--undo", "--dry-run").stdout
    machine.vms.clear()
    machine.disks.clear()


def test_chains_that_another_uses_stay(machine: Machine) -> None:
    script = " && ".join(
        shlex.join(["iptables", *words])
        for words in (
            ("-N", "CNI-FORWARD"),
            ("-A", "CNI-FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT"),
        )
    )
    machine.host.run("sh", "-c", script)
    assert "chains" not in machine.bosh_cpi("setup", "--undo", "--dry-run").stdout
    machine.host.run("iptables", "-F", "CNI-FORWARD")
    assert "delete the chains CNI-FORWARD (iptables)" in machine.bosh_cpi(
        "setup", "--undo", "--dry-run"
    ).stdout  # fmt: skip
    machine.host.run("iptables", "-X", "CNI-FORWARD")
