"""What subnets the host reaches elsewhere than on a bridge for VMs."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator

from cpi.host.process import run

_INSTALL = "apt-get install iproute2"

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


def elsewhere(bridge: str) -> Iterator[tuple[Subnet, str]]:
    """Yield the subnets of the host's routes, and their devices, but for defaults and the bridge's.

    Raises CommandFailed.
    """
    for family in ("-4", "-6"):
        for route in json.loads(run(["ip", "-json", family, "route"], install_hint=_INSTALL)):
            device = str(route.get("dev", ""))
            if route["dst"] != "default" and device != bridge:
                yield ipaddress.ip_network(route["dst"], strict=False), device
