"""Which nameservers a VM gets."""

from dataclasses import replace
from pathlib import Path

import pytest

from cpi.cni import nameservers
from cpi.log import Log
from cpi.model import Network

FIRST = Network("a", ip="10.0.0.5")
SECOND = Network("b", ip="10.1.0.5", default=("dns",))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """What programs of the host use, and what its stub asks."""
    own, upstream = tmp_path / "resolv.conf", tmp_path / "upstream.conf"
    monkeypatch.setattr(nameservers, "_FILES", (own, upstream))
    return own, upstream


def test_a_networks_own_servers_come_first(files: tuple[Path, Path]) -> None:
    files[0].write_text("nameserver 192.0.2.1\n")
    given = [FIRST, replace(SECOND, dns=("10.1.0.53",))]
    assert nameservers.with_nameservers(given, Log(quiet=True)) == given
    assert nameservers.of_networks(given) == ["10.1.0.53"]
    assert nameservers.of_networks([replace(FIRST, dns=("10.0.0.53", "10.0.0.53"))]) == [
        "10.0.0.53"
    ]


def test_the_network_marked_for_dns_gets_the_hosts_servers(files: tuple[Path, Path]) -> None:
    files[0].write_text("# generated\nsearch example.com\nnameserver 192.0.2.1\nnameserver ::1\n")
    first, second = nameservers.with_nameservers([FIRST, SECOND], Log(quiet=True))
    assert (first.dns, second.dns) == ((), ("192.0.2.1",))


def test_the_stub_of_the_host_is_not_reachable_but_its_servers_are(
    files: tuple[Path, Path],
) -> None:
    files[0].write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    files[1].write_text("nameserver 192.0.2.1\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\n")
    assert nameservers.of_host() == ["192.0.2.1", "2001:db8::53"]


def test_a_vm_without_nameserver_is_warned_of(files: tuple[Path, Path]) -> None:
    files[0].write_text("nameserver 127.0.0.53\nnameserver\nnameserver x\n")
    log = Log(quiet=True)
    assert nameservers.with_nameservers([FIRST], log) == [FIRST]
    assert "no nameserver" in log.text
    log = Log(quiet=True)
    assert nameservers.with_nameservers([], log) == []
    assert not log.text
