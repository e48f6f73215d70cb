"""The networks of this host that VMs use or can use, for `bosh-cpi networks` and `doctor`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpi.cni.attachments import STATE, Attachment, addresses, attachments_in
from cpi.cni.plugins import networks_in
from cpi.host import iproute
from cpi.host.layout import Layout

if TYPE_CHECKING:
    from cpi.config.config import Config

UP, DOWN, MISSING, FOREIGN = "up", "down", "missing", "not a bridge"


@dataclass
class Bridge:
    """A bridge of the CPI. state: one of those above; addresses: the host's on it; vms: CIDs by
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
    """Return the default bridge, then the others that VMs of this CPI are on."""
    default = Bridge(
        config.text("network.bridge"),
        masquerade=config.flag("network.masquerade"),
        subnets=list(config.strings("network.dynamic_subnets")),
    )
    by_name = {default.name: default}
    for vm_cid, attachment in _attachments(config):
        plugin = attachment.plugins[0] if attachment.plugins else {}
        if attachment.network != plugin.get("bridge"):  # a CNI network of the host
            continue
        bridge = by_name.setdefault(attachment.network, Bridge(attachment.network))
        bridge.masquerade = attachment.masquerade or bool(plugin.get("ipMasq"))
        for subnet in _subnets(plugin):
            if subnet not in bridge.subnets:
                bridge.subnets.append(subnet)
        bridge.vms |= _taken(attachment, vm_cid)
    links = iproute.links()
    for bridge in by_name.values():
        _look(bridge, links.get(bridge.name))
    return sorted(by_name.values(), key=lambda bridge: (bridge is not default, bridge.name))


def host_networks(config: "Config") -> list[HostNetwork]:
    """Return the CNI networks of the configured folder, including broken ones."""
    folder = Path(config.text("network.cni_config_dir"))
    networks = [
        HostNetwork(name, str(file), [str(plugin.get("type")) for plugin in plugins], problem)
        for file, name, plugins, problem in networks_in(folder)
    ]
    for vm_cid, attachment in _attachments(config):
        for network in networks:
            if network.name == attachment.network:
                network.vms |= _taken(attachment, vm_cid)
    return networks


def _attachments(config: "Config") -> Iterator[tuple[str, Attachment]]:
    for folder in sorted(Layout.of(config).vms.glob("*-vm-*")):
        for attachment in attachments_in(folder / STATE):
            yield folder.name, attachment


def _taken(attachment: Attachment, vm_cid: str) -> dict[str, str]:
    return {ip: vm_cid for ip, _, _ in addresses(attachment.result or {})}


def _subnets(plugin: dict[str, Any]) -> Iterator[str]:
    for ranges in plugin.get("ipam", {}).get("ranges", []):
        for address_range in ranges:
            yield str(address_range["subnet"])


def _look(bridge: Bridge, link: dict[str, Any] | None) -> None:
    if link is None:
        return
    bridge.mtu = link["mtu"]
    bridge.addresses = [
        f"{address['local']}/{address['prefixlen']}"
        for address in link.get("addr_info", [])
        if address.get("scope") == "global"
    ]
    if link.get("linkinfo", {}).get("info_kind") != "bridge":
        bridge.state = FOREIGN
    else:
        bridge.state = UP if "UP" in link["flags"] else DOWN
