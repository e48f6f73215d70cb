"""A VM's attachments to networks: the record that is kept of them, and what CNI results say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

STATE = "network.json"  # in a VM's folder

CniConfig = dict[str, Any]


@dataclass(frozen=True)
class Attachment:
    """One interface: its plugins' configurations in order, and the parameters of their calls.

    result: of ADD, which DEL must be given (SPEC, "Deletion Parameters").
    bridge: the bridge of ours that it is on, whose packets are filtered and translated by our own
    table (cpi.cni.firewall). "" for a CNI network of the host, and for a VM that was made before
    there was that table: these have plugins for it.
    masquerade: whether its packets leave the host with the host's address.
    spoofing: whether the VM may send with other addresses than its own, as one may that was made
    before that could be forbidden. tap: the name of the bridge's port when a hypervisor makes it.
    """

    network: str
    interface: str
    plugins: tuple[CniConfig, ...]
    runtime: Mapping[str, Any]
    arguments: str = ""
    result: CniConfig | None = None
    bridge: str = ""
    masquerade: bool = False
    spoofing: bool = True
    tap: str = ""


def attachments_in(path: Path) -> list[Attachment]:
    """Return a VM's attachments from its STATE file, none if the VM is gone."""
    try:
        documents = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    return [
        Attachment(**{**document, "plugins": tuple(document["plugins"])}) for document in documents
    ]


def save(path: Path, attachments: Sequence[Attachment]) -> None:
    """Replace a VM's STATE file."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps([asdict(attachment) for attachment in attachments]))
    fresh.replace(path)


def addresses(result: CniConfig) -> list[tuple[str, int, str | None]]:
    """Return (address, prefix, gateway) for each address of a CNI result."""
    ips = ((ip_interface(ip["address"]), ip.get("gateway")) for ip in result.get("ips", []))
    return [(str(address.ip), address.network.prefixlen, gateway) for address, gateway in ips]


def mac_of(result: CniConfig) -> str | None:
    """Return the MAC of the interface inside the namespace."""
    interfaces = result.get("interfaces", [])
    macs = [interface.get("mac") for interface in interfaces if interface.get("sandbox")]
    return str(macs[0]) if macs and macs[0] else None


def host_links(result: CniConfig) -> list[str]:
    """Return the names of the interfaces that a CNI result has on the host."""
    return [
        str(interface.get("name"))
        for interface in result.get("interfaces", [])
        if not interface.get("sandbox")
    ]


def port_of(attachment: Attachment) -> str:
    """Return the name of the VM's port on a bridge of ours, "" if it has none."""
    if attachment.tap:
        return attachment.tap
    links = host_links(attachment.result or {})
    return next((name for name in links if name != attachment.bridge), "")


def as_before(attachment: Attachment) -> Attachment:
    """Return an attachment that requests the addresses and the MAC that it had.

    Plugins may ignore them (CNI CONVENTIONS.md, "ips" and "mac"); host-local and bridge do not.
    """
    result = attachment.result or {}
    ips = [str(entry["address"]) for entry in result.get("ips", [])]
    runtime, arguments = {**attachment.runtime, "ips": ips}, attachment.arguments
    if mac := mac_of(result):
        runtime["mac"], arguments = mac, f"{arguments};MAC={mac}"
    plugins = []
    for plugin in attachment.plugins:
        args = plugin.get("args") or {}
        plugins.append({**plugin, "args": {**args, "cni": {**(args.get("cni") or {}), "ips": ips}}})
    return replace(attachment, plugins=tuple(plugins), runtime=runtime, arguments=arguments)
