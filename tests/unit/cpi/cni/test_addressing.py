"""Addresses that VMs cannot have on a bridge."""

from ipaddress import ip_interface

import pytest

from cpi.cni.addressing import require_fit
from cpi.errors import CloudError
from cpi.model import Network

OWN = [ip_interface(text) for text in ("10.245.0.1/24", "fd00::1/64", "fe80::1/64")]


@pytest.mark.parametrize(
    ("ip", "prefix", "reason"),
    [
        ("10.245.0.1", 24, "10.245.0.1 is the address of the bridge b0"),
        ("10.245.0.1", 15, "is the address of the bridge"),
        ("10.245.0.1", 32, "is the address of the bridge"),
        ("fd00::1", 64, "is the address of the bridge"),
        ("fe80::1", 64, "is the address of the bridge"),
        ("10.245.0.255", 15, "is the network or broadcast address of 10.245.0.0/24"),
        ("10.245.0.0", 15, "is the network or broadcast address"),
        ("fd00::", 48, "is the network or broadcast address of fd00::/64"),
        ("10.245.0.9", 15, "the netmask of 10.245.0.9/15 disagrees with the bridge b0, which has "
         "10.245.0.1/24; use the netmask 255.255.255.0"),
        ("10.245.0.9", 25, "disagrees"),
        ("10.244.0.9", 15, "disagrees"),
        ("fd00::9", 48, "disagrees"),
    ],
)  # fmt: skip
def test_refused(ip: str, prefix: int, reason: str) -> None:
    with pytest.raises(CloudError, match=reason):
        require_fit(Network("n", ip=ip, prefix=prefix), "the bridge b0", OWN)


@pytest.mark.parametrize(
    ("ip", "prefix"),
    [("10.245.0.9", 24), ("10.246.0.1", 24), ("fd00::9", 64), ("fd00::ffff:ffff:ffff:ffff", 64),
     ("fd01::", 64)],
)  # fmt: skip
def test_taken(ip: str, prefix: int) -> None:
    require_fit(Network("n", ip=ip, prefix=prefix), "the bridge b0", OWN)


def test_a_bridge_with_two_subnets_that_overlap() -> None:
    own = [ip_interface("10.0.0.1/8"), ip_interface("10.1.0.1/16")]
    require_fit(Network("n", ip="10.1.0.9", prefix=16), "the bridge b0", own)
