"""The contract suite on QEMU, through libvirt."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.contract import RuntimeContract
from tests.lab import Cpi
from tests.libvirt.machine import KvmMachine
from tools.private_host import PrivateHost
from tools.private_libvirt import Libvirt


@pytest.fixture(scope="class")
def own_machine(_can_run: None) -> Iterator[KvmMachine]:
    with PrivateHost() as host, Libvirt(host) as daemons:
        machine = KvmMachine(daemons)
        before = machine.leftovers()
        yield machine
        assert machine.leftovers() == before


class TestKvm(RuntimeContract):
    """Everything that the contract asks, as processes."""

    preconfigured: ClassVar[bool] = False
    grows_attached: ClassVar[bool] = True

    @pytest.fixture
    def cpi(self, own_machine: KvmMachine) -> Cpi:
        call: Callable[..., dict[str, Any]] = own_machine.host.cpi
        return call

    @pytest.fixture
    def stemcell(self, image: Path) -> Path:
        return image
