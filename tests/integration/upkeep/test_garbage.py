"""Resources leaked by killed calls are listed and removed, and no others."""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_host import cgroup_hierarchies
from tests.support.containerd.broken_calls import broken
from tests.support.containerd.machine import VM, Machine
from tests.support.processes import write_end
from tests.support.stemcells.small_stemcells import ROOTFS, tar, zipped

DYNAMIC = {"n": {"type": "dynamic"}}
PROPERTIES = {"ephemeral_disk": 64, "ports": ["18940:80"]}


@pytest.fixture
def healthy(machine: Machine, stemcell: str) -> Iterator[VM]:
    """Yield a VM with a disk that garbage collection must leave alone."""
    before = machine.leftovers(), machine.stored()
    vm = machine.create_vm(stemcell, {"ephemeral_disk": 64})
    disk = machine.create_disk(vm=vm.cid)
    machine.call("attach_disk", vm.cid, disk)
    assert gc(machine) == []
    yield vm
    assert gc(machine) == []
    vm.wait_for_agent()
    assert disk in vm.sh("ls /warden-cpi-dev")
    vm.sh(f"touch /warden-cpi-dev/{disk}/x /var/vcap/data/x")
    machine.delete_all()
    assert (machine.leftovers(), machine.stored()) == before


def gc(machine: Machine, *words: str) -> list[dict[str, Any]]:
    done = machine.bosh_cpi("gc", "--json", *words)
    garbage: list[dict[str, Any]] = json.loads(done.stdout)
    assert all(row["removed"] == ("--yes" in words) for row in garbage), done.stdout + done.stderr
    return garbage


def named(garbage: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return types and names, without the random names of leases and locks."""
    random = ("lease", "lock")
    return {(row["type"], "" if row["type"] in random else row["name"]) for row in garbage}


def only_vm(machine: Machine, *known: VM) -> str:
    [left] = {path.name for path in (machine.host.state / "vms").iterdir()} - {
        vm.cid for vm in known
    }
    return left


@pytest.mark.parametrize(
    "target",
    [
        "runtimes.containerd.vm_folder:VMFolder.create",
        "cpi.cni.plugins:Plugins.add",
        "runtimes.containerd.image_store:ImageStore.prepare",
        "runtimes.containerd.containers:Containers.start",
    ],
)
def test_a_killed_create_vm(machine: Machine, stemcell: str, healthy: VM, target: str) -> None:
    arguments: tuple[Any, ...] = ("a", stemcell, PROPERTIES, DYNAMIC, [], {})
    assert broken(machine, target, "kill", "create_vm", *arguments) == ""
    left = only_vm(machine, healthy)
    # A thread makes networks before, while or after the call has the lease.
    leases = {("lease", "")} & named(gc(machine))
    assert leases or "ImageStore" not in target
    wanted = {("VM", left), ("lock", ""), *leases}
    assert named(gc(machine)) == wanted
    assert named(gc(machine, "--yes")) == wanted


def test_a_killed_delete_vm(machine: Machine, stemcell: str, healthy: VM) -> None:
    vm, disk = machine.create_vm(stemcell), machine.create_disk()
    machine.call("attach_disk", vm.cid, disk)
    target = "runtimes.containerd.containers:Containers.stop"
    assert broken(machine, target, "kill", "delete_vm", vm.cid) == ""
    wanted = {("VM", vm.cid), ("lock", "")}
    assert named(gc(machine, "--yes")) == wanted
    assert machine.call("has_disk", disk) is True
    assert machine.facts(disk)["state"] == "detached"


def test_killed_calls_on_disks(machine: Machine, healthy: VM) -> None:
    disk = machine.create_disk()
    image = machine.image(disk)
    assert broken(machine, "cpi.disks.raw_image:create", "kill", "create_disk", 64, {}, None) == ""
    [unborn] = set(image.parent.glob("*.raw")) - {
        machine.image(other) for other in machine.disks
    }  # fmt: skip
    target = "cpi.disks.snapshots:write_facts"
    assert broken(machine, target, "kill", "snapshot_disk", disk, {}) == ""
    snapshot = machine.call("snapshot_disk", machine.create_disk(), {})
    target = "cpi.disks.raw_image:require_unused"
    assert broken(machine, target, "kill", "delete_snapshot", snapshot) == ""
    (image.parent / "snapshots" / snapshot / "disk.raw").unlink()
    wanted = {("disk file", str(unborn)), ("disk file", f"{image.with_suffix('')}.snapshot.part"),
              ("snapshot", snapshot), ("lock", "")}  # fmt: skip
    garbage = gc(machine)
    assert named(garbage) == wanted
    assert [row["certain"] for row in garbage if row["name"] == str(unborn)] == [False]
    assert named(gc(machine, "--yes")) == wanted
    assert machine.facts(disk)["state"] == "detached"


def test_a_killed_create_stemcell(machine: Machine, healthy: VM, tmp_path: Path) -> None:
    before = machine.stored()
    image = tmp_path / "image"
    image.write_bytes(zipped(tar({**ROOTFS, "./var/more": os.urandom(1 << 20)})))
    target = "runtimes.containerd.image_store:ImageStore.write_content"
    assert broken(machine, target, "kill", "create_stemcell", str(image), {}) == ""
    [folder] = (machine.host.state / "imports").iterdir()
    wanted = {("import", str(folder)), ("lease", ""), ("lock", "")}
    assert named(gc(machine)) == wanted
    assert named(gc(machine, "--yes")) == wanted
    assert machine.stored() == before


def test_what_is_left_without_the_vms_folder(machine: Machine, stemcell: str, healthy: VM) -> None:
    vm = machine.create_vm(stemcell, PROPERTIES)
    folder = machine.host.state / "vms" / vm.cid
    for mounted in ("data", "disks"):
        machine.host.run("umount", str(folder / mounted))
    machine.host.run("rm", "-r", "--one-file-system", str(folder))
    lonely = vm.cid[:-4] + "0000"
    machine.ctr("snapshots", "prepare", lonely)
    for hierarchy in cgroup_hierarchies():
        if (hierarchy / machine.host.folder.name).is_dir():
            (hierarchy / machine.host.folder.name / lonely).mkdir()
    garbage = gc(machine)
    types = sorted(row["type"] for row in garbage)
    assert types == ["VM", "address", "cgroup", "firewall rules", "layers", "loop device",
                     "network namespace", "port", "range of user ids", "snapshot",
                     "user namespace"]  # fmt: skip
    assert {row["name"] for row in garbage if row["type"] in ("cgroup", "snapshot")} == {lonely}
    assert not vm.sh("true"), "it was only shown"
    gc(machine, "--yes")
    assert vm.cid not in machine.ctr("containers", "ls", "-q")
    machine.vms.remove(vm)


def test_uploads_of_a_service_that_was_killed(machine: Machine, healthy: VM) -> None:
    uploads = machine.host.state / "uploads"
    for name in ("dead", "alive", "young"):
        (uploads / name).mkdir(parents=True)
        (uploads / name / "image").write_bytes(b"x" * 4096)
        for path in (uploads / name / "image", uploads / name):
            os.utime(path, (0, 0) if name != "young" else None)
    with (uploads / "alive/image").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        garbage = gc(machine, "--yes")
    assert named(garbage) == {("upload", str(uploads / "dead"))}
    assert garbage[0]["size_bytes"] >= 4096
    machine.host.run("rm", "-r", str(uploads))


def test_vms_that_bosh_does_not_know(
    machine: Machine, stemcell: str, healthy: VM, tmp_path: Path
) -> None:
    lost = machine.create_vm(stemcell)
    known = tmp_path / "vms.json"
    known.write_text(json.dumps({"Tables": [{"Rows": [{"vm_cid": healthy.cid}]}]}))
    words = ("--bosh-vms", str(known))
    assert named(gc(machine, *words)) == {("VM", lost.cid)}
    assert named(gc(machine, *words, "--yes")) == {("VM", lost.cid)}
    assert machine.call("has_vm", lost.cid) is False
    known.write_text("{}")
    refused = machine.bosh_cpi("gc", *words, "--yes", check=False)
    assert refused.returncode == 1
    assert "has no CID" in refused.stderr


def test_a_running_call_has_no_garbage(machine: Machine, stemcell: str, healthy: VM) -> None:
    """VM, lease and lock of a running create_vm are not orphaned."""
    fifo = machine.host.folder / "wait"
    os.mkfifo(fifo)
    target = "runtimes.containerd.rootfs:write"
    arguments: tuple[Any, ...] = ("a", stemcell, {}, DYNAMIC, [], {})
    answers: list[str] = []
    call = threading.Thread(
        target=lambda: answers.append(
            broken(machine, target, f"wait:{fifo}", "create_vm", *arguments)
        )
    )
    call.start()
    with write_end(fifo):  # opens when the call is there
        assert gc(machine, "--yes") == []
    call.join()
    fifo.unlink()
    cid, networks = json.loads(answers[0])["result"]
    made = VM(machine, cid, networks)
    machine.vms.append(made)
    made.wait_for_agent()


def test_output_for_operators(machine: Machine, healthy: VM) -> None:
    assert machine.bosh_cpi("gc").stdout == "nothing is orphaned\n"
    part = machine.image(machine.disks[0]).with_suffix(".raw.part")
    part.write_bytes(bytes(3 << 20))
    shown = machine.bosh_cpi("gc").stdout
    assert str(part) in shown
    assert "1 orphaned" in shown
    assert machine.bosh_cpi("gc", "--yes").stdout.endswith("1 removed\n")
    assert not part.exists()
