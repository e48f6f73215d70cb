"""A VM's network interfaces: on the bridge that containers use, or on a network of libvirt's.

On this machine's own libvirt a VM joins a bridge as a container does, through cpi.cni: plugins make
the bridge and reserve the address, our firewall masquerades and publishes ports. Only the interface
itself is the hypervisor's.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from cpi.cni.addressing import require_fit
from cpi.cni.networks import Networks, properties_of
from cpi.errors import CloudError, NetworkNotFound, NotSupported
from cpi.model import Network, VMSpec
from cpi.text import shown
from runtimes.libvirt.addresses import Addresses
from runtimes.libvirt.client import translated_errors
from runtimes.libvirt.domains import Domains
from runtimes.libvirt.xml import network_xml
from runtimes.libvirt.xml.domain_xml import Interface
from runtimes.libvirt.xml.network_xml import IPInterface, LibvirtNetwork

_REMOTE_NETWORK = "bosh"
_BRIDGE_NETWORK = "bosh-"  # before the name of the bridge
_TAP_DIGITS = 12  # with "bvm" as long as the kernel allows
_TRIES = 65536  # addresses looked at in one subnet


class Nics:
    """Makes and removes the interfaces of VMs. The caller holds the VM's lock."""

    def __init__(
        self,
        domains: Domains,
        host: Networks | None,
        addresses: Addresses,
        lock: Callable[[str], Any],
    ) -> None:
        """host: this machine's networks, None when libvirt is elsewhere.

        addresses: on libvirt's own networks.
        """
        self._connection = domains.connection
        self._profile = domains.profile
        self._config = domains.config
        self._log = domains.log
        self._host = host
        self._addresses = addresses
        self._lock = lock

    def require_free(self, spec: VMSpec) -> None:
        """Refuse an address that another VM has. Raises CloudError naming that VM."""
        if self._host and not self._on_libvirt(spec):
            self._host.require_free(spec)

    def connect(self, spec: VMSpec, folder: Path) -> list[tuple[Network, Interface]]:
        """Connect a VM to its networks; return them with addresses and interfaces.

        Raises CloudError, NetworkNotFound, NotSupported; `disconnect` undoes it, even half-way.
        """
        names = self._on_libvirt(spec)
        if not self._host and not self._profile.networks:
            raise NotSupported(
                f"the {self._profile.name} runtime joins bridges of the host, which takes root"
            )
        if self._host and not names:
            return self._on_bridges(self._host, spec, folder)
        if spec.properties.ports:
            raise NotSupported("ports need the host's own bridge; this VM is on a libvirt network")
        if len(names) < len(spec.networks):
            raise NotSupported(
                "a VM's networks are all bridges of the host or all networks of libvirt"
            )
        return [
            self._on_network(spec, network, index, names[network.name])
            for index, network in enumerate(spec.networks)
        ]

    def disconnect(self, vm_cid: str, folder: Path) -> None:
        """Disconnect a VM from its networks; idempotent."""
        self._addresses.release(vm_cid)
        if self._host:
            self._host.disconnect(vm_cid, folder)

    def restore(self, vm_cid: str, folder: Path, start: Callable[[], None]) -> bool:
        """Restore a VM's bridges after a restart of the host, and `start` it; tell whether it did.

        Networks of libvirt need nothing.
        """
        host = self._host
        if host is None or not host.has_any(folder) or host.is_whole(vm_cid, folder):
            return False

        def then() -> None:
            host.leave_bridges(folder)
            start()

        host.rebuild(vm_cid, folder, then)
        return True

    # Bridges of the host

    def _on_bridges(
        self, host: Networks, spec: VMSpec, folder: Path
    ) -> list[tuple[Network, Interface]]:
        networks = host.connect(spec, folder)
        bridges = host.hand_over(networks, folder)
        by_bridge: dict[str, list[Network]] = {}
        for network, (bridge, _) in zip(networks, bridges, strict=True):
            by_bridge.setdefault(bridge, []).append(network)
        for bridge, own in by_bridge.items():
            self._autostart_bridge(bridge, own)
        return [
            (
                replace(network, preconfigured=False),
                Interface(
                    mac=network.mac or mac_of(spec.cid, index),
                    model=self._profile.nic,
                    bridge=bridge,
                    mtu=mtu,
                    target=tap_of(spec.cid, f"eth{index}"),
                ),
            )
            for index, (network, (bridge, mtu)) in enumerate(zip(networks, bridges, strict=True))
        ]

    def _autostart_bridge(self, bridge: str, networks: Sequence[Network]) -> None:
        """Let libvirt make the bridge when the host starts: it starts VMs of older versions."""
        if not self._profile.autostart:
            return
        name = f"{_BRIDGE_NETWORK}{bridge}"
        with self._lock(f"network-{name}"), translated_errors(f"defining the network {name}"):
            defined = self._connection.network(name)
            old = network_xml.read_network(defined.XMLDesc()) if defined else None
            if old and old.bridge != bridge:
                self._log.warn(
                    f"libvirt's network {name} is somebody else's, so the bridge {bridge} will not "
                    "be there when the host starts its VMs"
                )
                return
            known = old.gateways if old else ()
            wanted = tuple(dict.fromkeys([*known, *_gateways(networks)]))
            if old is None or len(wanted) > len(known):
                mode, uuid = "open" if wanted else "", old.uuid if old else ""
                document = network_xml.network(LibvirtNetwork(name, bridge, mode, wanted, uuid))
                self._connection.raw.networkDefineXML(document).setAutostart(1)

    # Networks of libvirt

    def _on_libvirt(self, spec: VMSpec) -> dict[str, str]:
        """Return which of a VM's networks are libvirt's, with their names there."""
        names: dict[str, str] = {}
        if not self._profile.networks:
            return names
        for network in spec.networks:
            properties = properties_of(network)
            name = properties.get("name")
            if name is not None and (not self._host or self._connection.network(name)):
                names[network.name] = name
            elif name is None and "bridge" not in properties:
                default = self._config.text(f"{self._profile.name}.network")
                if default or not self._host:
                    names[network.name] = default or _REMOTE_NETWORK
        return names

    def _on_network(
        self, spec: VMSpec, network: Network, index: int, name: str
    ) -> tuple[Network, Interface]:
        unknown = sorted(set(network.cloud_properties) - {"name"})
        if unknown:
            raise CloudError(
                f"the network {network.name!r}: cloud_properties {', '.join(map(shown, unknown))} "
                "are of no use on a libvirt network"
            )
        with self._lock(f"network-{name}"):
            gateways = self._active(name, network).gateways

        def owner_of(address: str) -> str:
            return self._addresses.reserve(name, address, spec.cid)

        if network.ip is not None:
            require_fit(network, f"the libvirt network {name}", gateways)
        if network.ip is None:
            network = _addressed(network, gateways, owner_of, spec.cid)
        elif (owner := owner_of(network.ip)) != spec.cid:
            raise CloudError(f"the address {network.ip} on the network {name} is in use by {owner}")
        known = {str(gateway.ip) for gateway in gateways}
        if network.gateway and known and network.gateway not in known:
            self._log.warn(
                f"the gateway {network.gateway} of {network.name!r} is none of the addresses of "
                f"the libvirt network {name} ({', '.join(sorted(known))})"
            )
        mac = mac_of(spec.cid, index)
        interface = Interface(mac=mac, model=self._profile.nic, network=name)
        return replace(network, mac=mac, preconfigured=False), interface

    def _active(self, name: str, network: Network) -> LibvirtNetwork:
        """Return libvirt's network of this name, running. The default one is made when missing."""
        active = self._connection.network(name)
        with translated_errors(f"starting the network {name}"):
            if active is None:
                if network.cloud_properties.get("name") == name:
                    others = self._connection.raw.listAllNetworks()
                    there = [other.name() for other in others]
                    raise NetworkNotFound(
                        f"libvirt has no network {name!r} (it has: {', '.join(there) or 'none'}); "
                        "define it there, or leave `name` out"
                    )
                subnet = ip_network(self._config.strings("network.dynamic_subnets")[0])
                first = ip_interface(f"{subnet[1]}/{subnet.prefixlen}")
                gateway = _gateways([network]) or [first]
                document = network_xml.network(LibvirtNetwork(name, "", "nat", tuple(gateway)))
                self._log.info(f"making the libvirt network {name} ({gateway[0]})")
                active = self._connection.raw.networkDefineXML(document)
                active.setAutostart(1)
            if not active.isActive():
                active.create()
            return network_xml.read_network(active.XMLDesc())


def is_ours(name: str) -> bool:
    """Tell whether a network of libvirt's has the name of one that this CPI makes."""
    return name == _REMOTE_NETWORK or name.startswith(_BRIDGE_NETWORK)


def _gateways(networks: Sequence[Network]) -> list[IPInterface]:
    return [
        ip_interface(f"{network.gateway}/{network.prefix}")
        for network in networks
        if network.gateway and network.prefix
    ]


def _addressed(
    network: Network, gateways: Sequence[IPInterface], reserve: Callable[[str], str], vm_cid: str
) -> Network:
    """Reserve the first free address of the subnets for a dynamic network. Raises CloudError.

    reserve: returns the VM that has an address then.
    """
    for gateway in gateways:
        subnet = gateway.network
        for number in range(2, min(subnet.num_addresses - 1, _TRIES)):
            address = str(subnet[number])
            if address != str(gateway.ip) and reserve(address) == vm_cid:
                return replace(
                    network,
                    ip=address,
                    prefix=subnet.prefixlen,
                    gateway=network.gateway or str(gateway.ip),
                )
    subnets = ", ".join(str(gateway.network) for gateway in gateways) or "a network without subnets"
    raise CloudError(f"the network {network.name!r} has no free address in {subnets}")


def tap_of(vm_cid: str, interface: str) -> str:
    """Return the name of an interface's port on a bridge, the same at every call.

    libvirt takes a name that begins with vnet for one that it may choose (formatdomain.html).
    """
    return "bvm" + hashlib.sha256(f"{vm_cid}/{interface}".encode()).hexdigest()[:_TAP_DIGITS]


def mac_of(vm_cid: str, index: int) -> str:
    """Return a locally administered MAC for a VM's interface, the same at every call."""
    digest = hashlib.sha256(f"{vm_cid}/{index}".encode()).hexdigest()
    return ":".join(["52", "54", "00", digest[:2], digest[2:4], digest[4:6]])
