"""The MTU of the way out of this host, which bridges follow unless the configuration sets one."""

import fcntl
import socket
import struct
from pathlib import Path

from cpi.host import kernel

DEFAULT_MTU = 1500  # Ethernet's, where there is no way out

# Of this process' network namespace.
_ROUTES4 = Path("/proc/net/route")
_ROUTES6 = Path("/proc/net/ipv6_route")


def mtu() -> int:
    """Return the MTU (bytes) of the host's default route, of IPv4 if it has one."""
    for device, of_route in _default_routes4() or _default_routes6():
        if size := of_route or _mtu_of(device):
            return size
    return DEFAULT_MTU


def _default_routes4() -> list[tuple[str, int]]:
    """Return the device of each default route, and the MTU that the route sets or 0."""
    routes = []
    for words in _lines(_ROUTES4)[1:]:
        device, destination, _, flags, _, _, metric, mask, size = words[:9]
        if int(destination, 16) == int(mask, 16) == 0 and _is_usable(flags):
            routes.append((int(metric), device, int(size)))
    return [(device, size) for _, device, size in sorted(routes)]


def _default_routes6() -> list[tuple[str, int]]:
    routes = []
    for words in _lines(_ROUTES6):
        destination, length, metric, flags, device = (
            words[0],
            words[1],
            words[5],
            words[8],
            words[9],
        )
        if int(destination, 16) == int(length, 16) == 0 and _is_usable(flags):
            routes.append((int(metric, 16), device, 0))
    return [(device, size) for _, device, size in sorted(routes)]


def _is_usable(flags: str) -> bool:
    return int(flags, 16) & (kernel.RTF_UP | kernel.RTF_REJECT) == kernel.RTF_UP


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()]
    except OSError:  # this kernel has no such protocol
        return []


def _mtu_of(device: str) -> int:
    request = struct.pack("16si", device.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, kernel.SIOCGIFMTU, request.ljust(40, b"\0"))
        except OSError:  # it has just gone
            return 0
    return int(struct.unpack_from("16si", answer)[1])
