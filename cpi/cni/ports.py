"""Published ports of the host: one VM has each, and no program of the host listens there.

CNI's portmap plugin would let the second VM take the port from the first without a word.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from cpi.errors import CloudError
from cpi.model import PortForward


class Ports:
    """Reservations below one folder: a file for each port, with the VM's CID in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reserve(self, ports: Sequence[PortForward], vm_cid: str) -> None:
        """Reserve ports for a VM; `release` undoes it. Raises CloudError naming who has one."""
        if not ports:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for port in ports:
            self._reserve(port, vm_cid)

    def release(self, vm_cid: str) -> None:
        """Give a VM's ports back."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if self._owner(path) == vm_cid:
                path.unlink(missing_ok=True)

    def _reserve(self, port: PortForward, vm_cid: str) -> None:
        path = self._folder / f"{port.protocol}-{port.host}"
        # Written first and linked then, so that nobody ever sees a reservation without its owner.
        draft = self._folder / f".{vm_cid}"
        draft.write_text(vm_cid)
        try:
            os.link(draft, path)
        except FileExistsError:
            raise CloudError(
                f"the host's port {port.host}/{port.protocol} is taken by the VM "
                f"{self._owner(path)}"
            ) from None
        finally:
            draft.unlink()
        self._require_silence(port)

    def _owner(self, path: Path) -> str:
        try:
            return path.read_text()
        except FileNotFoundError:
            return ""

    def _require_silence(self, port: PortForward) -> None:
        kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
        family = socket.AF_INET6 if ":" in (port.host_ip or "") else socket.AF_INET
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:  # connections that linger are no listeners
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((port.host_ip or "0.0.0.0", port.host))  # noqa: S104 - a probe, closed at once
            except OSError as error:
                raise CloudError(
                    f"the host's port {port.host}/{port.protocol} cannot be published: "
                    f"{error.strerror}"
                ) from None
