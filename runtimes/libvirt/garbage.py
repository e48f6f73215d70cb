"""Finds resources that killed calls orphaned.

Only on this machine: a pool elsewhere may have other users, whose locks are not visible here.
"""

from collections.abc import Iterator
from functools import partial

from cpi import cid
from cpi.host import locks, vm_creation
from cpi.host.folders import entries, size_of
from cpi.model import Garbage
from runtimes.libvirt.disk_backend_files import BACKUP
from runtimes.libvirt.stemcells import DISK as STEMCELL, FACTS
from runtimes.libvirt.vms import PARTS, VMs
from runtimes.libvirt.volumes import capacity_of
from runtimes.stemcell_imports import import_lock, killed_imports

_PART = ".part"  # of a volume that is a file, before it is whole


class Sweep:
    """Finds the garbage of one runtime."""

    def __init__(self, vms: VMs) -> None:
        self._vms = vms
        self._domains = vms.domains
        self._pool = vms.pool
        self._layout = vms.domains.layout
        self._runtime = vms.profile.name

    def orphans(self) -> list[Garbage]:
        """Return VMs whose creation has not finished, and unused copies of disks."""
        orphans: dict[str, Garbage] = {}
        for name in sorted(self._pool.names()):
            stem, dot, part = name.removesuffix(_PART).partition(".")
            if dot + part == BACKUP:
                why = "the snapshot that it was made for is finished, or was killed"
                remove = partial(self._pool.delete, name)
                orphans[name] = Garbage("copy", name, why, stem, remove)
            elif dot + part in PARTS and self._is_vm(stem) and self._domains.is_unfinished(stem):
                orphans[stem] = self._vm(stem, "a call that made or deleted it was killed")
        return [orphan for orphan in orphans.values() if not self._is_held(orphan.lock)]

    def all(self) -> list[Garbage]:
        """Return everything that is orphaned."""
        garbage = {orphan.name: orphan for orphan in self.orphans()}
        imports = killed_imports(self._layout, self._runtime)
        for item in (*self._folders(), *self._stemcells(), *imports):
            if item.name not in garbage and not self._is_held(item.lock):
                garbage[item.name] = item
        return list(garbage.values())

    def _is_held(self, lock: str) -> bool:
        return locks.is_held(str(self._layout.run_dir), lock)

    def _folders(self) -> Iterator[Garbage]:
        for path in entries(self._layout.vms):
            if not self._is_vm(path.name):
                continue
            if vm_creation.is_marked(path):
                yield self._vm(path.name, "a call that made or deleted it was killed")
            elif self._domains.is_unfinished(path.name):
                yield self._vm(path.name, "libvirt has no domain for it", certain=False)

    def _vm(self, name: str, why: str, *, certain: bool = True) -> Garbage:
        folder = self._layout.vm(name)

        def remove() -> None:
            # Under the lock: the call that made it may just have ended.
            if vm_creation.is_marked(folder) or self._domains.is_unfinished(name):
                self._vms.clear(name)

        size = size_of(folder)
        for part in PARTS:
            volume = self._pool.find(name + part)
            size += capacity_of(volume, taken=True) if volume is not None else 0
        return Garbage("VM", name, why, name, remove, certain, size)

    def _stemcells(self) -> Iterator[Garbage]:
        names = set(self._pool.names())
        for name in sorted(names):
            stem = name.removesuffix(_PART).removesuffix(STEMCELL)
            if not name.removesuffix(_PART).endswith(STEMCELL):
                continue
            if name.endswith(_PART) or stem + FACTS not in names:
                why = "the import of a stemcell was killed"
                lock = import_lock(self._runtime, stem)
                yield Garbage("volume", name, why, lock, partial(self._remove_stemcell, name, stem))

    def _remove_stemcell(self, name: str, stem: str) -> None:
        # Else it has been imported meanwhile.
        if name.endswith(_PART) or self._pool.find(stem + FACTS) is None:
            self._pool.delete(name)

    def _is_vm(self, name: str) -> bool:
        return cid.named_runtime(name, cid.VM) == self._runtime
