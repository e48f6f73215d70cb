"""CNI: network configurations, and the calls of plugins (containernetworking/cni SPEC, 1.0.0).

Only plugins make interfaces; this renders their configurations and parses their results.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path

from cpi.cni.attachments import Attachment, CniConfig
from cpi.errors import CloudError, NetworkNotFound
from cpi.host.process import CommandFailed, run
from cpi.model import Network, PortForward

# Those that this speaks, the preferred one first. Results of all three have the same `interfaces`,
# and `ips` with the same `address` and `gateway`.
CNI_VERSIONS = ("1.0.0", "0.4.0", "0.3.1")
_INCOMPATIBLE = 1  # SPEC, "Error", well-known error codes
DEFAULT_PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")


@dataclass(frozen=True)
class Lan:
    """A bridge of the CPI: its name, MTU (bytes), and the folder of reserved addresses."""

    bridge: str
    mtu: int
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
        "ipMasq": False,  # cpi.cni.firewall does that, with a cost that does not grow
        "hairpinMode": True,
        "mtu": lan.mtu,
        "ipam": {
            "type": "host-local",
            "dataDir": str(lan.address_dir),
            "ranges": ranges,
            "routes": routes,
        },
    }
    return (bridge,)


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


class Incompatible(CloudError):
    """A plugin does not speak the version of CNI that it was called with."""


class Plugins:
    """The host's CNI plugins."""

    def __init__(self, folders: Sequence[str]) -> None:
        wanted = folders or DEFAULT_PLUGIN_DIRS
        self.folders = [folder for folder in wanted if Path(folder).is_dir()]
        self._agreed: dict[tuple[str, ...], str] = {}  # versions, by the plugins of a network

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
        # Plugins are only asked for their versions when one refuses: asking costs a process each.
        types = _types(attachment)
        version = self._agreed.get(types, CNI_VERSIONS[0])
        try:
            return self._add(attachment, container, namespace, remember, version)
        except Incompatible:
            agreed = self.common_version(types)
            if agreed == version:
                raise
            self._agreed[types] = agreed
            self.delete(attachment, container, namespace)
            return self._add(attachment, container, namespace, remember, agreed)

    def _add(
        self,
        attachment: Attachment,
        container: str,
        namespace: Path,
        remember: Callable[[CniConfig], None],
        version: str,
    ) -> CniConfig:
        result: CniConfig = {}
        for plugin in attachment.plugins:
            if not _idle(plugin, attachment):
                previous = result or None
                answer = self._call(
                    "ADD", attachment, plugin, container, namespace, previous, version
                )
                result = answer or result
                remember(result)
        return result

    def delete(self, attachment: Attachment, container: str, namespace: Path) -> None:
        """Undo `add` in reverse order; ignore what is gone (CNI "DEL")."""
        types, result = _types(attachment), attachment.result
        version = (result or {}).get("cniVersion") or self._agreed.get(types, CNI_VERSIONS[0])
        for plugin in reversed(attachment.plugins):
            if _idle(plugin, attachment):
                continue
            try:
                self._call("DEL", attachment, plugin, container, namespace, result, version)
            except Incompatible:
                agreed = self.common_version(types)
                if result or agreed == version:  # a result cannot be converted
                    raise
                version = self._agreed[types] = agreed
                self._call("DEL", attachment, plugin, container, namespace, result, version)

    def common_version(self, types: Sequence[str]) -> str:
        """Return the version of CNI that all these plugins and this speak. Raises CloudError."""
        spoken = {name: self.versions(name) for name in types}
        for version in CNI_VERSIONS:
            if all(version in versions for versions in spoken.values()):
                return version
        listed = "; ".join(
            f"{name} speaks {', '.join(versions) or 'none'}" for name, versions in spoken.items()
        )
        raise CloudError(
            f"the CNI plugins have no version in common with this CPI, which speaks "
            f"{', '.join(CNI_VERSIONS)}: {listed}; install containernetworking-plugins 0.8 or later"
        )

    def _call(
        self,
        command: str,
        attachment: Attachment,
        plugin: CniConfig,
        container: str,
        namespace: Path,
        previous: CniConfig | None,
        version: str,
    ) -> CniConfig | None:
        document = {**plugin, "cniVersion": version, "name": attachment.network}
        wanted = plugin.get("capabilities") or {}
        document["runtimeConfig"] = {
            key: value for key, value in attachment.runtime.items() if wanted.get(key)
        }
        if previous is not None:
            document["prevResult"] = {**previous, "cniVersion": version}
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
            code, reason = _reason(error)
            failed = Incompatible if code == _INCOMPATIBLE else CloudError
            raise failed(
                f"the CNI plugin {plugin.get('type')} of the network {attachment.network!r} could "
                f"not {command} {attachment.interface}: {reason}"
            ) from None
        parsed: CniConfig | None = json.loads(answer) if answer.strip() else None
        return parsed

    def versions(self, name: str) -> list[str]:
        """Return the CNI versions that a plugin supports. Raises CloudError if it is missing."""
        document = json.dumps({"cniVersion": CNI_VERSIONS[0]}).encode()
        answer = run([self._find(name)], stdin=document, env={"CNI_COMMAND": "VERSION"})
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


def port_mappings(ports: Sequence[PortForward]) -> list[CniConfig]:
    """Return forwarded ports as CNI's portMappings capability takes them."""
    return [
        {"hostPort": port.host, "containerPort": port.container, "protocol": port.protocol}
        | ({"hostIP": port.host_ip} if port.host_ip else {})
        for port in ports
    ]


def _types(attachment: Attachment) -> tuple[str, ...]:
    """Return the names of an attachment's plugins, with those for addresses."""
    names = [str(plugin.get("type")) for plugin in attachment.plugins]
    ipams = [(plugin.get("ipam") or {}).get("type") for plugin in attachment.plugins]
    return (*names, *(str(name) for name in ipams if name))


def _idle(plugin: CniConfig, attachment: Attachment) -> bool:
    """Tell whether a plugin has nothing to do: a portmap without ports only costs a process."""
    return plugin.get("type") == "portmap" and not attachment.runtime.get("portMappings")


def _reason(error: CommandFailed) -> tuple[int, str]:
    """Return the code and the message of a plugin's error, JSON on stdout (SPEC, "Error")."""
    try:
        document = json.loads(error.stdout)
        reason = " ".join(str(document[key]) for key in ("msg", "details") if document.get(key))
        if "already has an IP address different" in reason:
            reason += "; a bridge has one IPv4 subnet: name another `bridge` for this network"
        return int(document.get("code", 0)), reason
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, error.message
