"""What the host's configuration says of the service's clients, and how each rule is held."""

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpi.config.load import config_of
from cpi.errors import CloudError, CPIError, InvalidCall
from cpi.host import iproute
from cpi.model import Network
from cpi.service import rules
from cpi.service.guard import Guard
from cpi.service.policy import Policies, client_name, client_of_certificate
from tests.support.fake_config import fake_config, fake_registered
from tests.support.service_clients import client


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with fake_registered():
        yield


def policies(clients: object, **more: object) -> Policies:
    return Policies.of(config_of({"service": {"clients": clients}, **more}))


def test_a_network_with_spoofing_needs_a_rule() -> None:
    networks = [Network("n", type="dynamic", cloud_properties={"spoofing": True})]
    allowed = policies({"a": {"spoofing": True}, "b": {}})
    rules.require_networks(allowed.of_client("a"), networks, "bosh0")
    with pytest.raises(CloudError, match=r"service\.clients\.b\.spoofing does not allow"):
        rules.require_networks(allowed.of_client("b"), networks, "bosh0")


def test_nothing_dangerous_is_allowed_unless_somebody_says_so() -> None:
    policy = policies({}, runtimes=["kvm"], network={"bridge": "br7"}).of_client("anyone")
    assert (policy.privileged, policy.host_service, policy.registry_credentials) == (False,) * 3
    assert not policy.spoofing
    assert policy.mounts == ()
    assert policy.ports == (range(1024, 65536),)
    assert policy.networks == ("br7",)
    assert policy.runtimes == ("containerd", "kvm")
    assert policy.stores == ("default",)
    assert policy.quotas == {}
    assert policy.subnets is None  # private ones


def test_a_client_has_its_own_policy_or_the_default() -> None:
    all_policies = policies(
        {"guest": {"ports": [443]}, "default": {"privileged": True}, "idle": None}
    )
    assert all_policies.of_client("guest").ports == (range(443, 444),)
    assert all_policies.of_client("guest").privileged is False
    assert all_policies.of_client("local").privileged is True
    assert all_policies.of_client("some.director").rule == "service.clients.default"
    assert all_policies.of_client("idle").privileged is False


def test_everything_given() -> None:
    given = {
        "privileged": True,
        "host_service": True,
        "mounts": ["/srv/shared/", "/opt//x"],
        "ports": ["443", "8000-9000", 53],
        "networks": ["bosh0", "flannel"],
        "subnets": ["10.1.0.0/16", "2001:db8::/32"],
        "runtimes": ["containerd"],
        "stores": ["fast"],
        "registry_credentials": True,
        "quotas": {"vms": 3, "cpu": 1.5, "memory": 1024, "disk": 0, "stemcells": None},
    }
    policy = policies({"guest": given}, disk_stores={"fast": "/mnt"}).of_client("guest")
    assert policy.mounts == ("/srv/shared", "/opt/x")
    assert policy.ports == (range(443, 444), range(8000, 9001), range(53, 54))
    assert policy.stores == ("fast",)
    assert policy.quotas == {"vms": 3, "cpu": 1.5, "memory": 1024, "disk": 0}


@pytest.mark.parametrize(
    ("clients", "reason"),
    [
        ({"guest": {"privilegd": True}}, "service.clients.guest has unknown keys: 'privilegd' (did"
         " you mean privileged?)"),
        ({"guest": {"quotas": {"memroy": 1}}}, "guest.quotas has unknown keys: 'memroy' (did you"),
        ({"guest": []}, "service.clients.guest must be an object, got a list"),
        ({"guest": {"privileged": "true"}}, "guest.privileged must be true or false, got a string"),
        ({"guest": {"host_service": 1}}, "guest.host_service must be true or false, got 1"),
        ({"guest": {"mounts": "/srv"}}, "guest.mounts must be a list, got a string"),
        ({"guest": {"mounts": ["srv"]}}, "guest.mounts[0] must be an absolute path"),
        ({"guest": {"mounts": ["/srv/../etc"]}},
         "guest.mounts[0] must be an absolute path without .. or ., got '/srv/../etc'"),
        ({"guest": {"ports": ["9-8"]}}, "guest.ports[0] must be a port or a range of ports"),
        ({"guest": {"ports": ["0"]}}, "guest.ports[0] must be a port"),
        ({"guest": {"ports": ["1-65536"]}}, "guest.ports[0] must be a port"),
        ({"guest": {"ports": [True]}}, "guest.ports[0] must be a port"),
        ({"guest": {"networks": ["../x"]}}, "guest.networks[0] must be the name of a bridge"),
        ({"guest": {"subnets": ["10.0.0.1/8"]}}, "guest.subnets[0] must be a subnet such as"),
        ({"guest": {"subnets": [10]}}, "guest.subnets[0] must be a subnet such as"),
        ({"guest": {"runtimes": ["containrd"]}}, "'containrd' (did you mean containerd?)"),
        ({"guest": {"stores": ["fast"]}}, "guest.stores[0] must be one of default, got 'fast'"),
        ({"guest": {"quotas": {"vms": -1}}}, "vms must be a whole number, 0 to 1099511627775, got"),
        ({"guest": {"quotas": {"vms": 1.5}}}, "vms must be a whole number, 0 to 1099511627775, g"),
        ({"guest": {"quotas": {"cpu": True}}}, "cpu must be a number, 0 to 1099511627775, got a b"),
        ({"guest": {"quotas": {"cpu": float("inf")}}}, "quotas.cpu must be a number"),
        ({"../x": {}}, "service.clients: '../x' cannot be a client's"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_when_the_service_starts(clients: object, reason: str) -> None:
    with pytest.raises(CPIError) as raised:
        policies(clients)
    assert reason in raised.value.message


ODD_NAMES = ("../x", "..", ".", "", "/etc", "a/b", "a\0b", "a b", "-x", "é", "a\n", "x" * 65)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_client_names_are_checked_before_they_meet_a_path(tmp_path: Path, name: str) -> None:
    config = fake_config(tmp_path)
    for use in (client_name, lambda name: Guard(name, config, Policies.of(config))):
        with pytest.raises(CPIError, match="cannot be a client's"):
            use(name)
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_has_one_name_that_is_not_a_sockets() -> None:
    assert client_of_certificate(["director@z1.example.com"]) == "director@z1.example.com"
    wrong = [[], ["a", "b"], *([name] for name in ("local", "guest", "default", *ODD_NAMES))]
    for names in wrong:
        with pytest.raises(InvalidCall, match="needs one common name"):
            client_of_certificate(names)


def network(**more: object) -> dict[str, object]:
    return {"n": {"type": "manual", "ip": "10.9.0.5", "netmask": "255.255.255.0", **more}}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str, str]] = [
    # cloud_properties, networks, rule, error, what would allow it
    ({"privileged": True}, {}, "privileged", "NotSupported", "true"),
    ({"host_service": True}, {}, "host_service", "NotSupported", "true"),
    ({"ports": ["443:80"]}, {}, "ports", "CloudError", '["443"]'),
    ({"ports": ["8080", "127.0.0.1:22:22"]}, {}, "ports", "CloudError", '["1-65535"]'),
    ({"mounts": [{"host": "/srv/a", "vm": "/mnt"}]}, {}, "mounts", "CloudError", '["/srv"]'),
    ({"runtime": "kvm"}, {}, "runtimes", "NotSupported", ""),
    ({}, {"n": {"type": "dynamic", "cloud_properties": {"bridge": "br1"}}}, "networks",
     "CloudError", '["br1"]'),
    ({}, {"n": {"type": "dynamic", "cloud_properties": {"name": "flannel"}}}, "networks",
     "CloudError", '["flannel"]'),
    ({}, {"n": {"type": "dynamic", "cloud_properties": {"name": "bosh0", "bridge": "br1"}}},
     "networks", "CloudError", '["bosh0", "br1"]'),
    ({}, network(ip="8.8.8.9"), "subnets", "CloudError", '["8.0.0.0/8"]'),
    ({}, network(netmask="240.0.0.0", gateway="10.0.0.1"), "subnets", "CloudError",
     '["0.0.0.0/0"]'),
    ({}, network(gateway="192.0.2.1"), "subnets", "CloudError", '["0.0.0.0/0"]'),
    ({}, {"n": {"type": "manual", "ip": "2001:db8::5", "netmask": "ffff:ffff::"}}, "subnets",
     "CloudError", '["2001:db8::/32"]'),
]  # fmt: skip


@pytest.mark.parametrize(("properties", "networks", "rule", "error_type", "allowing"), REFUSED)
def test_each_rule_is_named_and_can_be_lifted(
    tmp_path: Path,
    properties: dict[str, Any],
    networks: dict[str, Any],
    rule: str,
    error_type: str,
    allowing: str,
) -> None:
    guest = client(tmp_path)
    arguments = ["agent", guest.stemcell(), properties, networks, [], {}]
    error = guest.fails("create_vm", *arguments)
    assert error.type == error_type
    assert f"the host's rule service.clients.default.{rule} does not allow " in error.message
    assert len(guest.records()) == 1  # the stemcell
    if allowing:
        allowed = client(tmp_path, guest={rule: json.loads(allowing)})
        assert allowed.call("create_vm", *arguments)


def test_a_client_cannot_take_a_subnet_that_the_host_has_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lan = iproute.Route(ipaddress.ip_network("10.9.0.0/22"), "eth0")
    own = iproute.Route(ipaddress.ip_network("10.8.0.0/16"), "bosh0")
    monkeypatch.setattr(iproute, "routes", lambda: [lan, own])
    guest = client(tmp_path, default={"networks": ["bosh0", "br1", "flannel"]})
    stemcell = guest.stemcell()
    for networks in (network(), network(netmask="255.0.0.0"), network(gateway="10.9.0.1")):
        error = guest.fails("create_vm", "agent", stemcell, {}, networks, [], {})
        assert "service.clients.default.subnets does not allow the subnet" in error.message
        assert "as the host reaches 10.9.0.0/22 by 'eth0'" in error.message
    elsewhere = network(ip="10.8.0.5", cloud_properties={"bridge": "br1"})
    assert "by 'bosh0'" in guest.fails("create_vm", "a", stemcell, {}, elsewhere, [], {}).message
    assert guest.call("create_vm", "a", stemcell, {}, network(ip="10.8.0.5"), [], {})
    # An administrator who names a CNI network or a subnet knows about it.
    cni = network(cloud_properties={"name": "flannel"})
    assert guest.call("create_vm", "a", stemcell, {}, cni, [], {})
    allowed = client(tmp_path, guest={"subnets": ["10.9.0.0/24"]})
    assert allowed.call("create_vm", "a", allowed.stemcell(), {}, network(ip="10.9.0.7"), [], {})


def test_rules_name_the_client_that_they_are_of(tmp_path: Path) -> None:
    guest = client(tmp_path, guest={})
    error = guest.fails("create_vm", *guest.arguments(guest.stemcell(), {"privileged": True}))
    assert "service.clients.guest.privileged does not allow cloud_properties.privileged: true" in (
        error.message
    )


@pytest.mark.parametrize("host", ["/srv/sharedx", "/srv", "/", "/srv/other/shared", "/etc"])
def test_mounts_are_below_what_is_allowed(tmp_path: Path, host: str) -> None:
    guest = client(tmp_path, guest={"mounts": ["/srv/shared"]})
    wanted: dict[str, Any] = {"mounts": [{"host": host, "vm": "/mnt"}]}
    stemcell = guest.stemcell()
    if host != "/":  # which is no plain path to begin with
        error = guest.fails("create_vm", *guest.arguments(stemcell, wanted))
        assert "service.clients.guest.mounts does not allow" in error.message
    wanted["mounts"][0]["host"] = "/srv/shared/../../etc"
    error = guest.fails("create_vm", *guest.arguments(stemcell, wanted))
    assert "must be an absolute path of at most 1024" in error.message
    for inside in ("/srv/shared", "/srv/shared/a"):
        wanted["mounts"][0]["host"] = inside
        assert guest.call("create_vm", *guest.arguments(stemcell, wanted))


def test_a_bridge_from_the_context_is_judged_as_one_from_the_manifest(tmp_path: Path) -> None:
    guest = client(tmp_path)
    arguments = guest.arguments(guest.stemcell())
    context = {"network": {"bridge": "docker0"}}
    error = guest.fails("create_vm", *arguments, context=context)
    assert "service.clients.default.networks does not allow" in error.message
    assert "docker0" in error.message


def test_a_runtime_from_the_context_is_judged_too(tmp_path: Path) -> None:
    guest = client(tmp_path)
    stemcell, context = guest.stemcell(), {"runtime": "kvm"}
    calls: dict[str, list[Any]] = {
        "create_stemcell": [str(guest.upload), {}],
        "create_vm": guest.arguments(stemcell),
        "create_disk": [64, {}, None],
    }
    for method, arguments in calls.items():
        error = guest.fails(method, *arguments, context=context)
        assert error.type == "NotSupported"
        assert "service.clients.default.runtimes does not allow the runtime 'kvm'" in error.message
    # Others that a stemcell would be imported for are left out.
    assert guest.call("create_stemcell", str(guest.upload), {}, context={"runtimes": ["kvm"]})


def test_disk_stores_are_judged(tmp_path: Path) -> None:
    guest = client(tmp_path)
    disk = guest.disk()
    calls: dict[str, list[Any]] = {
        "create_disk": [64, {"store": "fast"}, None],
        "update_disk": [disk, 64, {"store": "fast"}],
    }
    for method, arguments in calls.items():
        error = guest.fails(method, *arguments)
        assert error.type == "CloudError"
        assert "service.clients.default.stores does not allow the disk store 'fast'" in (
            error.message
        )
