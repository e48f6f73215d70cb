"""Real containerd, real CNI plugins, real stemcells, on a private host. Needs root.

BOSH_CPI_TEST_STEMCELL names a stemcell tarball to use instead of one made here.
"""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_docker import Docker
from testing.hosts.private_host import PrivateHost
from testing.stemcells import stemcell_source
from tests.support.containerd.machine import VM, Machine
from tests.support.registries import docker_registry
from tests.support.registries.docker_registry import Authority, Registry
from tests.support.registries.registry_user import User
from tests.support.stemcells.small_stemcells import MANIFEST, ROOTFS, tar, tarball, zipped

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session", autouse=True)
def _can_run() -> None:
    """Skip the tests if root or a program is missing."""
    if os.geteuid() != 0:
        pytest.skip("integration tests need root")
    for program in ("containerd", "runc", "mmdebstrap", "nft", "iptables", "sfdisk", "mke2fs"):
        if not _installed(program):
            pytest.skip(f"{program} is not installed; `make setup` installs it")


def _installed(program: str) -> bool:
    path = f"/usr/sbin:/sbin:{os.environ['PATH']}"
    return shutil.which(program, path=path) is not None


def _image(tarball: Path, folders: pytest.TempPathFactory) -> Path:
    return stemcell_source.opened(tarball, folders.mktemp("stemcell")).image


@pytest.fixture(scope="session")
def systemd_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _image(stemcell_source.stand_in("systemd"), tmp_path_factory)


@pytest.fixture(scope="session")
def runit_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _image(stemcell_source.stand_in("runit"), tmp_path_factory)


@pytest.fixture(scope="session")
def image(runit_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the image that most tests use."""
    named = os.environ.get("BOSH_CPI_TEST_STEMCELL")
    return _image(Path(named), tmp_path_factory) if named else runit_image


@pytest.fixture(scope="session")
def host() -> Iterator[PrivateHost]:
    with PrivateHost() as private:
        yield private


@pytest.fixture(scope="session")
def machine(host: PrivateHost) -> Machine:
    return Machine(host)


@pytest.fixture(scope="session")
def other_machine() -> Iterator[Machine]:
    """Yield a second host, for tests that change their host."""
    with PrivateHost() as private:
        yield Machine(private)


@pytest.fixture(scope="session")
def stemcell(machine: Machine, image: Path) -> str:
    return str(machine.call("create_stemcell", str(image), {"name": "test", "version": "1"}))


@pytest.fixture(scope="session")
def systemd(machine: Machine, systemd_image: Path) -> str:
    return str(machine.call("create_stemcell", str(systemd_image), {}))


@pytest.fixture
def clean(machine: Machine) -> Iterator[None]:
    """Fail a test that leaks anything of its VMs and disks."""
    before = machine.leftovers()
    yield
    machine.delete_all()
    assert machine.leftovers() == before


@pytest.fixture
def make_vm(machine: Machine, stemcell: str, clean: None) -> Callable[..., Any]:
    """Return a function that creates a VM of the default stemcell on a dynamic network."""

    def make(**options: Any) -> Any:
        return machine.create_vm(options.pop("stemcell", stemcell), **options)

    return make


@pytest.fixture
def vm(make_vm: Callable[..., VM]) -> VM:
    return make_vm()


@pytest.fixture
def fast(machine: Machine, clean: None) -> Iterator[Path]:
    """Yield a second store, "fast", on a separate file system that shares blocks."""
    folder, image = machine.host.folder / "fast", machine.host.folder / "fast.img"
    folder.mkdir()
    machine.host.run("truncate", "--size", "2G", str(image))
    machine.host.run("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
    machine.host.run("mount", "-o", "loop", str(image), str(folder))
    machine.host.write_config(disk_stores={"fast": str(folder)})
    yield folder
    machine.delete_all()
    left = machine.host.run("find", str(folder), "-mindepth", "1").stdout.split()
    machine.host.write_config()
    machine.host.run("umount", str(folder))
    folder.rmdir()
    image.unlink()
    assert left in ([], [str(folder / "snapshots")])


@pytest.fixture
def run_on_host(host: PrivateHost) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    return host.run


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a minimal image: a root file system of one program."""
    path = tmp_path_factory.mktemp("small") / "image"
    with tarfile.open(path, "w:gz") as tar:
        tar.add("/bin/true", "./bin/sh")
        tar.add("/bin/true", "./usr/sbin/runsvdir-start")
    return path


@pytest.fixture(scope="session")
def docker(host: PrivateHost) -> Iterator[Docker]:
    """Yield Docker on the private host."""
    for program in ("dockerd", "docker-registry", "skopeo", "umoci", "htpasswd"):
        if not _installed(program):
            pytest.skip(f"{program} is not installed; `make test-packages` installs it")
    with Docker(host) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def registry_image(docker: Docker) -> str:
    return docker_registry.image(docker)


@pytest.fixture(scope="session")
def authority(docker: Docker) -> Authority:
    return Authority.made(docker)


@pytest.fixture(scope="session")
def registry(docker: Docker, registry_image: str) -> Iterator[Registry]:
    """Yield a registry with plain HTTP and no authentication."""
    with docker_registry.serving(docker, registry_image, 5000) as serving:
        yield serving


@pytest.fixture(scope="session")
def secure_registry(
    docker: Docker, registry_image: str, authority: Authority
) -> Iterator[Registry]:
    """Yield a registry with TLS and basic authentication."""
    auth = docker_registry.basic(docker)
    with docker_registry.serving(docker, registry_image, 5001, authority, auth) as serving:
        yield serving


@pytest.fixture(scope="session")
def token_registry(docker: Docker, registry_image: str, authority: Authority) -> Iterator[Registry]:
    """Yield a registry with TLS and token authentication by another server."""
    with (
        docker_registry.token(docker, authority) as auth,
        docker_registry.serving(docker, registry_image, 5002, authority, auth) as serving,
    ):
        yield serving


@pytest.fixture
def named(request: pytest.FixtureRequest) -> Registry:
    """Return the registry of the test's parameter."""
    registry: Registry = request.getfixturevalue(request.param)
    return registry


@pytest.fixture
def user(machine: Machine, registry: Registry) -> User:
    return User(machine, registry)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a stemcell of some MiB with unique content."""
    members = {"image": zipped(tar({**ROOTFS, "./var/more": os.urandom(4 << 20)}))}
    return tarball(tmp_path / "small.tgz", {**members, "stemcell.MF": MANIFEST})


@pytest.fixture
def untouched(machine: Machine) -> Iterator[None]:
    """Fail a test that leaks anything in containerd, or on its way there."""
    before = machine.stored()
    yield
    assert machine.stored() == before
