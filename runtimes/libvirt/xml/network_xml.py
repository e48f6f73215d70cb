"""libvirt's documents about networks. Pure (formatnetwork.html)."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from xml.etree import ElementTree as Xml

from runtimes.libvirt.xml.elements import add_text, parsed, rendered

IPInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True)
class LibvirtNetwork:
    """A network. gateways: its own addresses; uuid: of an existing one to change.

    forward: nat, open (no rules of libvirt's), or "" for none.
    """

    name: str
    bridge: str
    forward: str
    gateways: Sequence[IPInterface]
    uuid: str = ""


def network(wanted: LibvirtNetwork) -> str:
    """Render a network without DHCP: the agent configures the addresses that the CPI gives."""
    root = Xml.Element("network")
    add_text(root, "name", wanted.name)
    if wanted.uuid:
        add_text(root, "uuid", wanted.uuid)
    if wanted.forward:
        Xml.SubElement(root, "forward", mode=wanted.forward)
    bridge = Xml.SubElement(root, "bridge", stp="off")
    if wanted.bridge:
        bridge.set("name", wanted.bridge)
    Xml.SubElement(root, "dns", enable="no")
    for gateway in wanted.gateways:
        Xml.SubElement(
            root,
            "ip",
            family=f"ipv{gateway.version}",
            address=str(gateway.ip),
            prefix=str(gateway.network.prefixlen),
        )
    return rendered(root)


def read_network(document: str) -> LibvirtNetwork:
    """Read libvirt's document of a network, ours or not."""
    root = parsed(document)
    bridge, forward = root.find("bridge"), root.find("forward")
    gateways = []
    for address in root.iter("ip"):
        mask = address.get("prefix") or address.get("netmask")
        if address.get("address") and mask:
            gateways.append(ip_interface(f"{address.get('address')}/{mask}"))
    return LibvirtNetwork(
        name=root.findtext("name") or "",
        bridge="" if bridge is None else bridge.get("name", ""),
        forward="" if forward is None else forward.get("mode", "nat"),
        gateways=tuple(gateways),
        uuid=root.findtext("uuid") or "",
    )
