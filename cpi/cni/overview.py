"""All networks of this host that VMs are on, and could be: for people."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpi.cni.networks import STATE, attachments_in
from cpi.cni.plugins import Attachment, addresses, networks_in
from cpi.host import iproute
from cpi.host.layout import Layout

if TYPE_CHECKING:
    from cpi.config.config import Config

UP, DOWN, MISSING, FOREIGN = "up", "down", "missing", "not a bridge"


@dataclass
class Bridge:
    """A bridge of ours. state: see the words above; addresses: its own, on the host; vms: CIDs by
    address."""

    name: str
    state: str = MISSING
    mtu: int | None = None
    masquerade: bool = True
    subnets: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    vms: dict[str, str] = field(default_factory=dict)


@dataclass
class HostNetwork:
    """A CNI network of the host. problem: why it cannot be used, or ""."""

    name: str
    file: str
    plugins: list[str] = field(default_factory=list)
    problem: str = ""
    vms: dict[str, str] = field(default_factory=dict)


def bridges(config: "Config") -> list[Bridge]:
    """The default bridge, and all that VMs are on; those VMs of others have no addresses here."""
    usual = Bridge(
        config.text("network.bridge"),
        masquerade=config.flag("network.masquerade"),
        subnets=list(config.strings("network.dynamic_subnets")),
    )
    found = {usual.name: usual}
    for vm_cid, attachment in _attachments(config):
        plugin = attachment.plugins[0] if attachment.plugins else {}
        if attachment.network != plugin.get("bridge"):  # a CNI network of the host
            continue
        bridge = found.setdefault(attachment.network, Bridge(attachment.network))
        bridge.masquerade = bool(plugin.get("ipMasq"))
        for subnet in _subnets(plugin):
            if subnet not in bridge.subnets:
                bridge.subnets.append(subnet)
        bridge.vms |= _taken(attachment, vm_cid)
    links = iproute.links()
    for bridge in found.values():
        _look(bridge, links.get(bridge.name))
    return sorted(found.values(), key=lambda one: (one is not usual, one.name))


def host_networks(config: "Config") -> list[HostNetwork]:
    """The CNI networks of the configured folder, broken ones too."""
    folder = Path(config.text("network.cni_config_dir"))
    found = [
        HostNetwork(name, str(file), [str(one.get("type")) for one in plugins], problem)
        for file, name, plugins, problem in networks_in(folder)
    ]
    for vm_cid, attachment in _attachments(config):
        for network in found:
            if network.name == attachment.network:
                network.vms |= _taken(attachment, vm_cid)
    return found


def _attachments(config: "Config") -> Iterator[tuple[str, Attachment]]:
    for folder in sorted(Layout.of(config).vms.glob("*-vm-*")):
        for attachment in attachments_in(folder / STATE):
            yield folder.name, attachment


def _taken(attachment: Attachment, vm_cid: str) -> dict[str, str]:
    return {ip: vm_cid for ip, _, _ in addresses(attachment.result or {})}


def _subnets(plugin: dict[str, Any]) -> Iterator[str]:
    for ranges in plugin.get("ipam", {}).get("ranges", []):
        for one in ranges:
            yield str(one["subnet"])


def _look(bridge: Bridge, link: dict[str, Any] | None) -> None:
    if link is None:
        return
    bridge.mtu = link["mtu"]
    bridge.addresses = [
        f"{one['local']}/{one['prefixlen']}"
        for one in link.get("addr_info", [])
        if one.get("scope") == "global"
    ]
    if link.get("linkinfo", {}).get("info_kind") != "bridge":
        bridge.state = FOREIGN
    else:
        bridge.state = UP if "UP" in link["flags"] else DOWN
