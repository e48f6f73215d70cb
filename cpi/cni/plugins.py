"""CNI: network configurations, and the calls of plugins (containernetworking/cni SPEC, 1.0.0).

Plugins do all that touches a network; this renders what they read and reads what they answer.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from cpi.errors import CloudError, NetworkNotFound
from cpi.host.process import CommandFailed, run
from cpi.model import Network, PortForward

CNI_VERSION = "1.0.0"
USUAL_PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")

Config = dict[str, Any]


@dataclass(frozen=True)
class Attachment:
    """One interface: the plugins' configurations in order and what each call says beside them.

    result: what ADD answered, which DEL wants to see again (SPEC, "Deletion Parameters").
    """

    network: str
    interface: str
    plugins: tuple[Config, ...]
    runtime: Mapping[str, Any]
    arguments: str = ""
    result: Config | None = None


@dataclass(frozen=True)
class Lan:
    """A bridge of ours: its name, MTU (bytes), NAT, and where addresses are remembered."""

    bridge: str
    mtu: int
    masquerade: bool
    dynamic_subnets: Sequence[str]
    address_dir: Path


def bridge_plugins(lan: Lan, network: Network, *, default_route: bool) -> tuple[Config, ...]:
    """Return the plugins that put a VM on a bridge of ours, made when missing."""
    dynamic = network.ip is None
    subnets = list(lan.dynamic_subnets) if dynamic else [subnet_of(network)]
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    if network.gateway:
        ranges[0][0]["gateway"] = network.gateway
    routes = [{"dst": _everything(subnet)} for subnet in subnets] if default_route else []
    bridge: Config = {
        "type": "bridge",
        "bridge": lan.bridge,
        "isGateway": dynamic or network.gateway is not None,
        "ipMasq": lan.masquerade,
        "hairpinMode": True,
        "mtu": lan.mtu,
        "ipam": {
            "type": "host-local",
            "dataDir": str(lan.address_dir),
            "ranges": ranges,
            "routes": routes,
        },
    }
    return (
        bridge,
        # Hosts with Docker drop what is forwarded; this lets the VM's own address through.
        {"type": "firewall", "backend": "iptables"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    )


def subnet_of(network: Network) -> str:
    """The subnet of a network's static address."""
    return str(ip_interface(f"{network.ip}/{network.prefix}").network)


def _everything(subnet: str) -> str:
    return "::/0" if ip_network(subnet).version == 6 else "0.0.0.0/0"


def networks_in(folder: Path) -> Iterator[tuple[Path, str, tuple[Config, ...], str]]:
    """The host's CNI networks: file, name, plugins, and why it cannot be read or ""."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.suffix not in (".conflist", ".conf", ".json"):
            continue
        try:
            document = json.loads(file.read_bytes())
            plugins = tuple(document.get("plugins", [document]))
            yield file, str(document.get("name")), plugins, ""
        except (OSError, ValueError, AttributeError) as error:
            yield file, "", (), str(error)


def host_plugins(name: str, folder: Path) -> tuple[Config, ...]:
    """Return the plugins of the host's CNI network `name`, as configured in `folder`.

    Raises NetworkNotFound, listing what there is.
    """
    found: list[str] = []
    for file, title, plugins, problem in networks_in(folder):
        if problem:
            raise CloudError(f"the CNI configuration {file} cannot be read: {problem}")
        if title == name:
            return plugins
        found.append(title)
    raise NetworkNotFound(
        f"there is no CNI network {name!r} in {folder} (found: {', '.join(found) or 'none'}); add "
        "its configuration there, or leave `name` out to use a bridge"
    )


class Plugins:
    """The host's CNI plugins."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = [folder for folder in folders or USUAL_PLUGIN_DIRS if Path(folder).is_dir()]

    def add(
        self,
        attachment: Attachment,
        container: str,
        namespace: Path,
        remember: Callable[[Config], None],
    ) -> Config:
        """Make an interface in a network namespace and return the result (CNI "ADD").

        `remember` gets the result so far after each plugin, for `delete`.
        """
        result: Config = {}
        for plugin in attachment.plugins:
            if not _idle(plugin, attachment):
                previous = result or None
                answer = self._call("ADD", attachment, plugin, container, namespace, previous)
                result = answer or result
                remember(result)
        return result

    def delete(self, attachment: Attachment, container: str, namespace: Path) -> None:
        """Undo `add`, in the opposite order; what is gone is no error (CNI "DEL")."""
        for plugin in reversed(attachment.plugins):
            if not _idle(plugin, attachment):
                self._call("DEL", attachment, plugin, container, namespace, attachment.result)

    def _call(
        self,
        command: str,
        attachment: Attachment,
        plugin: Config,
        container: str,
        namespace: Path,
        previous: Config | None,
    ) -> Config | None:
        document = {**plugin, "cniVersion": CNI_VERSION, "name": attachment.network}
        wanted = plugin.get("capabilities") or {}
        document["runtimeConfig"] = {
            key: value for key, value in attachment.runtime.items() if wanted.get(key)
        }
        if previous is not None:
            document["prevResult"] = {**previous, "cniVersion": CNI_VERSION}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(namespace) if namespace.exists() else "",
            "CNI_IFNAME": attachment.interface,
            "CNI_PATH": ":".join(self.folders),
            "CNI_ARGS": attachment.arguments,
        }
        try:
            answer = run(
                [self._find(str(plugin.get("type")))],
                stdin=json.dumps(document).encode(),
                env=environment,
            )
        except CommandFailed as error:
            raise CloudError(
                f"the CNI plugin {plugin.get('type')} of the network {attachment.network!r} could "
                f"not {command} {attachment.interface}: {_reason(error)}"
            ) from None
        parsed: Config | None = json.loads(answer) if answer.strip() else None
        return parsed

    def versions(self, name: str) -> list[str]:
        """The versions of CNI that a plugin speaks. Raises CloudError for one that is not there."""
        answer = run([self._find(name)], stdin=b"{}", env={"CNI_COMMAND": "VERSION"})
        found: list[str] = json.loads(answer).get("supportedVersions", [])
        return found

    def _find(self, name: str) -> str:
        if "/" in name or name.startswith("."):
            raise CloudError(f"{name!r} is no name of a CNI plugin")
        for folder in self.folders:
            if (Path(folder) / name).exists():
                return str(Path(folder) / name)
        raise CloudError(
            f"the CNI plugin {name} is in none of {', '.join(self.folders) or USUAL_PLUGIN_DIRS}; "
            "apt-get install containernetworking-plugins, or set network.cni_plugin_dirs"
        )


def addresses(result: Config) -> list[tuple[str, int, str | None]]:
    """Return (address, prefix, gateway) for each address of a CNI result."""
    found = []
    for entry in result.get("ips", []):
        interface = ip_interface(entry["address"])
        found.append((str(interface.ip), interface.network.prefixlen, entry.get("gateway")))
    return found


def mac_of(result: Config) -> str | None:
    """Return the MAC of the interface inside the namespace."""
    for interface in result.get("interfaces", []):
        if interface.get("sandbox"):
            mac = interface.get("mac")
            return str(mac) if mac else None
    return None


def as_before(attachment: Attachment) -> Attachment:
    """An attachment that asks for the addresses and the MAC that it had.

    For plugins that heed it (CNI CONVENTIONS.md, "ips" and "mac"), as host-local and bridge do.
    """
    result = attachment.result or {}
    ips = [str(entry["address"]) for entry in result.get("ips", [])]
    runtime, arguments, mac = (
        {**attachment.runtime, "ips": ips},
        attachment.arguments,
        mac_of(result),
    )
    if mac:
        runtime["mac"], arguments = mac, f"{arguments};MAC={mac}"
    plugins = []
    for plugin in attachment.plugins:
        told = plugin.get("args") or {}
        plugins.append({**plugin, "args": {**told, "cni": {**(told.get("cni") or {}), "ips": ips}}})
    return replace(attachment, plugins=tuple(plugins), runtime=runtime, arguments=arguments)


def host_links(result: Config) -> list[str]:
    """Return the names of the interfaces that a CNI result has on the host."""
    return [
        str(interface.get("name"))
        for interface in result.get("interfaces", [])
        if not interface.get("sandbox")
    ]


def port_mappings(ports: Sequence[PortForward]) -> list[Config]:
    """Return forwarded ports in the words of CNI's portMappings capability."""
    mappings = []
    for port in ports:
        mapping: Config = {
            "hostPort": port.host,
            "containerPort": port.container,
            "protocol": port.protocol,
        }
        if port.host_ip:
            mapping["hostIP"] = port.host_ip
        mappings.append(mapping)
    return mappings


def _idle(plugin: Config, attachment: Attachment) -> bool:
    """A portmap without ports does nothing but cost a process."""
    return plugin.get("type") == "portmap" and not attachment.runtime.get("portMappings")


def _reason(error: CommandFailed) -> str:
    """A plugin's error is JSON on stdout (SPEC, "Error")."""
    try:
        document = json.loads(error.stdout)
        said = " ".join(str(document[key]) for key in ("msg", "details") if document.get(key))
        if "already has an IP address different" in said:
            said += "; a bridge has one IPv4 subnet: name another `bridge` for this network"
        return said
    except (ValueError, KeyError, TypeError):
        return error.message
