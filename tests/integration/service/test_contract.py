"""The contract through the service: as a user without privilege, from inside a container that has
the socket and nothing else, and over TLS from elsewhere.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from testing.hosts.private_service import Service, ThinClient
from tests.integration.service.conftest import ADDRESS, APART, AS_NOBODY, PORT
from tests.support.certificates import CA
from tests.support.containerd.machine import Machine
from tests.support.contract_lab import Cpi, MetadataOf
from tests.support.contract_suite import RuntimeContract


@pytest.fixture(scope="class", autouse=True)
def _clean(machine: Machine, service: Service) -> Iterator[None]:
    before = _of_vms(machine)
    yield
    assert _of_vms(machine) == before


def _of_vms(machine: Machine) -> dict[str, Sequence[str]]:
    """Return what is left of VMs and disks, without the contract's stemcell and its record."""
    left = machine.leftovers()
    files = [path for path in left["files"] if "-stemcell-" not in path]
    return {**left, "snapshots": [], "files": files}


@pytest.fixture(scope="class")
def client_over_tls(service: Service, authority: CA) -> ThinClient:
    tls = authority.settings(authority.client("director"), as_text=True)
    endpoint = f"https://{ADDRESS}:{PORT}"
    return service.client(*APART, *AS_NOBODY, endpoint=endpoint, tls=tls)


@pytest.fixture(scope="class")
def client_inside(
    machine: Machine, service: Service, public: Path, image: Path
) -> Iterator[ThinClient]:
    """Yield a client in a VM, with user and group vcap and no capability."""
    stemcell = machine.call("create_stemcell", str(image), {})
    shared = {"host": str(public), "vm": str(public)}
    vm = machine.create_vm(stemcell, {"host_service": True, "mounts": [shared]})
    zipapp = public / "cpi.pyz"
    shutil.copy(service.zipapp, zipapp)
    config = {"endpoint": "unix:///var/vcap/bosh-cpi/cpi.sock"}
    inside = ("--mount", "--net", "--pid", "--uts", "--ipc")
    as_vcap = ("--reuid", "1000", "--regid", "1000", "--clear-groups", "--bounding-set=-all")
    around = ("nsenter", "--target", str(vm.pid), *inside, "--", "setpriv", *as_vcap, "--")
    yield ThinClient(machine.host, zipapp, config, around, folder=public)
    vm.delete()
    machine.vms.remove(vm)


class _ThroughTheService(RuntimeContract):
    """Shared fixtures of the ways to the service."""

    @pytest.fixture
    def tmp_path(self, readable_tmp_path: Path) -> Path:
        return readable_tmp_path

    @pytest.fixture
    def stemcell(self, image: Path) -> Path:
        return image

    @pytest.fixture
    def metadata_of(self, machine: Machine) -> MetadataOf:
        return machine.metadata_of


class TestAsNobody(_ThroughTheService):
    """As user nobody, a member of the socket's group."""

    @pytest.fixture
    def cpi(self, service: Service) -> Cpi:
        return service.client(*AS_NOBODY)


class TestOverTls(_ThroughTheService):
    """From another network namespace, by certificates."""

    @pytest.fixture
    def cpi(self, client_over_tls: ThinClient) -> Cpi:
        return client_over_tls


class TestInside(_ThroughTheService):
    """From a VM with `host_service`."""

    @pytest.fixture
    def cpi(self, client_inside: ThinClient) -> Cpi:
        return client_inside
