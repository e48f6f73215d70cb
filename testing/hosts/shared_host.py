"""A running containerd, shared with its other users.

The demo has its own containerd namespace, bridge, cgroup and folder, and removes them at the end.
"""

import secrets
import subprocess
from pathlib import Path
from typing import Any

from testing.hosts.private_host import PrivateHost


class SharedHost(PrivateHost):
    """The same as a private host, on the machine's own namespaces and containerd."""

    def __init__(self, address: Path) -> None:
        super().__init__()
        self.address = address
        name = secrets.token_hex(4)
        self.namespace = f"bosh-demo-{name}"
        self.bridge = f"demo{name}"  # the kernel takes 15 characters

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return the CPI's configuration, with names that no other user of containerd has."""
        document = super().config(**changes)
        document["containerd"]["namespace"] = self.namespace
        document["network"] = {**document.get("network", {}), "bridge": self.bridge}
        return document

    def enter(self, *argv: str) -> list[str]:
        """Return the command unchanged: there is nothing to enter."""
        return list(argv)

    def stop(self) -> None:
        """Remove the containerd namespace and the bridge, which the CPI leaves, and the folder."""
        namespaces = ["ctr", "--address", str(self.address), "namespaces", "remove"]
        for argv in ([*namespaces, self.namespace], ["ip", "link", "delete", self.bridge]):
            # Neither is there when the first call has failed already.
            subprocess.run(argv, check=False, capture_output=True)
        super().stop()

    def _start(self) -> None:
        if not self.address.is_socket():
            raise RuntimeError(f"{self.address} is no socket; where does containerd listen?")
