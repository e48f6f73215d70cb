"""What VMs may send: what is rendered. Real frames: tests/integration."""

import pytest

from cpi.cni import nftables, senders
from cpi.cni.attachments import Attachment
from cpi.cni.firewall import ports_of
from cpi.cni.senders import Port
from tests.support.golden_files import matches_golden

MAC = "02:00:0a:00:00:05"


def test_a_transaction_that_adds_ports() -> None:
    addresses = ("10.0.0.5", "fd00::5", senders.link_local(MAC))
    text = senders.adding("bosh-cpi-1", [Port("veth1", "containerd-vm-1", MAC, addresses)])
    assert matches_golden("nft_senders", text.splitlines())


def test_what_is_added_is_removed_in_the_opposite_order() -> None:
    lines = senders.removing("bosh-cpi-1", ["veth1"]).splitlines()
    assert lines[-3:] == [
        'delete element bridge bosh-cpi-1 ports { "veth1" : goto from-veth1 }',
        "flush chain bridge bosh-cpi-1 from-veth1",
        "delete chain bridge bosh-cpi-1 from-veth1",
    ]


def test_nothing_is_changed_without_ports() -> None:
    assert senders.adding("bosh-cpi-1", []) == senders.removing("bosh-cpi-1", []) == ""


@pytest.mark.parametrize(
    ("mac", "address"),
    [("02:00:0a:00:00:05", "fe80::aff:fe00:5"), ("52:54:00:12:34:56", "fe80::5054:ff:fe12:3456")],
)
def test_link_local_addresses(mac: str, address: str) -> None:
    assert senders.link_local(mac) == address


def test_owners_of_ports_are_read() -> None:
    port = {"elem": {"val": "veth1", "comment": "vm-1"}}
    entry = {"name": "ports", "elem": [[port, {"goto": {"target": "from-veth1"}}]]}
    expected = {"vm-1": {Port("veth1", "vm-1", MAC, ()).element._replace(value="")}}
    assert nftables.owners({"nftables": [{"map": entry}]}) == expected


def test_a_vm_may_use_all_of_its_addresses_on_each_of_its_ports() -> None:
    first, second = ports_of("vm-1", [_attachment(0), _attachment(1), _attachment(2, bridge="")])
    assert (first.name, second.name) == ("veth0", "veth1")
    assert (first.mac, second.mac) == ("02:00:00:00:00:00", "02:00:00:00:00:01")
    assert {"10.0.0.0", "10.0.0.1", "10.0.0.2", "fe80::ff:fe00:1"} < set(first.addresses)
    assert first.addresses == second.addresses


def test_ports_of_hypervisors_have_the_names_that_they_will_get() -> None:
    [port] = ports_of("vm-1", [_attachment(0, tap="bvm1")])
    assert port.name == "bvm1"


def test_vms_of_before_and_with_spoofing_have_no_ports() -> None:
    assert ports_of("vm-1", [_attachment(0, spoofing=True)]) == []
    assert Attachment("bosh0", "eth0", (), {}).spoofing


def _attachment(
    number: int, *, bridge: str = "bosh0", spoofing: bool = False, tap: str = ""
) -> Attachment:
    result = {
        "interfaces": [
            {"name": "bosh0"},
            {"name": f"veth{number}"},
            {"name": "eth0", "mac": f"02:00:00:00:00:0{number}", "sandbox": "/run/netns/vm-1"},
        ],
        "ips": [{"address": f"10.0.0.{number}/24"}],
    }
    return Attachment(
        "bosh0", "eth0", (), {}, result=result, bridge=bridge, spoofing=spoofing, tap=tap
    )
