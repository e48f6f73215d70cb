"""The service after a restart of its host: VMs are restored before it accepts calls."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.host_reboot import reboot
from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import Service
from testing.stemcells import stemcell_source
from tests.support.containerd.machine import VM, Machine


@pytest.fixture
def own_service() -> Iterator[Service]:
    with PrivateHost() as host, Service(host) as running:
        yield running


def test_the_service_puts_its_host_in_order(own_service: Service, tmp_path: Path) -> None:
    client, host = own_service.client(), own_service.host
    machine = Machine(host)

    def ok(method: str, *arguments: object) -> Any:
        response = client(method, *arguments)
        assert response["error"] is None, response
        return response["result"]

    image = stemcell_source.opened(stemcell_source.stand_in("runit"), tmp_path).image
    stemcell = ok("create_stemcell", str(image), {})
    properties = {"ephemeral_disk": 64, "ports": ["8080:6868"]}
    cid, networks = ok(
        "create_vm", "a", stemcell, properties, {"default": {"type": "dynamic"}}, [], {}
    )
    vm = VM(machine, cid, networks)
    disk = ok("create_disk", 64, {}, cid)
    hint = ok("attach_disk", cid, disk)
    vm.sh(f"echo kept >{hint}/file; echo kept >/var/vcap/data/file")
    interrupted = host.state / "uploads" / "0123"
    interrupted.mkdir()
    (interrupted / "image").write_bytes(b"half")
    for path in (interrupted / "image", interrupted):
        os.utime(path, (0, 0))  # old: a young one may be in use

    reboot(machine.host)
    own_service.stop()  # it is gone already
    own_service.start()

    vm.wait_for_agent()
    assert vm.sh(f"cat {hint}/file /var/vcap/data/file") == "kept\nkept"
    assert ok("get_disks", cid) == [disk]
    assert "1 VMs brought back" in own_service.log.read_text()
    assert not interrupted.exists()
    machine.wait_for_port(vm.ip, 6868)
    ok("detach_disk", cid, disk)
    ok("delete_vm", cid)
    ok("delete_disk", disk)
    left = machine.leftovers()
    assert (left["containers"], left["mounts"], left["interfaces"]) == ([], [], [])
