"""Which VM has which address on libvirt's networks, kept where every CPI that uses them looks."""

from abc import ABC, abstractmethod
from pathlib import Path

from cpi.cni.reservations import Reservations
from runtimes.libvirt.volumes import StoragePool
from runtimes.libvirt.xml.storage_xml import Volume

_OURS = "libvirt-"  # begins the names of folders of addresses, beside CNI's
_CLAIM = ".address"
_SIZE = 512  # bytes of a volume that has nothing in it


class Addresses(ABC):
    """Addresses in use, by network."""

    @abstractmethod
    def reserve(self, network: str, address: str, vm_cid: str) -> str:
        """Reserve an address for a VM, unless another has it; return whose it is now."""

    @abstractmethod
    def release(self, vm_cid: str) -> None:
        """Give all of a VM's addresses back."""


class FileAddresses(Addresses):
    """In files of this machine, whose libvirt nobody else uses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reserve(self, network: str, address: str, vm_cid: str) -> str:
        return Reservations(self._folder / f"{_OURS}{network}").reserve(address, vm_cid)

    def release(self, vm_cid: str) -> None:
        for folder in self._folder.glob(f"{_OURS}*"):
            Reservations(folder).release(vm_cid)


def reserved(folder: Path, vm_cid: str) -> list[str]:
    """The addresses that a VM has on libvirt's networks of this machine."""
    return [
        path.name
        for network in sorted(folder.glob(f"{_OURS}*"))
        for path in sorted(network.iterdir())
        if Reservations(network).owner(path.name) == vm_cid
    ]


class PoolAddresses(Addresses):
    """In names of volumes, `<network>_<address>_<vm cid>.address`, where libvirt is elsewhere.

    Another machine's CPI may use it too: one that runs in a VM there, made by the one here.
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
        # Of two that claim it at once at least the later one sees the other here, and yields.
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
    """The VMs that claim the address of a prefix."""
    return [
        name[len(prefix) : -len(_CLAIM)]
        for name in names
        if name.startswith(prefix) and name.endswith(_CLAIM)
    ]
