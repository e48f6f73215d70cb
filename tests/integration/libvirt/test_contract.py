"""The contract suite on QEMU, through libvirt."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_libvirt import Libvirt
from tests.support.contract_lab import Cpi, MetadataOf
from tests.support.contract_suite import RuntimeContract
from tests.support.libvirt.kvm_machine import KvmMachine
from tests.support.operator_contract import OperatorContract


@pytest.fixture(scope="class")
def own_machine(_can_run: None) -> Iterator[KvmMachine]:
    with PrivateHost() as host, Libvirt(host) as daemons:
        machine = KvmMachine(daemons)
        before = machine.leftovers()
        yield machine
        assert machine.leftovers() == before


class TestKvm(RuntimeContract, OperatorContract):
    """Everything that the contract asks, as processes."""

    preconfigured: ClassVar[bool] = False

    @pytest.fixture
    def cpi(self, own_machine: KvmMachine) -> Cpi:
        call: Callable[..., dict[str, Any]] = own_machine.host.cpi
        return call

    @pytest.fixture
    def stemcell(self, image: Path) -> Path:
        return image

    @pytest.fixture
    def metadata_of(self, own_machine: KvmMachine) -> MetadataOf:
        return own_machine.metadata_of

    @pytest.fixture
    def verb(self, own_machine: KvmMachine) -> Callable[..., Any]:
        return own_machine.verb
