"""Keys of other CPIs in cloud_properties, as shared cloud-configs and BATs have them."""

from collections.abc import Mapping

import pytest

from cpi.config.config import Config
from cpi.contract import disk_properties, vm_networks, vm_properties
from cpi.contract.foreign_keys import OF_VMS, ForeignKeys
from cpi.errors import CloudError
from cpi.log import Log
from cpi.model import DiskProperties, VMProperties
from testing.repository import REPOSITORY
from tests.support.cpi_calls import call, error_of

VM = {
    "instance_type": "m3.medium",
    "ephemeral_disk": {"size": 3000, "type": "gp2"},
    "ram": 512,
    "disk": 2048,
    "cpu": 1,
    "security_groups": ["a"],
    "exposed_ports": ["80/tcp"],
}


def vm(given: Mapping[str, object]) -> tuple[VMProperties, str]:
    """Return a VM's properties, and what was logged."""
    log = Log(quiet=True)
    return vm_properties.parse(given, ForeignKeys(log)), log.text


def test_what_has_a_counterpart_is_taken_and_the_rest_is_ignored() -> None:
    properties, log = vm(VM)
    assert properties == VMProperties(cpu=1, memory=512, ephemeral_disk=3000)
    assert "took ram as memory, ephemeral_disk.size as ephemeral_disk\n" in log
    assert "'instance_type', 'disk', 'security_groups', 'exposed_ports'\n" in log
    assert "m3.medium" not in log


def test_disks_and_networks_ignore_them_too() -> None:
    log = Log(quiet=True)
    given = {"type": "gp2", "iops": 3000, "encrypted": True, "store": "fast"}
    disk = disk_properties.parse(given, ForeignKeys(log))
    assert disk == DiskProperties(store="fast", given=given)
    properties = {"security_groups": ["a"], "subnet": "subnet-1", "name": "flannel"}
    networks = {"n": {"type": "dynamic", "cloud_properties": properties}}
    (network,) = vm_networks.parse(networks, log, ForeignKeys(log))
    assert network.cloud_properties == {"name": "flannel"}
    assert "disk cloud_properties: ignored unknown keys: 'type', 'iops', 'encrypted'\n" in log.text
    assert "'n': cloud_properties: ignored unknown keys: 'security_groups', 'subnet'\n" in log.text


def test_any_network_of_the_warden_cpi_is_the_default_one() -> None:
    log = Log(quiet=True)
    networks = {"n": {"type": "dynamic", "cloud_properties": {"name": "random"}}}
    (network,) = vm_networks.parse(networks, log, ForeignKeys(log))
    assert network.cloud_properties == {}
    assert "took name 'random', any network, as network.bridge" in log.text


@pytest.mark.parametrize(
    ("given", "properties"),
    [
        ({"ram": 512, "memory": 1024}, {"memory": 1024}),
        ({"ram": 512, "memory": None}, {"memory": 512}),
        ({"ram": None}, {}),
        ({"cpus": 2}, {"cpu": 2}),
        ({"disk": 2048}, {"ephemeral_disk": 2048}),
        ({"disk": 2048, "ephemeral_disk": {"type": "gp2"}}, {"ephemeral_disk": 2048}),
        ({"ephemeral_disk": {"use_instance_storage": True}}, {}),
        ({"system_disk": {"size": 4096}}, {"root_disk": 4096}),
        ({"root_disk_size_gb": 10}, {"root_disk": 10240}),
        ({"root_disk": {"size": 30}}, {}),
        ({"machine_type": "n1", "root_disk_type": "ssd", "ephemeral_disk_type": "ssd"}, {}),
    ],
)
def test_counterparts(given: dict[str, object], properties: dict[str, object]) -> None:
    assert vm(given)[0] == VMProperties(**properties)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"memroy": 1}, "unknown keys: 'memroy' (did you mean memory?)"),
        ({"Memory": 1}, "unknown keys: 'Memory' (did you mean memory?)"),
        ({"root-disk": 1}, "unknown keys: 'root-disk' (did you mean root_disk?)"),
        ({"ephemeral_disk_size": 1}, "'ephemeral_disk_size' (did you mean ephemeral_disk?)"),
        ({"cup": 1}, "unknown keys: 'cup' (did you mean cpu?)"),
        ({"port": [], "instance_type": "x"}, "unknown keys: 'port' (did you mean ports?); known"),
        ({"ram": "512"}, "cloud_properties.ram must be a number, 0 to 1073741824, without quotes"),
        ({"ram": 5}, "cloud_properties.memory must be a whole number of MiB, 32 to"),
        ({"ephemeral_disk": {"size": []}}, "cloud_properties.ephemeral_disk.size must be a number"),
        ({"memory": {"size": 1}}, "cloud_properties.memory must be a whole number of MiB"),
        ({"ports": [{"container": 80, "name": "x"}]}, "ports[0] has unknown keys: 'name'"),
    ],
)
def test_mistakes_are_refused(given: dict[str, object], reason: str) -> None:
    with pytest.raises(CloudError) as raised:
        vm(given)
    assert reason in raised.value.message


def test_only_names_that_are_long_and_many_are_cut_in_the_log() -> None:
    _, log = vm({f"{number}{'x' * 10_000}": 1 for number in range(500)})
    assert len(log) < 3000
    assert log.endswith(", …\n")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create_disk", [64, {"type": "gp2"}, None]),
        ("update_disk", ["fake-disk-1", 64, {"type": "gp2"}]),
        ("create_vm", ["a", "fake-stemcell-1", {"type": "gp2"}, {}, [], {}]),
        (
            "create_vm",
            ["a", "fake-stemcell-1", {}, {"n": {"cloud_properties": {"type": "gp2"},
             "type": "dynamic"}}, [], {}],
        ),
    ],
)  # fmt: skip
def test_strict_properties_refuse_them_all(
    config: Config, method: str, arguments: list[object]
) -> None:
    _, message = error_of(call(config.replaced("strict_properties", True), method, *arguments))
    assert "unknown keys: 'type'" in message
    lenient = call(config, method, *arguments)
    assert "ignored unknown keys: 'type'\n" in lenient["log"]


def test_the_documentation_lists_all_counterparts() -> None:
    page = (REPOSITORY / "docs" / "cloud-properties.md").read_text()
    rows = [line.split("|")[1:5] for line in page.splitlines() if line.startswith("| `")]
    listed = [(row[0].strip(" `"), row[3].strip(" `")) for row in rows]
    assert listed == [(part.shown, part.ours) for part in OF_VMS]
