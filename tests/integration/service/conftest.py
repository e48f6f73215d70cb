"""The real service on a private host with a real containerd. Needs root."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import Service, ThinClient
from testing.stemcells import stemcell_source
from tests.support.certificates import CA
from tests.support.containerd.machine import Machine

# Runs a call as an unprivileged user of the socket's group.
AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
GROUP = "nogroup"
ADDRESS, PORT = "192.0.2.1", 9443  # of the host, seen from the namespace `apart`
APART = ("ip", "netns", "exec", "apart")

_APART = f"""\
set -e
ip netns add apart
ip link add host-side type veth peer name apart-side netns apart
ip addr add {ADDRESS}/24 dev host-side
ip link set host-side up
ip -n apart addr add 192.0.2.2/24 dev apart-side
ip -n apart link set apart-side up
ip -n apart link set lo up
"""


@pytest.fixture(scope="session")
def host() -> Iterator[PrivateHost]:
    with PrivateHost() as private:
        private.run("sh", "-c", _APART)
        yield private


@pytest.fixture(scope="session")
def machine(host: PrivateHost) -> Machine:
    """Return the host for root, who needs no service."""
    return Machine(host)


@pytest.fixture(scope="session")
def public(host: PrivateHost) -> Path:
    """Return a folder that all users of the host can read."""
    folder = host.folder / "public"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def image(public: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a stemcell's image that all users can read."""
    tarball = stemcell_source.stand_in("runit")
    opened = stemcell_source.opened(tarball, tmp_path_factory.mktemp("stemcell")).image
    folder = public / "stemcell"
    shutil.copytree(opened.parent, folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder / opened.name


@pytest.fixture(scope="session")
def authority(host: PrivateHost) -> CA:
    return CA(host.folder / "pki")


@pytest.fixture(scope="session")
def settings(authority: CA) -> dict[str, object]:
    """Return a configuration of the service with everything enabled."""
    server = authority.server(ADDRESS)
    return {
        "socket_group": GROUP,
        "tcp": f"{ADDRESS}:{PORT}",
        "tls_certificate": str(server.certificate),
        "tls_private_key": str(server.key),
        "tls_client_ca": str(authority.certificate),
        "clients": {
            "small": {"quotas": {"vms": 1, "cpu": 1, "memory": 256, "disk": 1024}},
            "other": {},
        },
    }


@pytest.fixture(scope="session")
def service(host: PrivateHost, settings: dict[str, object]) -> Iterator[Service]:
    with Service(host, settings) as running:
        yield running


@pytest.fixture
def readable_tmp_path(public: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield a folder for a test's files that other users can read too."""
    folder = public / "tmp" / tmp_path.name
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def over_tls(service: Service, authority: CA, *names: str) -> dict[str, ThinClient]:
    """Return clients from another host with a certificate each, by their names."""
    endpoint = f"https://{ADDRESS}:{PORT}"
    return {
        name: service.client(
            *APART, endpoint=endpoint, tls=authority.settings(authority.client(name))
        )
        for name in names
    }
