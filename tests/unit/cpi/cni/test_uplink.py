"""The MTU of the way out, from the kernel's lists of routes."""

from pathlib import Path

import pytest

from cpi.cni import uplink

HEAD = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
EVERYTHING6 = "0" * 32


@pytest.fixture(autouse=True)
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mtus = {"eth0": 1450, "wg0": 1420}
    monkeypatch.setattr(uplink, "_ROUTES4", tmp_path / "route")
    monkeypatch.setattr(uplink, "_ROUTES6", tmp_path / "ipv6_route")
    monkeypatch.setattr(uplink, "_mtu_of", lambda device: mtus.get(device, 0))


@pytest.mark.parametrize(
    ("routes4", "routes6", "mtu"),
    [
        ("", "", 1500),
        ("eth0 0000000A 00000000 0001 0 0 0 000000FF 0 0 0\n", "", 1500),  # a subnet
        ("eth0 00000000 0100000A 0003 0 0 100 00000000 0 0 0\n", "", 1450),
        ("eth0 00000000 0100000A 0003 0 0 100 00000000 1400 0 0\n", "", 1400),
        (
            "eth0 00000000 0100000A 0003 0 0 100 00000000 0 0 0\n"
            "wg0 00000000 00000000 0001 0 0 50 00000000 0 0 0\n",
            "",
            1420,
        ),
        ("* 00000000 00000000 0201 0 0 0 00000000 0 0 0\n", "", 1500),  # unreachable
        ("gone0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n", "", 1500),
        ("", f"{EVERYTHING6} 00 {EVERYTHING6} 00 fe80 00000400 1 0 00000003 wg0\n", 1420),
        ("", f"{EVERYTHING6} 00 {EVERYTHING6} 00 {EVERYTHING6} ffffffff 1 0 00200200 lo\n", 1500),
    ],
)
def test_mtu(tmp_path: Path, routes4: str, routes6: str, mtu: int) -> None:
    (tmp_path / "route").write_text(HEAD + routes4)
    (tmp_path / "ipv6_route").write_text(routes6)
    assert uplink.mtu() == mtu


def test_a_kernel_without_these_lists() -> None:
    assert uplink.mtu() == uplink.DEFAULT_MTU
