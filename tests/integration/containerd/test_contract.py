"""The contract suite on containerd 1.6 (or what is installed), 1.7 and 2.x.

Debian has one of each: 12 (bookworm), 13 (trixie) and sid; the newer ones are unpacked into the
checkout's .cache and run from there, with the runc and the CNI plugins of their suite.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.debian_suite import PACKAGES, provide
from testing.hosts.private_host import PrivateHost
from testing.repository import REPOSITORY
from tests.support.containerd.machine import Machine
from tests.support.contract_lab import Cpi, MetadataOf
from tests.support.contract_suite import RuntimeContract
from tests.support.operator_contract import OperatorContract

INSTALLED = "installed"
SUITES = {INSTALLED: "1.6", "trixie": "1.7", "sid": "2."}


@pytest.fixture(scope="class", params=list(SUITES))
def suite_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    programs = plugins = None
    if request.param != INSTALLED:
        folder = REPOSITORY / ".cache" / "suites" / request.param
        folder.parent.mkdir(parents=True, exist_ok=True)
        provide(request.param, folder, PACKAGES)
        programs, plugins = folder / "bin", folder / "cni"
    with PrivateHost(programs, plugins) as host:
        machine = Machine(host)
        before = machine.leftovers()
        yield machine
        after = machine.leftovers()
        # The contract's stemcell and its snapshots stay.
        assert {**after, "snapshots": []} == {**before, "snapshots": []}


class TestContainerd(RuntimeContract, OperatorContract):
    """Everything that the contract asks, as processes, on each version."""

    @pytest.fixture
    def cpi(self, suite_machine: Machine) -> Cpi:
        call: Callable[..., dict[str, Any]] = suite_machine.host.cpi
        return call

    @pytest.fixture
    def stemcell(self, image: Path) -> Path:
        return image

    @pytest.fixture
    def metadata_of(self, suite_machine: Machine) -> MetadataOf:
        return suite_machine.metadata_of

    @pytest.fixture
    def verb(self, suite_machine: Machine) -> Callable[..., Any]:
        return suite_machine.verb

    def test_runs_on_the_version_it_should(
        self, suite_machine: Machine, request: pytest.FixtureRequest
    ) -> None:
        suite = request.node.callspec.params["suite_machine"]
        version = suite_machine.ctr("version").split("Server:")[1].split("Version:")[1].split()[0]
        if suite != INSTALLED:
            assert version.startswith(SUITES[suite])
