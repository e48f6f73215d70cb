"""One containerd, and the parts of the CPI that use it."""

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpi.config.config import Config
    from cpi.host.layout import Layout
    from cpi.log import Log
    from runtimes.containerd.client import Client
    from runtimes.containerd.containers import Containers
    from runtimes.containerd.image_store import ImageStore
    from runtimes.containerd.stemcell_import import Imports
    from runtimes.containerd.stemcells import Stemcells


class Containerd:
    """Connects when it is first used.

    Until then its client, whose loading takes as long as attaching a disk, is not even imported.
    """

    def __init__(self, runtime: str, config: "Config", layout: "Layout", log: "Log") -> None:
        self._runtime = runtime
        self._config = config
        self._layout = layout
        self._log = log
        self.address = config.text("containerd.address")

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()

    @cached_property
    def client(self) -> "Client":
        from runtimes.containerd.client import Client

        namespace = self._config.text("containerd.namespace")
        return Client(self.address, namespace, self._config.integer("containerd.timeout"))

    @cached_property
    def store(self) -> "ImageStore":
        from runtimes.containerd.image_store import ImageStore

        snapshotter = self._config.text("containerd.snapshotter")
        return ImageStore(self.client, snapshotter, str(self._layout.run_dir), self._log)

    @cached_property
    def containers(self) -> "Containers":
        from runtimes.containerd.containers import Containers

        return Containers(self.client, self._config.text("containerd.snapshotter"))

    @cached_property
    def stemcells(self) -> "Stemcells":
        from runtimes.containerd.stemcells import Stemcells

        return Stemcells(self.store)

    @cached_property
    def imports(self) -> "Imports":
        from runtimes.containerd.stemcell_import import Imports

        rootfs = self._layout.rootfs
        return Imports(self.store, self._runtime, self._config, rootfs, self._log)
