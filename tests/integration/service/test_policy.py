"""Quotas and mounts of the socket for guests, on the real service and a real containerd."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import Service, ThinClient
from testing.patience import PATIENCE
from tests.integration.service.conftest import GROUP
from tests.support.containerd.machine import Machine
from tests.support.processes import ended

MEMORY = 64
NETWORKS = {"default": {"type": "dynamic"}}


@pytest.fixture(scope="module")
def ruled(host: PrivateHost, service: Service, settings: dict[str, object]) -> Iterator[Service]:
    """Yield the service, with rules for its clients."""
    service.stop()
    clients = {
        "guest": {
            "quotas": {"memory": 3 * MEMORY, "disk": 256},
            "mounts": [f"{host.folder}/shared"],
        },
        "local": {"uncontained": True},
    }
    containerd = {**host.config()["containerd"], "user_namespaces": "off"}
    try:
        rules = {"socket_group": GROUP, "clients": clients}
        with Service(host, rules, containerd=containerd) as own:
            yield own
    finally:
        Service(host, settings)  # writes its configuration back
        service.start()


@pytest.fixture(scope="module")
def guest(ruled: Service) -> ThinClient:
    """Return a client of the socket for guests, as used by a VM with host_service."""
    return ThinClient(
        ruled.host, ruled.zipapp, {"endpoint": f"unix://{ruled.host.folder}/run/guest/cpi.sock"}
    )


@pytest.fixture(autouse=True)
def _clean(ruled: Service, guest: ThinClient, machine: Machine) -> Iterator[None]:
    """Delete what a test's clients made, and check that nothing is leaked."""
    yield
    for folder in (machine.host.state / "clients").iterdir():
        client = guest if folder.name == "guest" else ruled.client()
        for resource in ("vm", "disk"):
            for record in folder.glob(f"*-{resource}-*"):
                assert client(f"delete_{resource}", record.name)["error"] is None
    left = machine.leftovers()
    assert (left["containers"], left["mounts"], left["namespaces"]) == ([], [], [])


def arguments(stemcell: str, **properties: Any) -> list[Any]:
    return [
        "agent",
        stemcell,
        {"memory": MEMORY, "ephemeral_disk": 32, **properties},
        NETWORKS,
        [],
        {},
    ]


def ok(response: dict[str, Any]) -> Any:
    assert response["error"] is None, response["error"]
    return response["result"]


def refused(response: dict[str, Any]) -> str:
    assert response["result"] is None
    error = response["error"]
    return f"{error['type'].removeprefix('Bosh::Clouds::')}: {error['message']}"


def test_a_client_is_contained_unless_its_rule_says_otherwise(
    ruled: Service, guest: ThinClient, machine: Machine, image: Path
) -> None:
    """Root of the host has user namespaces off: that is for its own VMs."""
    isolation = {}
    for name, client in (("guest", guest), ("local", ruled.client())):
        stemcell = ok(client("create_stemcell", str(image), {}))
        isolation[ok(client("create_vm", *arguments(stemcell)))[0]] = name
    rows = json.loads(machine.bosh_cpi("vms", "--json").stdout)
    assert {isolation[row["cid"]]: row["isolation"] for row in rows} == {
        "guest": "user namespace",
        "local": "none",
    }


def test_many_at_once_get_no_more_than_the_quota(guest: ThinClient, image: Path) -> None:
    stemcell = ok(guest("create_stemcell", str(image), {}))
    with ExitStack() as calls:
        started = [guest.started("create_vm", *arguments(stemcell)) for _ in range(8)]
        processes = [calls.enter_context(ended(process)) for process in started]
        answers = [json.loads(call.communicate(timeout=PATIENCE)[0]) for call in processes]
    refusals = [refused(answer) for answer in answers if answer["error"]]
    assert len(refusals) == 5
    for refusal in refusals:
        assert refusal.startswith(
            "VMCreationFailed: the host's rule service.clients.guest.quotas.memory"
        )
    vms = [answer["result"][0] for answer in answers if answer["result"]]
    assert all(ok(guest("has_vm", vm)) for vm in vms)
    assert refused(guest("create_disk", 200, {}, None)).startswith("NoDiskSpace: the host's rule")
    ok(guest("delete_vm", vms[0]))
    ok(guest("create_vm", *arguments(stemcell)))


def test_mounts_do_not_lead_out_of_what_is_allowed(
    guest: ThinClient, machine: Machine, image: Path, host: PrivateHost
) -> None:
    shared = host.folder / "shared"
    (shared / "data").mkdir(parents=True)
    (shared / "out").symlink_to("/etc")
    stemcell = ok(guest("create_stemcell", str(image), {}))

    def mount(path: Path | str) -> dict[str, Any]:
        return {"mounts": [{"host": str(path), "vm": "/mnt"}]}

    refusals: dict[Path | str, str] = {
        "/etc": "the host's rule service.clients.guest.mounts",
        f"{shared}-not": "the host's rule service.clients.guest.mounts",
        shared / "out": f"the host's folder {shared}/out cannot be mounted",
    }
    for path, message in refusals.items():
        answer = guest("create_vm", *arguments(stemcell, **mount(path)))
        assert refused(answer).startswith(f"CloudError: {message}")
    assert machine.leftovers()["containers"] == []
    vm = ok(guest("create_vm", *arguments(stemcell, **mount(shared / "data"))))[0]
    assert machine.call("has_vm", vm) is True
