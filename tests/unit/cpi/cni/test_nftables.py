"""Our tables of nftables: what is rendered, and what is read. Real ones: tests/integration."""

from pathlib import Path

import pytest

from cpi.cni import nftables
from cpi.cni.nftables import Element, Guest
from tests.support.golden_files import matches_golden

PORTS = (
    {"protocol": "tcp", "hostPort": 8080, "containerPort": 80},
    {"protocol": "udp", "hostPort": 53, "containerPort": 53, "hostIP": "127.0.0.1"},
)
BOTH = ("10.0.0.5", "fd00::5")


def _elements(port: dict[str, object], addresses: tuple[str, ...] = BOTH) -> set[Element]:
    elements = Guest("vm", "bosh0", addresses, ports=[port]).elements()
    return {element for element in elements if element.set.startswith("published")}


def test_a_transaction_that_adds_guests() -> None:
    guests = [
        Guest("containerd-vm-1", "bosh0", BOTH, masquerade=True, ports=PORTS),
        Guest("containerd-vm-1", "other0", ("10.9.0.5",)),
    ]
    text = nftables.adding("bosh-cpi-1", guests)
    assert matches_golden("nft_adding", text.splitlines())


def test_a_transaction_that_removes_elements() -> None:
    elements = list(Guest("vm", "bosh0", BOTH, masquerade=True, ports=PORTS).elements())
    lines = nftables.removing("bosh-cpi-1", elements).splitlines()
    added = [line.removeprefix("add ") for line in lines if line.startswith("add element")]
    deleted = [line.removeprefix("delete ") for line in lines if line.startswith("delete element")]
    assert added == deleted
    assert len(deleted) == len({element.set for element in elements}) == 7


@pytest.mark.parametrize(
    ("host_ip", "sets"),
    [
        ("", {"published4", "published6"}),
        ("0.0.0.0", {"published4"}),  # noqa: S104
        ("::", {"published6"}),
        ("192.0.2.1", {"published4_at"}),
        ("2001:DB8::1", {"published6_at"}),
    ],
)
def test_ports_are_published_for_the_families_of_their_address(
    host_ip: str, sets: set[str]
) -> None:
    port = {"protocol": "tcp", "hostPort": 1, "containerPort": 2, "hostIP": host_ip}
    elements = _elements(port)
    assert {element.set for element in elements} == sets
    if host_ip == "2001:DB8::1":
        assert elements == {Element("published6_at", "2001:db8::1 . tcp . 1", "fd00::5 . 2")}


def test_a_port_leads_to_the_first_address_of_a_family() -> None:
    [element] = _elements(
        {"protocol": "tcp", "hostPort": 1, "containerPort": 2}, ("10.0.0.6", "10.0.0.5")
    )
    assert element.value == "10.0.0.6 . 2"


def test_each_state_dir_has_its_own_table() -> None:
    names = {nftables.table_name(Path(folder)) for folder in ("/a", "/b")}
    assert len(names) == 2
    assert all(name.startswith("bosh-cpi-") for name in names)


def test_owners_of_elements_are_read() -> None:
    ours = {"elem": {"val": "10.0.0.5", "comment": "vm-1"}}
    port = {"elem": {"val": {"concat": ["tcp", 8080]}, "comment": "vm-2"}}
    listed = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "bridges", "elem": ["bosh0"]}},
            {"set": {"name": "empty"}},
            {"set": {"name": "masqueraded4", "elem": [ours]}},
            {"map": {"name": "published4", "elem": [[port, {"concat": ["10.0.0.6", 80]}]]}},
        ]
    }
    assert nftables.owners(listed) == {
        "vm-1": {Element("masqueraded4", "10.0.0.5")},
        "vm-2": {Element("published4", "tcp . 8080")},
    }
