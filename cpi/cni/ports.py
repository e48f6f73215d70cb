"""Published ports of the host: each belongs to one VM, and no program of the host listens on it.

The firewall (cpi.cni.firewall, or a plugin of a CNI network) would publish one that the host uses.
"""

import socket
from collections.abc import Sequence
from pathlib import Path

from cpi.errors import CloudError
from cpi.host.reservations import Reservations
from cpi.model import PortForward


class Ports:
    """The ports of all VMs, reserved in one folder."""

    def __init__(self, folder: Path) -> None:
        self._reserved = Reservations(folder)

    def reserve(self, ports: Sequence[PortForward], vm_cid: str) -> None:
        """Reserve ports for a VM. Raises CloudError naming the VM that has one."""
        for port in ports:
            owner = self._reserved.reserve(f"{port.protocol}-{port.host}", vm_cid)
            if owner != vm_cid:
                raise CloudError(
                    f"the host's port {port.host}/{port.protocol} is taken by the VM {owner}"
                )
            _require_free(port)

    def release(self, vm_cid: str) -> None:
        """Release a VM's ports."""
        self._reserved.release(vm_cid)


def _require_free(port: PortForward) -> None:
    socket_type = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    family = socket.AF_INET6 if ":" in (port.host_ip or "") else socket.AF_INET
    with socket.socket(family, socket_type) as probe:
        if socket_type == socket.SOCK_STREAM:  # lingering connections are not listeners
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host_ip or "0.0.0.0", port.host))  # noqa: S104 - a probe, closed at once
        except OSError as error:
            raise CloudError(
                f"the host's port {port.host}/{port.protocol} cannot be published: {error.strerror}"
            ) from None
