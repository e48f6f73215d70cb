"""What the demo prints and compares, as pure functions."""

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CID = re.compile(r"\b(containerd-(?:vm|disk|stemcell)-[0-9a-f]{6})[0-9a-f]{10,}\b")
_SECRET = ("mbus", "password", "certificate", "private_key")
_LIMIT = 64  # characters of one argument


@dataclass(frozen=True)
class Row:
    """One line of the table; wall in ms, ours: a call of the CPI, not of an agent or a program."""

    title: str
    wall: float
    result: str
    ours: bool = True


def shortened(value: Any, limit: int = _LIMIT) -> str:
    """Return a JSON value as text of at most `limit` characters, CIDs cut, secrets left out."""
    text = _CID.sub(r"\1…", _plain(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(value: Any) -> str:
    """Return JSON without quotes; of a path, only the last parts."""
    if isinstance(value, Mapping):
        pairs = (f"{key}: {'…' if key in _SECRET else _plain(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, str):
        parts = value.split("/")
        return value if len(parts) < 5 else f"…/{'/'.join(parts[-2:])}"
    return json.dumps(value)


def network_of(subnet: str, address: str | None) -> dict[str, Any]:
    """Return a network for create_vm: manual with an address, dynamic without."""
    if address is None:
        return {"type": "dynamic", "default": ["dns", "gateway"], "cloud_properties": {}}
    network = ipaddress.ip_network(subnet)
    return {
        "type": "manual",
        "ip": address,
        "netmask": str(network.netmask),
        "gateway": str(network[1]),
        "default": ["dns", "gateway"],
        "cloud_properties": {},
    }


def leftovers(before: Mapping[str, set[str]], after: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return what exists afterwards and did not before, by resource type."""
    return {resource: names - before.get(resource, set()) for resource, names in after.items()}
