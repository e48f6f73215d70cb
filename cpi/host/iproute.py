"""The host's network interfaces and routes, as iproute2 reports them."""

from __future__ import annotations

import ipaddress
import json
import socket
from typing import Any, NamedTuple

from cpi.host.process import run

INSTALL = "apt-get install iproute2"

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


class Route(NamedTuple):
    """A route to a subnet and its interface, "" for none."""

    subnet: Subnet
    device: str


def links() -> dict[str, dict[str, Any]]:
    """Return the interfaces by name, with addresses. Raises CommandFailed."""
    # Not from /sys, which may show another network namespace than this process is in.
    return {link["ifname"]: link for link in _ask("-details", "address", "show") if link}


def addresses(device: str) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """Return the addresses of an interface, none if it is missing. Raises CommandFailed."""
    try:
        socket.if_nametoindex(device)
    except OSError:
        return []
    return [
        ipaddress.ip_interface(f"{entry['local']}/{entry['prefixlen']}")
        for link in _ask("address", "show", "dev", device)
        for entry in link.get("addr_info", [])
    ]


def routes() -> list[Route]:
    """Return the routes of both families, except the default ones. Raises CommandFailed."""
    return [
        Route(ipaddress.ip_network(route["dst"], strict=False), str(route.get("dev", "")))
        for family in ("-4", "-6")
        for route in _ask(family, "route")
        if route["dst"] != "default"
    ]


def _ask(*words: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(run(["ip", "-json", *words], install_hint=INSTALL))
    return answer
