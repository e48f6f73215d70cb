"""All runtimes, as strings: nothing of a runtime is loaded before it is used.

A new one needs a folder, an entry here and a test class.
"""

from __future__ import annotations

import importlib

from cpi import cid
from cpi.errors import CPIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self

    from cpi.config.config import Config
    from cpi.config.key import Key
    from cpi.log import Log
    from cpi.runtime import Runtime


class Entry:
    """A runtime: its name in CIDs and in the configuration, and where its parts are.

    class_path: `module:Class`. keys_module: the module whose KEYS the configuration takes, "" for
    none; it holds data only, since `info` loads it. hint: what to do when the class does not load.
    containment_key: the configuration key that is set to "required" for VMs whose root must not be
    the host's, "" where it never is.
    """

    __slots__ = (
        "class_path", "containment_key", "hint", "keys_module", "name", "stemcell_formats",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        class_path: str,
        stemcell_formats: tuple[str, ...],
        keys_module: str,
        hint: str,
        containment_key: str = "",
    ) -> None:
        self.name = name
        self.class_path = class_path
        self.stemcell_formats = stemcell_formats
        self.keys_module = keys_module
        self.hint = hint
        self.containment_key = containment_key


DEFAULT = "containerd"

# Stemcells with a disk in them.
_DISKS = (
    "openstack-qcow2",
    "openstack-raw",
    "aws-raw",
    "alicloud-raw",
    "google-rawdisk",
    "vsphere-ova",
    "vsphere-ovf",
    "azure-vhd",
    "cloudstack-vhdx",
    "general-tar",
    "general-ovf",
)

# With a root file system, a disk, or the name of an image. `oci` is to be warden's new name.
_CONTAINERS = ("warden-tar", "oci-tar", *_DISKS, "docker-light", "warden-light", "oci-light")

_LIBVIRT = (
    "runtimes.libvirt.keys",
    "install the optional dependencies, pip install 'bosh-containerd-cpi[libvirt]', after "
    "apt-get install libvirt-dev pkg-config gcc python3-dev",
)

REGISTRY: dict[str, Entry] = {
    "containerd": Entry(
        "containerd",
        "runtimes.containerd.runtime:ContainerdRuntime",
        _CONTAINERS,
        "runtimes.containerd.keys",
        "install this CPI's own dependencies, grpcio and protobuf, for the Python that runs it",
        "containerd.user_namespaces",
    ),
    "kvm": Entry("kvm", "runtimes.libvirt.runtime:KvmRuntime", _DISKS, *_LIBVIRT),
    "virtualbox": Entry(
        "virtualbox", "runtimes.libvirt.runtime:VirtualBoxRuntime", _DISKS, *_LIBVIRT
    ),
}


def entry(name: str) -> Entry:
    """Return the runtime of this name. Raises CPIError naming all runtimes."""
    if name not in REGISTRY:
        raise CPIError(f"there is no runtime {ascii(name)[:60]}; known: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def load(name: str) -> type[Runtime]:
    """Import a runtime's class. Raises CPIError with the install hint when that fails."""
    runtime = entry(name)
    module, _, class_name = runtime.class_path.partition(":")
    try:
        loaded: type[Runtime] = getattr(importlib.import_module(module), class_name)
    except ImportError as error:
        raise CPIError(f"the {name} runtime does not load ({error}); {runtime.hint}") from error
    return loaded


def configured(config: Config) -> tuple[str, ...]:
    """Return the names of the configured runtimes, the default one first."""
    return tuple(dict.fromkeys((config.text("runtime"), *config.strings("runtimes"))))


def is_ours(any_cid: str, resource: str) -> bool:
    """Tell whether a CID is of this resource and of a runtime that this CPI has."""
    return cid.named_runtime(any_cid, resource) in REGISTRY


class Runtimes:
    """Runtimes of one configuration: loaded on first use, closed at the end of `with`."""

    def __init__(self, config: Config, log: Log) -> None:
        self.config = config  # of those that are still to be loaded
        self.log = log
        self._loaded: dict[str, Runtime] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the runtimes' connections; a failure is only logged."""
        for name, runtime in self._loaded.items():
            try:
                runtime.close()
            except Exception as error:
                self.log.warn(f"closing the runtime {name}: {type(error).__name__}")

    def get(self, name: str) -> Runtime:
        """Return a runtime by its name. Raises CPIError."""
        if name not in self._loaded:
            self._loaded[name] = load(name)(self.config, self.log)
        return self._loaded[name]

    def default(self) -> Runtime:
        """Return the configured runtime. Raises CPIError."""
        return self.get(self.config.text("runtime"))

    def of_cid(self, any_cid: str, resource: str) -> Runtime:
        """Return the runtime that a CID names. Raises the resource's NotFound error, CPIError."""
        name = cid.runtime_of(any_cid, resource)
        if name not in REGISTRY:
            error = cid.NOT_FOUND.get(resource, CPIError)
            raise error(f"{any_cid} is of a runtime that this CPI does not have: {name}")
        return self.get(name)


def keys() -> list[Key]:
    """Return the configuration keys of all runtimes."""
    # Runtimes of one folder have one module.
    modules = dict.fromkeys(entry.keys_module for entry in REGISTRY.values() if entry.keys_module)
    return [key for module in modules for key in importlib.import_module(module).KEYS]
