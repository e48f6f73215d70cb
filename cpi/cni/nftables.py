"""Our tables of nftables: what is in them, as text for `nft -f -`. Nothing is run here.

Rules are the same for every VM; what differs are elements of sets and maps, which the kernel finds
by hash. So a VM costs the same whether it is the first or the thousandth, and it comes and goes in
one transaction. Each element has the VM's CID as its comment.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

# 127.0.0.0/8 is guarded because published ports take route_localnet (cpi.cni.firewall). A VM that
# uses a port published by its host, and is on the same bridge as the port's VM, must get the
# responses through the host; with br_netfilter, iifname is not known then, hence guests4.
#
# In each transaction: what exists is not added twice, and rules are replaced at once. So the table
# is right after an upgrade, and after somebody flushed the ruleset. Types of sets cannot be changed
# this way: a set of another type needs another name.
_TABLE = """\
add table inet {table}
add set inet {table} bridges {{ type ifname; }}
add set inet {table} guests4 {{ type ipv4_addr; }}
add set inet {table} guests6 {{ type ipv6_addr; }}
add set inet {table} masqueraded4 {{ type ipv4_addr; }}
add set inet {table} masqueraded6 {{ type ipv6_addr; }}
add map inet {table} published4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {table} published6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
add map inet {table} published4_at \
{{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {table} published6_at \
{{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
add chain inet {table} guard {{ type filter hook prerouting priority -300; policy accept; }}
add chain inet {table} host {{ type filter hook input priority 0; policy accept; }}
add chain inet {table} publish
add chain inet {table} arriving {{ type nat hook prerouting priority -100; policy accept; }}
add chain inet {table} sending {{ type nat hook output priority -100; policy accept; }}
add chain inet {table} leaving {{ type nat hook postrouting priority 100; policy accept; }}
flush table inet {table}
add rule inet {table} guard iifname @bridges ip daddr 127.0.0.0/8 drop
add rule inet {table} guard iifname @bridges ip saddr 127.0.0.0/8 drop
add rule inet {table} arriving fib daddr type local jump publish
add rule inet {table} sending fib daddr type local jump publish
add rule inet {table} publish \
dnat ip to ip daddr . meta l4proto . th dport map @published4_at
add rule inet {table} publish \
dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6_at
add rule inet {table} publish dnat ip to meta l4proto . th dport map @published4
add rule inet {table} publish dnat ip6 to meta l4proto . th dport map @published6
add rule inet {table} leaving oifname @bridges ip saddr 127.0.0.0/8 masquerade
add rule inet {table} leaving oifname @bridges ct status dnat ip saddr @guests4 masquerade
add rule inet {table} leaving oifname @bridges ct status dnat ip6 saddr @guests6 masquerade
add rule inet {table} leaving oifname @bridges return
add rule inet {table} leaving ip daddr 224.0.0.0/4 return
add rule inet {table} leaving ip6 daddr ff00::/8 return
add rule inet {table} leaving ip saddr @masqueraded4 masquerade
add rule inet {table} leaving ip6 saddr @masqueraded6 masquerade
"""

# Published ports do not come this way: they are forwarded. Neighbor discovery is how a VM finds its
# gateway, which is the host.
_NO_HOST_ACCESS = """\
add rule inet {table} host iifname != @bridges accept
add rule inet {table} host ct state established,related accept
add rule inet {table} host icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
add rule inet {table} host meta l4proto {{ tcp, udp }} th dport 53 accept
add rule inet {table} host drop
"""


class Element(NamedTuple):
    """An element of a set, or of a map when it has a value; both as nft writes them."""

    set: str
    key: str
    value: str = ""


@dataclass(frozen=True)
class Guest:
    """A VM's interface on a bridge of ours. ports: CNI's portMappings."""

    vm_cid: str
    bridge: str
    addresses: Sequence[str] = ()
    masquerade: bool = False
    ports: Sequence[Mapping[str, Any]] = ()

    def elements(self) -> Iterator[Element]:
        """Yield its elements, with addresses in their canonical form."""
        targets: dict[int, str] = {}  # published ports lead to the first address of each family
        for text in self.addresses:
            address = ip_address(text)
            targets.setdefault(address.version, str(address))
            yield Element(f"guests{address.version}", str(address))
            if self.masquerade:
                yield Element(f"masqueraded{address.version}", str(address))
        for port in self.ports:
            yield from _published(port, targets)


def _published(port: Mapping[str, Any], targets: Mapping[int, str]) -> Iterator[Element]:
    key = f"{port['protocol']} . {port['hostPort']}"
    host_ip = ip_address(port["hostIP"]) if port.get("hostIP") else None
    for version, target in targets.items():
        value = f"{target} . {port['containerPort']}"
        if host_ip is None or (host_ip.version == version and host_ip.is_unspecified):
            yield Element(f"published{version}", key, value)
        elif host_ip.version == version:
            yield Element(f"published{version}_at", f"{host_ip} . {key}", value)


def table_name(state_dir: Path) -> str:
    """Return the name of the tables of the CPI with this state_dir; a host may have several."""
    return f"bosh-cpi-{hashlib.sha256(bytes(state_dir)).hexdigest()[:8]}"


def adding(table: str, guests: Sequence[Guest], *, host_access: bool = True) -> str:
    """Return the transaction that adds guests, and the table if it is missing.

    host_access: whether VMs reach services of the host.
    """
    bridges = sorted({guest.bridge for guest in guests})
    names = ", ".join(f'"{bridge}"' for bridge in bridges)
    lines = [f"add element inet {table} bridges {{ {names} }}\n"] if bridges else []
    for guest in guests:
        lines += _changes("add", table, list(guest.elements()), guest.vm_cid)
    return _rules(table, host_access=host_access) + "".join(lines)


def removing(table: str, elements: Sequence[Element], *, host_access: bool = True) -> str:
    """Return the transaction that removes elements, whether they exist or not.

    nft has no idempotent deletion before 1.0.7 and Linux 6.3, so they are added first.
    """
    changes = (line for verb in ("add", "delete") for line in _changes(verb, table, elements))
    return _rules(table, host_access=host_access) + "".join(changes)


def _rules(table: str, *, host_access: bool) -> str:
    text = _TABLE if host_access else _TABLE + _NO_HOST_ACCESS
    return text.format(table=table)


def deleting(table: str, elements: Sequence[Element]) -> str:
    """Return the transaction that removes elements that exist; values are not needed."""
    keys = [element._replace(value="") for element in elements]
    return "".join(_changes("delete", table, keys))


def _changes(
    verb: str, table: str, elements: Sequence[Element], comment: str = ""
) -> Iterator[str]:
    by_set: dict[str, list[str]] = {}
    for element in elements:
        words = element.key
        if comment:
            words += f' comment "{comment}"'
        if element.value:
            words += f" : {element.value}"
        by_set.setdefault(element.set, []).append(words)
    for name, items in by_set.items():
        yield f"{verb} element inet {table} {name} {{ {', '.join(items)} }}\n"


def owners(listed: Mapping[str, Any]) -> dict[str, set[Element]]:
    """Return elements without values by VM CID, from what `nft --json list table` prints."""
    found: dict[str, set[Element]] = {}
    for item in listed.get("nftables", []):
        contents = item.get("set") or item.get("map") or {}
        for entry in contents.get("elem", []):
            key = entry[0] if isinstance(entry, list) else entry
            element = key.get("elem", {}) if isinstance(key, dict) else {}
            if comment := element.get("comment"):
                value = element["val"]
                parts = value["concat"] if isinstance(value, dict) else [value]
                text = " . ".join(map(str, parts))
                found.setdefault(str(comment), set()).add(Element(contents["name"], text))
    return found
