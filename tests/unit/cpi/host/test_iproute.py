"""Parsing of what iproute2 prints."""

import json

import pytest

from cpi.host import iproute


def test_routes_are_read_as_iproute2_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "-4": [
            {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"},
            {"dst": "192.0.2.0/24", "dev": "eth0", "scope": "link"},
            {"dst": "10.245.0.0/16", "dev": "bosh0", "flags": ["linkdown"]},
            {"dst": "10.9.8.7", "gateway": "192.0.2.9", "dev": "eth0"},
            {"type": "unreachable", "dst": "10.200.0.0/16"},
        ],
        "-6": [{"dst": "fe80::/64", "dev": "eth0"}, {"dst": "default", "dev": "eth0"}],
    }

    def run(argv: list[str], **_: str) -> bytes:
        assert argv == ["ip", "-json", argv[2], "route"]
        return json.dumps(answers[argv[2]]).encode()

    monkeypatch.setattr(iproute, "run", run)
    routes = [(str(route.subnet), route.device) for route in iproute.routes()]
    assert routes == [
        ("192.0.2.0/24", "eth0"),
        ("10.245.0.0/16", "bosh0"),
        ("10.9.8.7/32", "eth0"),
        ("10.200.0.0/16", ""),
        ("fe80::/64", "eth0"),
    ]
