"""A containerd that is running already, used beside whatever else runs on it.

What the demo makes there has a containerd namespace, a bridge, a cgroup and a folder of its own,
which all go at the end.
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
        """The CPI's configuration: names of its own wherever it would meet others."""
        document = super().config(**changes)
        document["containerd"]["namespace"] = self.namespace
        document["network"] = {**document.get("network", {}), "bridge": self.bridge}
        return document

    def enter(self, *argv: str) -> list[str]:
        """The command as it is: there is nothing to enter."""
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
