"""Which addresses of a subnet are not for VMs: those of its bridge, of the subnet, and all others
when the netmask is not the bridge's."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface

from cpi.errors import CloudError
from cpi.host.iproute import Subnet
from cpi.model import Network

Interface = IPv4Interface | IPv6Interface


def require_fit(network: Network, where: str, own: Iterable[Interface]) -> None:
    """Check the static address of a network against those that its bridge has.

    where: the bridge, for messages. Raises CloudError.
    """
    mine = ip_interface(f"{network.ip}/{network.prefix}")
    others = [interface for interface in own if interface.version == mine.version]
    for interface in others:
        subnet: Subnet = interface.network
        if mine.ip == interface.ip:
            raise CloudError(f"the network {network.name!r}: {mine.ip} is the address of {where}")
        if mine.ip in subnet and _is_of_subnet(mine.ip, subnet):
            raise CloudError(
                f"the network {network.name!r}: {mine.ip} is the network or broadcast address of "
                f"{subnet}, the subnet of {where}"
            )
        if any(mine.network == other.network for other in others):
            continue
        if mine.network.overlaps(subnet):
            raise CloudError(
                f"the network {network.name!r}: the netmask of {mine} disagrees with {where}, "
                f"which has {interface}; use the netmask {interface.netmask}, or another bridge"
            )


def _is_of_subnet(address: IPv4Address | IPv6Address, subnet: Subnet) -> bool:
    """Tell whether an address is that of a network, of IPv6's subnet-router (RFC 4291, 2.6.1), or
    IPv4's broadcast address."""
    if subnet.prefixlen >= subnet.max_prefixlen - 1:  # RFC 3021, RFC 6164
        return False
    return address == subnet[0] or (subnet.version == 4 and address == subnet[-1])
