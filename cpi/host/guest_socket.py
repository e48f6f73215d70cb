"""The socket of the host's service that VMs get: where it is, here and in a VM.

A VM gets the folder and not the socket in it, so that the service can restart. Only root can enter
the folder's parent: in a VM every user may use the socket, on the host only root.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

SOCKET = "cpi.sock"
IN_VM = "/var/vcap/bosh-cpi"

_TIMEOUT = 1.0  # seconds


def make_folder(folder: Path) -> Path:
    """Make the socket's folder if it is missing, and return it. Never delete it: VMs mount it."""
    os.makedirs(folder.parent, mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # whatever the umask: any user of a VM may enter
    return folder


def is_served(folder: Path) -> bool:
    """Tell whether something listens on the socket in its folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT)
        try:
            client.connect(str(folder / SOCKET))
        except OSError:
            return False
    return True
