"""What calls that were killed left behind, recognised by having no owner.

On this machine alone: another's CPI may use a pool that is elsewhere, and its locks are not seen.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cpi import cid
from cpi.host import unfinished
from cpi.host.folders import entries, size_of
from cpi.model import Garbage
from runtimes.libvirt.disk_backend_files import BACKUP
from runtimes.libvirt.stemcells import DISK as STEMCELL, FACTS
from runtimes.libvirt.vms import PARTS, VMs
from runtimes.libvirt.volumes import capacity_of
from runtimes.stemcell_imports import import_lock, killed_imports

_PART = ".part"  # of a volume that is a file, before it is whole


class Sweep:
    """Looks for garbage of one runtime."""

    def __init__(
        self,
        vms: VMs,
        state_dir: Path,
        is_held: Callable[[str], bool],
        delete: Callable[[str], None],
    ) -> None:
        """is_held: tells whether a call is at work on a CID; delete: deletes all of a VM."""
        self._vms = vms
        self._state_dir = state_dir
        self._is_held = is_held
        self._delete = delete
        self._runtime = vms.profile.name

    def orphans(self) -> list[Garbage]:
        """VMs without an end of their creation, and copies of disks that are finished with."""
        found: dict[str, Garbage] = {}
        names = sorted(self._vms.pool.names())
        for name in names:
            stem, dot, part = name.removesuffix(_PART).partition(".")
            if dot + part == BACKUP:
                why = "the snapshot that it was made for is finished, or was killed"
                found[name] = Garbage("copy", name, why, stem, partial(self._vms.pool.delete, name))
            elif dot + part in PARTS and self._is_vm(stem) and self._vms.is_unfinished(stem):
                found[stem] = self._vm(stem, "a call that made or deleted it was killed")
        return [one for one in found.values() if not self._is_held(one.lock)]

    def all(self) -> list[Garbage]:
        """Everything that nobody owns."""
        found = {one.name: one for one in self.orphans()}
        imports = killed_imports(self._state_dir, self._runtime)
        for one in (*self._folders(), *self._stemcells(), *imports):
            if one.name not in found and not self._is_held(one.lock):
                found[one.name] = one
        return list(found.values())

    def _folders(self) -> Iterator[Garbage]:
        for path in entries(self._state_dir / "vms"):
            if not self._is_vm(path.name):
                continue
            if unfinished.is_marked(path):
                yield self._vm(path.name, "a call that made or deleted it was killed")
            elif self._vms.is_unfinished(path.name):
                yield self._vm(path.name, "libvirt has no domain for it", certain=False)

    def _vm(self, name: str, why: str, *, certain: bool = True) -> Garbage:
        folder = self._state_dir / "vms" / name

        def remove() -> None:
            # Under the lock: the call that made it may just have ended.
            if unfinished.is_marked(folder) or self._vms.is_unfinished(name):
                self._delete(name)

        size = size_of(folder)
        for part in PARTS:
            volume = self._vms.pool.find(name + part)
            size += capacity_of(volume, taken=True) if volume is not None else 0
        return Garbage("VM", name, why, name, remove, certain, size)

    def _stemcells(self) -> Iterator[Garbage]:
        names = set(self._vms.pool.names())
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
        if name.endswith(_PART) or self._vms.pool.find(stem + FACTS) is None:
            self._vms.pool.delete(name)

    def _is_vm(self, name: str) -> bool:
        return cid.named_runtime(name, cid.VM) == self._runtime
