"""What clients cannot do to the host and to each other, through the real service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_service import Service, ThinClient
from tests.integration.service.conftest import over_tls
from tests.support.certificates import CA

NETWORKS = {"default": {"type": "dynamic"}}
SMALL = {"cpu": 0.5, "memory": 128, "ephemeral_disk": 64}


@pytest.fixture(scope="module")
def clients(service: Service, authority: CA) -> dict[str, ThinClient]:
    """Return clients by name; their policies are in the service's configuration."""
    return over_tls(service, authority, "small", "other")


def done(response: dict[str, Any]) -> Any:
    assert response["error"] is None, response
    return response["result"]


def refusal(response: dict[str, Any]) -> tuple[str, str]:
    error = response["error"]
    assert error is not None, response
    return error["type"].removeprefix("Bosh::Clouds::"), error["message"]


@pytest.fixture(scope="module")
def stemcells(clients: dict[str, ThinClient], image: Path) -> dict[str, str]:
    return {
        name: done(client("create_stemcell", str(image), {})) for name, client in clients.items()
    }


@pytest.fixture
def vm(clients: dict[str, ThinClient], stemcells: dict[str, str]) -> Iterator[str]:
    """Yield a VM of the client `small`."""
    arguments: list[Any] = ["a", stemcells["small"], SMALL, NETWORKS, [], {}]
    made = done(clients["small"]("create_vm", *arguments))[0]
    yield made
    done(clients["small"]("delete_vm", made))


def test_a_quota_holds_and_is_given_back(
    clients: dict[str, ThinClient], stemcells: dict[str, str], vm: str
) -> None:
    arguments: list[Any] = ["a", stemcells["small"], SMALL, NETWORKS, [], {}]
    error_type, message = refusal(clients["small"]("create_vm", *arguments))
    assert error_type == "VMCreationFailed"
    assert "service.clients.small.quotas.vms" in message
    error_type, message = refusal(clients["small"]("create_disk", 4096, {}, None))
    assert error_type == "NoDiskSpace"
    assert "service.clients.small.quotas.disk" in message
    disk = done(clients["small"]("create_disk", 32, {}, None))
    error_type, message = refusal(clients["small"]("resize_disk", disk, 4096))
    assert "service.clients.small.quotas.disk" in message
    done(clients["small"]("delete_disk", disk))
    unlimited: list[Any] = ["a", stemcells["small"], {}, NETWORKS, [], {}]
    assert "quotas" in refusal(clients["small"]("create_vm", *unlimited))[1]


def test_what_others_have_is_not_there(clients: dict[str, ThinClient], vm: str) -> None:
    other, small = clients["other"], clients["small"]
    disk = done(small("create_disk", 32, {}, vm))
    done(small("attach_disk", vm, disk))
    own = done(other("create_disk", 32, {}, None))
    assert done(other("has_vm", vm)) is False
    assert done(other("has_disk", disk)) is False
    for method, arguments, error_type in (
        ("delete_vm", [vm], "VMNotFound"),
        ("reboot_vm", [vm], "VMNotFound"),
        ("set_vm_metadata", [vm, {}], "VMNotFound"),
        ("get_disks", [vm], "VMNotFound"),
        ("attach_disk", [vm, own], "VMNotFound"),
        ("detach_disk", [vm, disk], "VMNotFound"),
        ("delete_disk", [disk], "DiskNotFound"),
        ("resize_disk", [disk, 64], "DiskNotFound"),
        ("snapshot_disk", [disk, {}], "DiskNotFound"),
        ("set_disk_metadata", [disk, {}], "DiskNotFound"),
    ):
        assert (method, refusal(other(method, *arguments))[0]) == (method, error_type)
    assert done(small("get_disks", vm)) == [disk]
    done(small("detach_disk", vm, disk))
    done(small("delete_disk", disk))
    done(other("delete_disk", own))


@pytest.mark.parametrize(
    ("properties", "networks", "rule"),
    [
        ({"privileged": True}, NETWORKS, "privileged"),
        ({"host_service": True}, NETWORKS, "host_service"),
        ({"mounts": [{"host": "/etc", "vm": "/mnt/etc"}]}, NETWORKS, "mounts"),
        ({"ports": ["22:22"]}, NETWORKS, "ports"),
        ({"runtime": "kvm"}, NETWORKS, "runtimes"),
        (
            {},
            {"default": {"type": "dynamic", "cloud_properties": {"bridge": "docker0"}}},
            "networks",
        ),
        ({}, {"default": {"type": "dynamic", "cloud_properties": {"spoofing": True}}}, "spoofing"),
    ],
)
def test_what_the_host_does_not_allow_names_its_rule(
    clients: dict[str, ThinClient],
    stemcells: dict[str, str],
    properties: dict[str, Any],
    networks: dict[str, Any],
    rule: str,
) -> None:
    arguments: list[Any] = ["a", stemcells["other"], properties, networks, [], {}]
    error_type, message = refusal(clients["other"]("create_vm", *arguments))
    assert error_type in ("CloudError", "NotSupported", "VMCreationFailed")
    assert f"service.clients.other.{rule}" in message


def test_the_context_does_not_move_the_hosts_folders(
    service: Service, clients: dict[str, ThinClient]
) -> None:
    """A client's configuration cannot override the host's."""
    context = {"state_dir": "/etc", "run_dir": "/etc", "disk_dir": "/etc", "log_level": "debug"}
    response = clients["other"]("create_disk", 16, {}, None, context=context)
    disk = done(response)
    assert "state_dir" in response["log"]
    assert not list(Path("/etc").glob("*-disk-*"))
    done(clients["other"]("delete_disk", disk))
