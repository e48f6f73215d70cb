"""CNI: network configurations, and the calls of plugins (containernetworking/cni SPEC, 1.0.0).

Only plugins change networks; this renders their configurations and parses their results.
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
DEFAULT_PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")

CniConfig = dict[str, Any]


@dataclass(frozen=True)
class Attachment:
    """One interface: its plugins' configurations in order, and the parameters of their calls.

    result: of ADD, which DEL must be given (SPEC, "Deletion Parameters").
    """

    network: str
    interface: str
    plugins: tuple[CniConfig, ...]
    runtime: Mapping[str, Any]
    arguments: str = ""
    result: CniConfig | None = None


@dataclass(frozen=True)
class Lan:
    """A bridge of the CPI: its name, MTU (bytes), NAT, and the folder of reserved addresses."""

    bridge: str
    mtu: int
    masquerade: bool
    dynamic_subnets: Sequence[str]
    address_dir: Path


def bridge_plugins(lan: Lan, network: Network, *, default_route: bool) -> tuple[CniConfig, ...]:
    """Return the plugins that attach a VM to a bridge of the CPI, creating it if missing."""
    dynamic = network.ip is None
    subnets = list(lan.dynamic_subnets) if dynamic else [subnet_of(network)]
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    if network.gateway:
        ranges[0][0]["gateway"] = network.gateway
    routes = [{"dst": _everything(subnet)} for subnet in subnets] if default_route else []
    bridge: CniConfig = {
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
        # Docker makes hosts drop forwarded packets; this accepts those of the VM's address.
        {"type": "firewall", "backend": "iptables"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    )


def subnet_of(network: Network) -> str:
    """Return the subnet of a network's static address."""
    return str(ip_interface(f"{network.ip}/{network.prefix}").network)


def _everything(subnet: str) -> str:
    return "::/0" if ip_network(subnet).version == 6 else "0.0.0.0/0"


def networks_in(folder: Path) -> Iterator[tuple[Path, str, tuple[CniConfig, ...], str]]:
    """Yield the host's CNI networks: file, name, plugins, and why it cannot be read or ""."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.suffix not in (".conflist", ".conf", ".json"):
            continue
        try:
            document = json.loads(file.read_bytes())
            plugins = tuple(document.get("plugins", [document]))
            yield file, str(document.get("name")), plugins, ""
        except (OSError, ValueError, AttributeError) as error:
            yield file, "", (), str(error)


def host_plugins(name: str, folder: Path) -> tuple[CniConfig, ...]:
    """Return the plugins of the host's CNI network `name`, as configured in `folder`.

    Raises NetworkNotFound listing the others.
    """
    titles: list[str] = []
    for file, title, plugins, problem in networks_in(folder):
        if problem:
            raise CloudError(f"the CNI configuration {file} cannot be read: {problem}")
        if title == name:
            return plugins
        titles.append(title)
    raise NetworkNotFound(
        f"there is no CNI network {name!r} in {folder} (found: {', '.join(titles) or 'none'}); add "
        "its configuration there, or leave `name` out to use a bridge"
    )


class Plugins:
    """The host's CNI plugins."""

    def __init__(self, folders: Sequence[str]) -> None:
        wanted = folders or DEFAULT_PLUGIN_DIRS
        self.folders = [folder for folder in wanted if Path(folder).is_dir()]

    def add(
        self,
        attachment: Attachment,
        container: str,
        namespace: Path,
        remember: Callable[[CniConfig], None],
    ) -> CniConfig:
        """Make an interface in a network namespace and return the result (CNI "ADD").

        `remember` is called with the result so far after each plugin, for `delete`.
        """
        result: CniConfig = {}
        for plugin in attachment.plugins:
            if not _idle(plugin, attachment):
                previous = result or None
                answer = self._call("ADD", attachment, plugin, container, namespace, previous)
                result = answer or result
                remember(result)
        return result

    def delete(self, attachment: Attachment, container: str, namespace: Path) -> None:
        """Undo `add` in reverse order; ignore what is gone (CNI "DEL")."""
        for plugin in reversed(attachment.plugins):
            if not _idle(plugin, attachment):
                self._call("DEL", attachment, plugin, container, namespace, attachment.result)

    def _call(
        self,
        command: str,
        attachment: Attachment,
        plugin: CniConfig,
        container: str,
        namespace: Path,
        previous: CniConfig | None,
    ) -> CniConfig | None:
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
        parsed: CniConfig | None = json.loads(answer) if answer.strip() else None
        return parsed

    def versions(self, name: str) -> list[str]:
        """Return the CNI versions that a plugin supports. Raises CloudError if it is missing."""
        answer = run([self._find(name)], stdin=b"{}", env={"CNI_COMMAND": "VERSION"})
        versions: list[str] = json.loads(answer).get("supportedVersions", [])
        return versions

    def _find(self, name: str) -> str:
        if "/" in name or name.startswith("."):
            raise CloudError(f"{name!r} is no name of a CNI plugin")
        for folder in self.folders:
            if (Path(folder) / name).exists():
                return str(Path(folder) / name)
        raise CloudError(
            f"the CNI plugin {name} is in none of "
            f"{', '.join(self.folders) or DEFAULT_PLUGIN_DIRS}; apt-get install "
            "containernetworking-plugins, or set network.cni_plugin_dirs"
        )


def addresses(result: CniConfig) -> list[tuple[str, int, str | None]]:
    """Return (address, prefix, gateway) for each address of a CNI result."""
    ips = ((ip_interface(ip["address"]), ip.get("gateway")) for ip in result.get("ips", []))
    return [(str(address.ip), address.network.prefixlen, gateway) for address, gateway in ips]


def mac_of(result: CniConfig) -> str | None:
    """Return the MAC of the interface inside the namespace."""
    interfaces = result.get("interfaces", [])
    macs = [interface.get("mac") for interface in interfaces if interface.get("sandbox")]
    return str(macs[0]) if macs and macs[0] else None


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


def host_links(result: CniConfig) -> list[str]:
    """Return the names of the interfaces that a CNI result has on the host."""
    return [
        str(interface.get("name"))
        for interface in result.get("interfaces", [])
        if not interface.get("sandbox")
    ]


def port_mappings(ports: Sequence[PortForward]) -> list[CniConfig]:
    """Return forwarded ports as CNI's portMappings capability takes them."""
    return [
        {"hostPort": port.host, "containerPort": port.container, "protocol": port.protocol}
        | ({"hostIP": port.host_ip} if port.host_ip else {})
        for port in ports
    ]


def _idle(plugin: CniConfig, attachment: Attachment) -> bool:
    """Tell whether a plugin has nothing to do: a portmap without ports only costs a process."""
    return plugin.get("type") == "portmap" and not attachment.runtime.get("portMappings")


def _reason(error: CommandFailed) -> str:
    """Return a plugin's error message, which is JSON on stdout (SPEC, "Error")."""
    try:
        document = json.loads(error.stdout)
        reason = " ".join(str(document[key]) for key in ("msg", "details") if document.get(key))
        if "already has an IP address different" in reason:
            reason += "; a bridge has one IPv4 subnet: name another `bridge` for this network"
        return reason
    except (ValueError, KeyError, TypeError):
        return error.message
