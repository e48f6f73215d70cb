"""create_vm's networks."""

from typing import Any

import pytest

from cpi.contract import vm_networks
from cpi.errors import CloudError, NotSupported
from cpi.log import Log
from cpi.model import Network

MANUAL = {"type": "manual", "ip": "10.0.1.5", "netmask": "255.255.255.0", "gateway": "10.0.1.1"}


def parse(given: object) -> Network:
    """Return one network, parsed."""
    (network,) = vm_networks.parse({"net": given}, Log("error"))
    return network


def refused(given: object) -> str:
    """Return the message with which one network is refused."""
    with pytest.raises(CloudError) as raised:
        vm_networks.parse({"net": given}, Log("error"))
    assert raised.value.message.startswith("network 'net'")
    return raised.value.message


def test_manual_as_the_director_sends_it() -> None:
    sent = {
        **MANUAL,
        "prefix": "32",  # of the address; the subnet's comes from the netmask
        "dns": ["8.8.8.8"],
        "default": ["dns", "gateway"],
        "cloud_properties": {"name": "flannel"},
    }
    assert parse(sent) == Network(
        name="net",
        type="manual",
        ip="10.0.1.5",
        prefix=24,
        gateway="10.0.1.1",
        dns=("8.8.8.8",),
        default=("dns", "gateway"),
        cloud_properties={"name": "flannel"},
    )


def test_manual_ipv6_as_the_director_sends_it() -> None:
    sent = {
        "type": "manual",
        "ip": "2001:0db8:0000::0005",
        "prefix": "128",
        "netmask": "ffff:ffff:ffff:ffff:0000:0000:0000:0000",
        "gateway": "2001:db8::1",
    }
    network = parse(sent)
    assert (network.ip, network.prefix, network.gateway) == ("2001:db8::5", 64, "2001:db8::1")


def test_dynamic_as_the_director_sends_it() -> None:
    sent = {"type": "dynamic", "prefix": "32", "cloud_properties": {}, "default": ["dns"]}
    assert parse(sent) == Network(name="net", type="dynamic", default=("dns",))


@pytest.mark.parametrize(("prefix", "length"), [("24", 24), (24, 24), ("32", 32)])
def test_prefix_serves_without_a_netmask(prefix: object, length: int) -> None:
    assert parse({"ip": "10.0.1.5", "prefix": prefix}).prefix == length


def test_type_is_manual_unless_said() -> None:
    assert parse({"ip": "10.0.1.5", "netmask": "255.255.0.0", "gateway": ""}).type == "manual"


def test_no_networks_and_several() -> None:
    assert vm_networks.parse({}, Log("error")) == ()
    other = {"type": "dynamic"}
    names = [network.name for network in vm_networks.parse({"z": MANUAL, "a": other}, Log("error"))]
    assert names == ["z", "a"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "bridged"}, "type 'bridged' is not known; known: manual, dynamic"),
        ({"type": 5}, "type must be a string, got 5"),
        ({"ip": None}, "is manual, so it needs an ip"),
        ({"ip": ""}, "is manual, so it needs an ip"),
        ({"ip": 5}, "ip must be a string, got 5"),
        ({"ip": "10.0.0.300"}, "ip must be an IP address, got '10.0.0.300'"),
        ({"ip": "10.0.1.5/24"}, "ip must be an IP address, got '10.0.1.5/24'"),
        ({"ip": "10.0.1.5; reboot"}, "ip must be an IP address, got '10.0.1.5; reboot'"),
        ({"ip": "10.0.1.5\n"}, "ip must be an IP address, got '10.0.1.5\\n'"),
        ({"ip": "fe80::1%eth0"}, "ip 'fe80::1%eth0' must not name an interface"),
        ({"ip": "::"}, ":: is no address for a VM"),
        ({"ip": "224.0.0.1"}, "224.0.0.1 is no address for a VM"),
        ({"ip": "127.0.0.1"}, "127.0.0.1 is no address for a VM"),
        ({"ip": "10.0.1.0"}, "10.0.1.0 is the network or broadcast address of 10.0.1.0/24"),
        ({"ip": "10.0.1.255"}, "10.0.1.255 is the network or broadcast address"),
        ({"ip": "10.0.1.1"}, "10.0.1.1 is both the VM's address and the gateway's"),
        ({"netmask": None}, "is manual, so it needs a netmask"),
        ({"netmask": "255.0.255.0"}, "255.0.255.0 is no netmask for 10.0.1.5"),
        ({"netmask": "0.0.0.255"}, "0.0.0.255 is no netmask for 10.0.1.5"),
        ({"netmask": "24"}, "netmask must be an IP address, got '24'"),
        ({"netmask": "ffff::"}, "ffff:: is no netmask for 10.0.1.5"),
        ({"prefix": "x"}, "prefix must be a number, 1 to 32"),
        ({"prefix": "33"}, "prefix must be a number, 1 to 32"),
        ({"prefix": 0}, "prefix must be a number, 1 to 32"),
        ({"prefix": True}, "prefix must be a number, 1 to 32"),
        ({"prefix": "9" * 5000}, "prefix must be a number, 1 to 32"),
        ({"gateway": "gw"}, "gateway must be an IP address, got 'gw'"),
        ({"gateway": "fe80::1"}, "gateway fe80::1 is of another family than 10.0.1.5"),
        ({"dns": "8.8.8.8"}, "dns must be a list, got a string"),
        ({"dns": [8]}, "dns[0] must be a string, got 8"),
        ({"dns": ["resolver"]}, "dns must be an IP address, got 'resolver'"),
        ({"default": "dns"}, "default must be a list, got a string"),
        ({"cloud_properties": "x"}, "cloud_properties must be an object, got a string"),
    ],
)
def test_wrong_networks(change: dict[str, object], reason: str) -> None:
    assert reason in refused({**MANUAL, **change})


def test_a_dynamic_network_ignores_the_address_of_the_vm_that_is_replaced() -> None:
    log = Log(quiet=True)
    sent = {
        "type": "dynamic",
        "ip": "10.245.0.2",
        "netmask": "255.255.0.0",
        "gateway": "10.245.0.1",
        "prefix": "32",
        "default": ["dns", "gateway"],
        "cloud_properties": {},
    }
    (network,) = vm_networks.parse({"d": sent}, log)
    assert network == Network("d", "dynamic", default=("dns", "gateway"))
    assert "network 'd' is dynamic: ignored ip, netmask, gateway\n" in log.text


def test_a_network_is_an_object() -> None:
    assert refused("x") == "network 'net' must be an object, got a string"


@pytest.mark.parametrize("network", [{"type": "vip", "ip": "1.2.3.4"}, {**MANUAL, "prefix": "28"}])
def test_what_is_not_supported_says_so(network: object) -> None:
    with pytest.raises(NotSupported, match="not supported"):
        vm_networks.parse({"net": network}, Log("error"))


@pytest.mark.parametrize("name", ["", "a\nb", "a\0", "x" * 129])
def test_odd_names(name: str) -> None:
    with pytest.raises(CloudError, match="must be 1 to 128 printable characters"):
        vm_networks.parse({name: MANUAL}, Log("error"))


def test_an_address_comes_once() -> None:
    with pytest.raises(CloudError, match="the same address twice"):
        vm_networks.parse({"a": MANUAL, "b": MANUAL}, Log("error"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gateway": "10.9.9.9"}, "gateway 10.9.9.9 is outside 10.0.1.0/24"),
        ({"nic_group": "1"}, "nic_group is not honoured"),
    ],
)
def test_oddities_are_logged(
    change: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log("warn")
    vm_networks.parse({"net": {**MANUAL, **change}}, log)
    assert reason in log.text
    assert reason in capsys.readouterr().err
