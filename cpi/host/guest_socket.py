"""The socket of the host's service that VMs get: where it is, here and in a VM.

A VM gets the folder and not the socket in it, so that the service can start anew. The folder's
parent is root's alone: in a VM everybody may use the socket, on the host only root.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

FOLDER = "guest"
SOCKET = "cpi.sock"
IN_VM = "/var/vcap/bosh-cpi"

_TIMEOUT = 1.0  # seconds


def folder(run_dir: str) -> Path:
    """Where the socket's folder is on the host."""
    return Path(run_dir) / FOLDER


def make_folder(run_dir: str) -> Path:
    """Make the socket's folder where it is missing, and return it. Never delete it: VMs have it."""
    os.makedirs(run_dir, mode=0o700, exist_ok=True)
    path = folder(run_dir)
    path.mkdir(exist_ok=True)
    path.chmod(0o755)  # whatever the umask; any user of a VM comes in here
    return path


def is_served(run_dir: str) -> bool:
    """Tell whether something listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT)
        try:
            client.connect(str(folder(run_dir) / SOCKET))
        except OSError:
            return False
    return True
