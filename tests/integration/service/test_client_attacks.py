"""What a client of the service with the default policy tries against the host and its clients.

It comes over TLS with a root file system of its own, whose init attacks the host. Another client,
whose policy allows everything, does the same with success, so that the tests can fail. The host's
own VMs get no user namespaces.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stemcell_convert.mount_programs import DISK_FOLDER
from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import Service, ThinClient
from testing.patience import wait_for
from tests.integration.service.conftest import over_tls
from tests.support.certificates import CA
from tests.support.containerd import attacks
from tests.support.containerd.attacks import ATTACKS, EXPOSED, HOST, PRIVILEGED, Attack
from tests.support.containerd.machine import Machine
from tests.support.stemcells import hostile_image

NETWORKS = {"default": {"type": "dynamic"}}
SMALL = {"memory": 512, "ephemeral_disk": 32}
MOUNT = {"mounts": [{"host": "/etc", "vm": "/mnt/etc", "read_only": False}]}
OPENS_DISK = f'python3 -c \'open("/{hostile_image.DISK}", "rb")\''
ALL = (*ATTACKS, Attack("a disk of the host by a node in the image", OPENS_DISK, PRIVILEGED))

Results = dict[str, bool]


@pytest.fixture(scope="module")
def allowing(host: PrivateHost, settings: dict[str, object], service: Service) -> Iterator[Service]:
    """Yield the service, where one client may do everything."""
    service.stop()
    everything = {"uncontained": True, "privileged": True, "host_service": True, "mounts": ["/etc"]}
    containerd = {**host.config()["containerd"], "user_namespaces": "off"}
    changed = {**settings, "clients": {"trusted": everything}}
    try:
        with Service(host, changed, containerd=containerd) as running:
            yield running
    finally:
        Service(host, settings)  # writes its configuration back
        service.start()


@pytest.fixture(scope="module")
def clients(allowing: Service, authority: CA) -> dict[str, ThinClient]:
    return over_tls(allowing, authority, "attacker", "trusted")


@pytest.fixture(scope="module")
def stemcells(
    clients: dict[str, ThinClient], image: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    path = tmp_path_factory.mktemp("hostile") / "image"
    hostile_image.write(path, image, [attack.script for attack in ALL])
    return {
        name: done(client("create_stemcell", str(path), {})) for name, client in clients.items()
    }


@pytest.fixture(scope="module")
def vms(clients: dict[str, ThinClient], stemcells: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield VMs: the attacker's, and those of the trusted client by what works in them."""
    made: dict[str, str] = {}
    wanted = {
        "attacker": SMALL,
        EXPOSED: {**SMALL, **MOUNT, "host_service": True},
        PRIVILEGED: {**SMALL, "privileged": True},
    }
    with attacks.secret():
        for name, properties in wanted.items():
            owner = name if name in clients else "trusted"
            # What the client's own context says about the host counts for nothing.
            context = {"director_uuid": "tests", "containerd": {"user_namespaces": "off"}}
            arguments: tuple[Any, ...] = ("agent", stemcells[owner], properties, NETWORKS, [], {})
            made[name] = done(clients[owner]("create_vm", *arguments, context=context))[0]
        yield made
    for name, vm in made.items():
        done(clients[name if name in clients else "trusted"]("delete_vm", vm))


@pytest.fixture(scope="module")
def results(machine: Machine, vms: dict[str, str]) -> dict[str, Results]:
    """Return which attacks have succeeded in each VM."""
    return {name: _results(machine, vm) for name, vm in vms.items()}


def _results(machine: Machine, vm: str) -> Results:
    def read() -> str:
        words = ("exec", "--no-terminal", vm, "--", "cat", hostile_image.RESULTS)
        return machine.bosh_cpi(*words, check=False).stdout

    statuses = dict(line.split() for line in wait_for(read, "the end of the attacks").splitlines())
    return {attack.name: statuses[str(number)] == "0" for number, attack in enumerate(ALL)}


def done(response: dict[str, Any]) -> Any:
    assert response["error"] is None, response
    return response["result"]


def refusal(response: dict[str, Any]) -> str:
    error = response["error"]
    assert error is not None, response
    return f"{error['type'].removeprefix('Bosh::Clouds::')}: {error['message']}"


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_the_init_of_a_client_cannot_do_this(results: dict[str, Results], attack: Attack) -> None:
    assert not results["attacker"][attack.name]


@pytest.mark.parametrize(
    "attack",
    [attack for attack in ALL if attack.works != HOST],  # shown in test_attacks
    ids=lambda attack: attack.name,
)
def test_it_can_where_the_policy_allows_it(results: dict[str, Results], attack: Attack) -> None:
    assert results[attack.works][attack.name]


@pytest.mark.parametrize(
    ("properties", "rule"),
    [
        ({"privileged": True}, "privileged"),
        ({"host_service": True}, "host_service"),
        (MOUNT, "mounts"),
    ],
)
def test_a_client_cannot_ask_for_more(
    clients: dict[str, ThinClient],
    stemcells: dict[str, str],
    vms: dict[str, str],  # the trusted client has got all of it
    properties: dict[str, Any],
    rule: str,
) -> None:
    arguments: tuple[Any, ...] = (
        "agent",
        stemcells["attacker"],
        {**SMALL, **properties},
        NETWORKS,
        [],
        {},
    )
    assert f"service.clients.default.{rule}" in refusal(
        clients["attacker"]("create_vm", *arguments)
    )


def test_the_disk_of_another_client(
    clients: dict[str, ThinClient],
    stemcells: dict[str, str],
    vms: dict[str, str],
    host: PrivateHost,
    machine: Machine,
) -> None:
    attacker, trusted = clients["attacker"], clients["trusted"]
    disk = done(trusted("create_disk", 32, {}, None))
    arguments: tuple[Any, ...] = ("agent", stemcells["attacker"], SMALL, NETWORKS, [disk], {})
    for answer in (
        attacker("attach_disk", vms["attacker"], disk),
        attacker("create_vm", *arguments),
    ):
        assert refusal(answer).startswith("DiskNotFound")
    done(trusted("attach_disk", vms[EXPOSED], disk))
    look = ("--", "ls", "-A", DISK_FOLDER)
    inside = {name: machine.bosh_cpi("exec", "--no-terminal", vms[name], *look).stdout
              for name in ("attacker", EXPOSED)}  # fmt: skip
    assert inside["attacker"] == ""
    assert inside[EXPOSED] != ""
    done(trusted("detach_disk", vms[EXPOSED], disk))
    # It is the record that makes the difference.
    records = host.state / "clients"
    (records / "trusted" / disk).rename(records / "attacker" / disk)
    done(attacker("attach_disk", vms["attacker"], disk))
    done(attacker("detach_disk", vms["attacker"], disk))
    done(attacker("delete_disk", disk))


def test_a_host_that_cannot_contain_vms_makes_none_for_a_client(image: Path) -> None:
    with PrivateHost() as host:
        # This snapshotter stands for a kernel that cannot make user namespaces.
        containerd = {**host.config()["containerd"], "snapshotter": "native"}
        rules = {"clients": {"guest": {"uncontained": True}}}
        with Service(host, rules, containerd=containerd) as service:
            guests = {"endpoint": f"unix://{host.folder}/run/guest/cpi.sock"}
            clients = service.client(), ThinClient(host, service.zipapp, guests)
            answers = []
            for client in clients:
                stemcell = done(client("create_stemcell", str(image), {}))
                answers.append(client("create_vm", "agent", stemcell, SMALL, NETWORKS, [], {}))
            needs = "NotSupported: VMs must run in user namespaces"
            assert refusal(answers[0]).startswith(needs)
            done(clients[1]("delete_vm", done(answers[1])[0]))
