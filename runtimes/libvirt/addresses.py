"""Address reservations on libvirt's networks, shared by all CPIs that use them."""

from abc import ABC, abstractmethod
from pathlib import Path

from cpi.host.reservations import Reservations
from runtimes.libvirt.volumes import StoragePool
from runtimes.libvirt.xml.storage_xml import Volume

_OURS = "libvirt-"  # begins the names of folders of addresses, beside CNI's
_CLAIM = ".address"
_SIZE = 512  # bytes of a volume that has nothing in it


class Addresses(ABC):
    """Addresses in use, by network."""

    @abstractmethod
    def reserve(self, network: str, address: str, vm_cid: str) -> str:
        """Reserve an address for a VM, unless another has it; return its owner."""

    @abstractmethod
    def release(self, vm_cid: str) -> None:
        """Release all of a VM's addresses."""


class FileAddresses(Addresses):
    """In files of this machine, for its own libvirt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reserve(self, network: str, address: str, vm_cid: str) -> str:
        return Reservations(self._folder / f"{_OURS}{network}").reserve(address, vm_cid)

    def release(self, vm_cid: str) -> None:
        for folder in self._folder.glob(f"{_OURS}*"):
            Reservations(folder).release(vm_cid)


def reserved(folder: Path, vm_cid: str) -> list[str]:
    """Return the addresses that a VM has on libvirt's networks of this machine."""
    return [
        path.name
        for network in sorted(folder.glob(f"{_OURS}*"))
        for path in sorted(network.iterdir())
        if Reservations(network).owner(path.name) == vm_cid
    ]


class PoolAddresses(Addresses):
    """In names of volumes, `<network>_<address>_<vm cid>.address`, where libvirt is elsewhere.

    Another machine's CPI may use them too, such as one in a VM there.
    """

    def __init__(self, pool: StoragePool) -> None:
        self._pool = pool
        self._seen: list[str] | None = None

    def reserve(self, network: str, address: str, vm_cid: str) -> str:
        if self._seen is None:
            self._seen = self._pool.names()
        prefix = f"{network}_{address}_"
        owners = _owners(self._seen, prefix)
        if owners:
            return owners[0]
        mine = prefix + vm_cid + _CLAIM
        self._pool.create(Volume(mine, _SIZE))
        # Of two concurrent claims at least the later one sees the other here, and yields.
        self._seen = self._pool.names()
        others = [owner for owner in _owners(self._seen, prefix) if owner != vm_cid]
        if others:
            self._pool.delete(mine)
            return others[0]
        return vm_cid

    def release(self, vm_cid: str) -> None:
        for name in self._pool.names():
            if name.endswith(f"_{vm_cid}{_CLAIM}"):
                self._pool.delete(name)


def _owners(names: list[str], prefix: str) -> list[str]:
    """Return the VMs that claim the address of a prefix."""
    return [
        name[len(prefix) : -len(_CLAIM)]
        for name in names
        if name.startswith(prefix) and name.endswith(_CLAIM)
    ]
