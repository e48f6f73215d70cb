"""The lab of contract tests: makes VMs and disks, and cleans up after each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from runtimes import catalog

MetadataOf = Callable[[str], dict[str, str]]  # the `metadata_of` fixture: of a VM or disk


class Cpi(Protocol):
    """The `cpi` fixture."""

    def __call__(
        self, method: str, *arguments: object, api_version: int = 2, context: Any = None
    ) -> dict[str, Any]: ...


class Lab:
    """VMs and disks of a contract test, made through the CPI and deleted at the end."""

    def __init__(
        self,
        cpi: Cpi,
        stemcell: Path,
        make_network: Callable[[], dict[str, Any]],
        properties: dict[str, Any],
    ) -> None:
        self.cpi = cpi
        self.image = str(stemcell)
        self.make_network = make_network
        self.networks: dict[str, Any] = {}  # the last VM's, as asked for
        self.properties = properties
        self.network_properties: dict[str, Any] = {}  # further ones, of all networks
        self._vms: list[str] = []
        self._disks: list[str] = []

    def ok(self, method: str, *arguments: object, api_version: int = 2) -> Any:
        """Return the result of a call that must succeed."""
        response = self.cpi(method, *arguments, api_version=api_version)
        assert response["error"] is None, response["error"]
        assert isinstance(response["log"], str)
        return response["result"]

    def fails(self, method: str, *arguments: object, api_version: int = 2) -> tuple[str, str]:
        """Return type (without Bosh::Clouds) and message of a call that must fail."""
        response = self.cpi(method, *arguments, api_version=api_version)
        error = response["error"]
        assert error is not None, f"{method} gave {response['result']!r}"
        assert response["result"] is None
        assert isinstance(error["ok_to_retry"], bool)
        assert error["message"]
        return error["type"].removeprefix("Bosh::Clouds::"), error["message"]

    def stemcell(self) -> str:
        """Import the stemcell, which is idempotent."""
        return self._text(self.ok("create_stemcell", self.image, {}))

    def vm(self, properties: dict[str, Any] | None = None, api_version: int = 2) -> str:
        """Create a VM."""
        result = self.create_vm(self.stemcell(), properties, api_version)
        return self._text(result if api_version == 1 else result[0])

    def create_vm(
        self, stemcell: str, properties: dict[str, Any] | None = None, api_version: int = 2
    ) -> Any:
        """Call create_vm and return its whole result."""
        arguments = self.vm_arguments(stemcell, properties)
        result = self.ok("create_vm", *arguments, api_version=api_version)
        self._vms.append(result if api_version == 1 else result[0])
        return result

    def vm_arguments(self, stemcell: str, properties: dict[str, Any] | None = None) -> list[object]:
        """Return create_vm's arguments."""
        self.networks = {
            name: {
                **network,
                "cloud_properties": {
                    **network.get("cloud_properties", {}),
                    **self.network_properties,
                },
            }
            for name, network in self.make_network().items()
        }
        given = self.properties if properties is None else properties
        return ["agent-1", stemcell, given, self.networks, [], {"bosh": {}}]

    def disk(self, vm: str | None = None, size_mib: int = 32) -> str:
        """Create a disk."""
        return self.adopt(self._text(self.ok("create_disk", size_mib, {}, vm)))

    def adopt(self, disk: str) -> str:
        """Register a disk to be deleted at the end."""
        self._disks.append(disk)
        return disk

    @property
    def runtime(self) -> str:
        """The runtime's name."""
        return self.stemcell().split("-")[0]

    def supports(self, ability: str) -> bool:
        """Return whether the runtime supports an ability (cpi.runtime)."""
        return ability in catalog.load(self.runtime).supports

    def refuses(self, method: str, *arguments: object) -> None:
        """Check that a call is not supported."""
        assert (method, self.fails(method, *arguments)[0]) == (method, "NotSupported")

    def unknown(self, resource: str) -> str:
        """Return a valid CID of this runtime that does not exist."""
        return f"{self.runtime}-{resource}-0000000000000000"

    def clean(self) -> None:
        """Delete all VMs and disks, also those that are gone already."""
        for vm in self._vms:
            assert self.cpi("delete_vm", vm)["error"] is None
        for disk in self._disks:
            error = self.cpi("delete_disk", disk)["error"]
            assert error is None or error["type"] == "Bosh::Clouds::DiskNotFound"

    def _text(self, result: object) -> str:
        assert isinstance(result, str)
        assert result
        return result


class ContractBase:
    """Shared fixtures of the parts of the contract."""

    vm_properties: ClassVar[dict[str, Any]] = {}
    preconfigured: ClassVar[bool] = True  # whether the runtime configures interfaces itself

    def make_network(self) -> dict[str, Any]:
        """Return create_vm's networks."""
        return {"default": {"type": "dynamic", "default": ["dns", "gateway"], "dns": []}}

    @pytest.fixture
    def lab(self, cpi: Cpi, stemcell: Path) -> Iterator[Lab]:
        lab = Lab(cpi, stemcell, self.make_network, self.vm_properties)
        yield lab
        lab.clean()
