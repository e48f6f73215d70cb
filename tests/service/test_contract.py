"""The contract through the service: as a user without privilege, and over TLS from elsewhere."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.containerd.machine import Machine
from tests.contract import RuntimeContract
from tests.lab import Cpi
from tests.service.certificates import CA
from tests.service.conftest import ADDRESS, APART, AS_NOBODY, PORT
from tools.private_service import Client, Service


@pytest.fixture(scope="class", autouse=True)
def _clean(machine: Machine, service: Service) -> Iterator[None]:
    before = _leftovers(machine)
    yield
    assert _leftovers(machine) == before


def _leftovers(machine: Machine) -> dict[str, Sequence[str]]:
    """What is left but for the contract's stemcell, which stays: its snapshots, and whose it is."""
    left = machine.leftovers()
    files = [path for path in left["files"] if not re.search("/clients/.*-stemcell-", path)]
    return {**left, "snapshots": [], "files": files}


@pytest.fixture(scope="class")
def client_over_tls(service: Service, authority: CA) -> Client:
    tls = authority.settings(authority.client("director"), as_text=True)
    endpoint = f"https://{ADDRESS}:{PORT}"
    return service.client(*APART, *AS_NOBODY, endpoint=endpoint, tls=tls)


class _ThroughTheService(RuntimeContract):
    """What the ways to the service have in common."""

    @pytest.fixture
    def tmp_path(self, readable_tmp_path: Path) -> Path:
        return readable_tmp_path

    @pytest.fixture
    def stemcell(self, image: Path) -> Path:
        return image


class TestAsNobody(_ThroughTheService):
    """User nobody, who is of the socket's group."""

    @pytest.fixture
    def cpi(self, service: Service) -> Cpi:
        return service.client(*AS_NOBODY)


class TestOverTls(_ThroughTheService):
    """From another network namespace, by certificates."""

    @pytest.fixture
    def cpi(self, client_over_tls: Client) -> Cpi:
        return client_over_tls
