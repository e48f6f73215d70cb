"""Real libvirt, QEMU without KVM, and tiny stemcells with a kernel, on a private host. Needs root.

BOSH_CPI_TEST_MACHINE_STEMCELL names a stemcell tarball to use instead of one made here.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_libvirt import Libvirt
from testing.stemcells import stemcell_source
from testing.stemcells.machine_stemcell import stand_in_machine
from tests.support.libvirt.kvm_machine import Guest, KvmMachine


@pytest.fixture(scope="session")
def _can_run() -> None:
    """Skip the tests if root or a program is missing."""
    if os.geteuid() != 0:
        pytest.skip("integration tests need root")
    path = f"/usr/sbin:/sbin:{os.environ['PATH']}"
    for program in ("libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "containerd"):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed; `make test-packages` installs it")


@pytest.fixture(scope="session")
def libvirt(_can_run: None) -> Iterator[Libvirt]:
    with PrivateHost() as host, Libvirt(host) as daemons:
        yield daemons


@pytest.fixture(scope="session")
def machine(libvirt: Libvirt) -> KvmMachine:
    return KvmMachine(libvirt)


def opened(tarball: Path, folders: pytest.TempPathFactory) -> Path:
    """Return the `image` of a stemcell."""
    return stemcell_source.opened(tarball, folders.mktemp("stemcell")).image


@pytest.fixture(scope="session")
def image(_can_run: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("BOSH_CPI_TEST_MACHINE_STEMCELL")
    return opened(Path(named) if named else stand_in_machine("openstack"), tmp_path_factory)


@pytest.fixture
def stemcell(machine: KvmMachine, image: Path) -> str:
    machine.configure()
    return str(machine.call("create_stemcell", str(image), {"name": "test", "version": "1"}))


@pytest.fixture
def clean(machine: KvmMachine) -> Iterator[None]:
    """Fail a test that leaks anything of its VMs and disks."""
    machine.configure()
    before = machine.leftovers()
    yield
    machine.configure()
    machine.delete_all()
    assert machine.leftovers() == before


@pytest.fixture
def make_guest(machine: KvmMachine, stemcell: str, clean: None) -> Callable[..., Guest]:
    """Return a function that creates a VM of the default stemcell on a dynamic network."""

    def make(**options: Any) -> Guest:
        return machine.create_guest(options.pop("stemcell", stemcell), **options)

    return make
