"""The nameservers of a VM: those of its networks, else those of the host."""

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from cpi.log import Log
from cpi.model import Network

# The first says what programs of the host use. If that is a stub on its loopback (systemd-resolved,
# NetworkManager's dnsmasq), which a VM cannot reach, the others say where the stub asks.
_FILES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)


def of_networks(networks: Sequence[Network]) -> list[str]:
    """Return the nameservers of the networks that BOSH marks for DNS, else of all."""
    servers = [server for network in _marked(networks) for server in network.dns]
    return list(dict.fromkeys(servers))


def with_nameservers(networks: Sequence[Network], log: Log) -> list[Network]:
    """Return networks of which one has nameservers: the host's where the manifest names none.

    They are in the agent's settings then, so that the agent keeps them.
    """
    networks = list(networks)
    if not networks or of_networks(networks):
        return networks
    servers = of_host()
    if not servers:
        log.warn(
            "the VM has no nameserver: its networks have no dns, and the host has none that a VM "
            f"can reach in {', '.join(map(str, _FILES))}; set dns in the network's subnet"
        )
        return networks
    index = networks.index(_marked(networks)[0])
    networks[index] = replace(networks[index], dns=tuple(servers))
    return networks


def of_host() -> list[str]:
    """Return the host's nameservers, without those on its loopback."""
    for path in _FILES:
        if servers := [server for server in _in_file(path) if _is_reachable(server)]:
            return servers
    return []


def _marked(networks: Sequence[Network]) -> list[Network]:
    return [network for network in networks if "dns" in network.default] or list(networks)


def _in_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    entries = [line.split() for line in lines]
    return [entry[1] for entry in entries if len(entry) > 1 and entry[0] == "nameserver"]


def _is_reachable(server: str) -> bool:
    """Tell whether a VM may reach an address: neither loopback nor on one link of the host."""
    try:
        address = ip_address(server)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)
