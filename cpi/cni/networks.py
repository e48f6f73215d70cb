"""A VM's network: a pinned namespace, one interface for each BOSH network, published ports.

What CNI's DEL needs is kept in the VM's folder, so that a later process can delete the VM. The
namespace is pinned under the VM's CID and outlives the task.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpi import validate
from cpi.cni import uplink
from cpi.cni.addressing import require_fit
from cpi.cni.attachments import (
    STATE,
    Attachment,
    CniConfig,
    addresses,
    as_before,
    attachments_in,
    host_links,
    mac_of,
    port_of,
    save,
)
from cpi.cni.firewall import Firewall, address_owner
from cpi.cni.nameservers import with_nameservers
from cpi.cni.plugins import Lan, Plugins, bridge_plugins, host_plugins, port_mappings
from cpi.cni.ports import Ports
from cpi.errors import CloudError, NotSupported
from cpi.host import iproute, syscalls
from cpi.host.layout import Layout
from cpi.host.process import run
from cpi.log import Log
from cpi.model import Network, PortForward, VMSpec

if TYPE_CHECKING:
    from cpi.config.config import Config

_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ
_CNI_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_PROPERTIES = {
    "bridge": validate.matching(_BRIDGE.fullmatch, "the name of a bridge"),
    "mtu": validate.integer(576, 65535, "bytes"),
    "name": validate.matching(_CNI_NAME.fullmatch, "the name of a CNI network"),
    "spoofing": validate.flag,
}
_REBUILDING = "network.rebuilding"


class Networks:
    """Creates and deletes the networks of VMs."""

    def __init__(
        self,
        config: "Config",
        log: Log,
        pin: Callable[[str, Path], None] = lambda _, path: syscalls.pin_network_namespace(path),
        tap: Callable[[str, str], str] = lambda _vm_cid, _interface: "",
    ) -> None:
        """pin: makes a VM's network namespace and pins it at a path.

        tap: names the port of a VM's interface on a bridge, where a hypervisor makes it.
        """
        layout = Layout.of(config)
        self._config = config
        self._log = log
        self._pin = pin
        self._tap = tap
        self._firewall = Firewall.of(config, log)
        self._addresses = layout.addresses
        self._namespaces = layout.namespaces
        self._plugins = Plugins(config.strings("network.cni_plugin_dirs"))
        self._ports = Ports(layout.ports)

    def namespace(self, vm_cid: str) -> Path:
        """Return the path at which the VM's network namespace is pinned."""
        return self._namespaces / vm_cid

    def require_free(self, spec: VMSpec) -> None:
        """Check that no other VM, nor the bridge, has the addresses. Raises CloudError.

        CNI's host-local plugin decides when it reserves the address; but it does not name the VM,
        and by then a namespace has been made.
        """
        for network in spec.networks:
            if network.ip is None or "name" in network.cloud_properties:
                continue
            bridge = self._bridge(properties_of(network))
            require_fit(network, f"the bridge {bridge}", iproute.addresses(bridge))
            self._require_gateway(network)
            if holder := address_owner(self._addresses / bridge / network.ip):
                raise CloudError(
                    f"the address {network.ip} of the network {network.name!r} is in use on the "
                    f"bridge {bridge} by {holder}"
                )

    def connect(self, spec: VMSpec, folder: Path) -> list[Network]:
        """Make the VM's namespace and interfaces; return its networks with their addresses.

        When it fails, `disconnect` cleans up. Raises CloudError, NetworkNotFound.
        """
        attachments = [
            self._plan(spec, network, f"eth{number}")
            for number, network in enumerate(spec.networks)
        ]
        if spec.properties.ports and not any("portMappings" in a.runtime for a in attachments):
            raise CloudError("ports need a network that has the VM's default gateway")
        self._ports.reserve(spec.properties.ports, spec.cid)
        self._namespaces.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pin(spec.cid, self.namespace(spec.cid))
        save(folder / STATE, attachments)
        networks = [
            self._add(index, network, attachments, spec.cid, folder)
            for index, network in enumerate(spec.networks)
        ]
        for network in spec.networks:
            self._require_still_fit(network)
        self._firewall.admit(spec.cid, attachments)
        return with_nameservers(networks, self._log)

    def disconnect(self, vm_cid: str, folder: Path) -> None:
        """Remove the VM's interfaces and namespace; ignore what is gone."""
        namespace, attachments = self.namespace(vm_cid), attachments_in(folder / STATE)
        with ExitStack() as stack:  # one plugin's failure does not block the others
            stack.callback(self._ports.release, vm_cid)
            stack.callback(syscalls.unpin_namespace, namespace)
            for attachment in attachments:
                stack.callback(self._plugins.delete, attachment, vm_cid, namespace)
            # Before another VM can have its addresses and ports: see Firewall.dismiss.
            stack.callback(self._firewall.dismiss, vm_cid, attachments)

    def has_any(self, folder: Path) -> bool:
        """Tell whether a VM has networks here."""
        return bool(attachments_in(folder / STATE))

    def is_whole(self, vm_cid: str, folder: Path) -> bool:
        """Tell whether the VM has its namespace, which a restart of the host removes."""
        return (
            syscalls.is_mount_point(self.namespace(vm_cid)) and not (folder / _REBUILDING).exists()
        )

    def rebuild(self, vm_cid: str, folder: Path, then: Callable[[], None] | None = None) -> None:
        """Make the VM's namespace and interfaces again, with the addresses and MACs they had.

        Until `then` has returned, `is_whole` returns False. The VM keeps its published ports; its
        addresses are released for a moment, since plugins only assign free ones. Raises CloudError,
        also when a plugin assigns other addresses.
        """
        (folder / _REBUILDING).touch(0o600)
        namespace, attachments = self.namespace(vm_cid), attachments_in(folder / STATE)
        stale = [port_of(attachment) for attachment in attachments]
        for attachment in reversed(attachments):
            self._plugins.delete(attachment, vm_cid, namespace)
        syscalls.unpin_namespace(namespace)
        self._namespaces.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pin(vm_cid, namespace)
        for index, attachment in enumerate(attachments):
            result = self._plugins.add(as_before(attachment), vm_cid, namespace, lambda _: None)
            _require_same_addresses(attachment, result)
            attachments[index] = replace(attachment, result=result)
            save(folder / STATE, attachments)
        self._firewall.admit(vm_cid, attachments, [name for name in stale if name])
        if then:
            then()
        (folder / _REBUILDING).unlink()

    def hand_over(self, networks: Sequence[Network], folder: Path) -> list[tuple[str, int]]:
        """Detach the VM's interfaces from bridges, for those that its hypervisor makes.

        Returns each network's bridge and the interface's MTU (bytes). What `connect` made stays,
        for `disconnect`, but no longer answers for the VM's addresses. Raises NotSupported for a
        network without a bridge.
        """
        bridges = []
        for network, bridge in zip(networks, self.leave_bridges(folder), strict=True):
            if bridge is None:
                raise NotSupported(
                    f"the network {network.name!r} has no bridge on the host, which a full VM "
                    "needs; use another network for it"
                )
            bridges.append(bridge)
        return bridges

    def leave_bridges(self, folder: Path) -> list[tuple[str, int] | None]:
        """Detach a VM's interfaces from their bridges (idempotent).

        Returns the name of each network's bridge and the MTU (bytes) of the VM's interface, None
        for a network without a bridge.
        """
        links = iproute.links()
        bridges: list[tuple[str, int] | None] = []
        for attachment in attachments_in(folder / STATE):
            mine = [links[name] for name in host_links(attachment.result or {}) if name in links]
            types = [link.get("linkinfo", {}).get("info_kind") for link in mine]
            bridge = mine[types.index("bridge")] if "bridge" in types else None
            for link in mine:
                if bridge and link.get("master") == bridge["ifname"]:
                    words = ["ip", "link", "set", link["ifname"], "nomaster", "down"]
                    run(words, install_hint=iproute.INSTALL)
            if bridge is None:
                bridges.append(None)
            else:
                mtu = attachment.plugins[0].get("mtu") or bridge["mtu"]
                bridges.append((str(bridge["ifname"]), int(mtu)))
        return bridges

    def _require_gateway(self, network: Network) -> None:
        """Check that no VM has the gateway's address, which the bridge is about to get.

        Raises CloudError naming that VM.
        """
        bridge = self._bridge(properties_of(network))
        if network.gateway and (
            holder := address_owner(self._addresses / bridge / network.gateway)
        ):
            raise CloudError(
                f"the gateway {network.gateway} of the network {network.name!r} is the address of "
                f"the VM {holder} on the bridge {bridge}"
            )

    def _require_still_fit(self, network: Network) -> None:
        """Check what another call may have changed since `require_free`. Raises CloudError."""
        if network.ip is None or "name" in network.cloud_properties:
            return
        self._require_gateway(network)
        if network.gateway is None:  # else the plugin has compared the bridge's address with it
            bridge = self._bridge(properties_of(network))
            require_fit(network, f"the bridge {bridge}", iproute.addresses(bridge))

    def _add(
        self, index: int, network: Network, attachments: list[Attachment], vm_cid: str, folder: Path
    ) -> Network:
        def remember(result: CniConfig) -> None:
            attachments[index] = replace(attachments[index], result=result)
            save(folder / STATE, attachments)

        namespace = self.namespace(vm_cid)
        result = self._plugins.add(attachments[index], vm_cid, namespace, remember)
        return _connected(network, result)

    def _plan(self, spec: VMSpec, network: Network, interface: str) -> Attachment:
        properties = properties_of(network)
        default_route = "gateway" in network.default or len(spec.networks) == 1
        runtime: dict[str, Any] = {}
        if default_route and spec.properties.ports:
            runtime["portMappings"] = port_mappings(spec.properties.ports)
        arguments = "IgnoreUnknown=true"
        if network.ip is not None:
            runtime["ips"] = [f"{network.ip}/{network.prefix}"]
            arguments += f";IP={network.ip}"
        if "name" in properties:
            title = str(properties["name"])
            plugins = host_plugins(title, Path(self._config.text("network.cni_config_dir")))
            return Attachment(title, interface, plugins, runtime, arguments)
        lan = self._lan(properties)
        return Attachment(
            lan.bridge,
            interface,
            bridge_plugins(lan, network, default_route=default_route),
            runtime,
            arguments,
            bridge=lan.bridge,
            masquerade=self._config.flag("network.masquerade"),
            spoofing=properties.get("spoofing", False),
            tap=self._tap(spec.cid, interface),
        )

    def _lan(self, properties: dict[str, Any]) -> Lan:
        mtu = properties.get("mtu") or self._config.integer("network.mtu")
        return Lan(
            bridge=self._bridge(properties),
            mtu=mtu or uplink.mtu(),
            dynamic_subnets=self._config.strings("network.dynamic_subnets"),
            address_dir=self._addresses,
        )

    def _bridge(self, properties: dict[str, Any]) -> str:
        return properties.get("bridge") or self._config.text("network.bridge")


def _connected(network: Network, result: CniConfig) -> Network:
    """Return a network with the address that its plugins assigned. Raises CloudError."""
    assigned = addresses(result)
    if network.ip is None:
        if not assigned:
            raise CloudError(f"the network {network.name!r} gave the VM no address")
        ip, prefix, gateway = assigned[0]
        network = replace(network, ip=ip, prefix=prefix, gateway=network.gateway or gateway)
    elif network.ip not in [ip for ip, _, _ in assigned]:
        raise CloudError(
            f"the network {network.name!r} gave {[ip for ip, _, _ in assigned]} instead of "
            f"{network.ip}; its IPAM plugin must be able to give a wanted address"
        )
    return replace(network, mac=mac_of(result))


def _require_same_addresses(attachment: Attachment, result: CniConfig) -> None:
    had = {ip for ip, _, _ in addresses(attachment.result or {})}
    has = {ip for ip, _, _ in addresses(result)}
    if not had <= has:
        raise CloudError(
            f"the network {attachment.network!r} gave {', '.join(sorted(has)) or 'no address'} "
            f"instead of {', '.join(sorted(had))}, which the VM has had; its IPAM plugin must be "
            "able to give a wanted address"
        )


def properties_of(network: Network) -> dict[str, Any]:
    """Return a network's validated cloud_properties. Raises CloudError naming what is wrong."""
    given = network.cloud_properties
    where = f"the network {network.name!r}: cloud_properties"
    return validate.fields(where, given, _PROPERTIES, CloudError, required=given)


def property_names() -> tuple[str, ...]:
    """Return the keys that a network's cloud_properties may have."""
    return tuple(_PROPERTIES)


def published(ports: Sequence[PortForward]) -> str:
    """Return forwarded ports as a label: "8080:80/tcp …"."""
    return " ".join(f"{port.host}:{port.container}/{port.protocol}" for port in ports)
