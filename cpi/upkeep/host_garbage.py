"""Orphaned files, namespaces, reservations and devices on this host, of all runtimes."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cpi import cid
from cpi.cni.firewall import Firewall
from cpi.config.config import Config
from cpi.disks import loop
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.disks.snapshots import Snapshots
from cpi.errors import CPIError
from cpi.host import id_maps, locks, syscalls
from cpi.host.folders import entries, size_of
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.model import Garbage
from runtimes import catalog

_DISK_FILE = re.compile(r"(?P<cid>[a-z0-9-]+)\.(?P<part>raw|json|(raw|json|snapshot)\.part)")
_LOCK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_NO_VM = "there is no VM of this name"
_UPLOAD_SECONDS = 600  # more than between making a folder and locking the file in it


def find(config: Config, log: Log) -> list[Garbage]:
    """Return orphaned resources that no running call has locked. Raises CPIError."""
    layout = Layout.of(config)
    vms, run_dir = layout.vms, str(layout.run_dir)
    store = DiskStore(folders_of(config))
    garbage = [
        *_disk_files(store),
        *_snapshots(store),
        *_namespaces(layout),
        # First: what is reserved can only be reserved again when it has no rules.
        *_firewall_rules(Firewall.of(config, log), vms),
        *_reservations(layout),
        *_loops(vms),
        *_uploads(layout.uploads),
        *_scratch(layout.scratch),
    ]
    return [*(item for item in garbage if not locks.is_held(run_dir, item.lock)), *_locks(layout)]


def _disk_files(store: DiskStore) -> Iterator[Garbage]:
    for name, folder in store.folders.items():
        for path in entries(folder):
            match = _DISK_FILE.fullmatch(path.name)
            if match and catalog.is_ours(match["cid"], cid.DISK):
                yield from _disk_file(store, name, path, match["cid"], match["part"])


def _disk_file(
    store: DiskStore, name: str, path: Path, disk_cid: str, part: str
) -> Iterator[Garbage]:
    def remove() -> None:
        if certain or store.find(disk_cid) is None:
            _delete(path)

    certain = True
    if part.endswith(".part"):
        why = "a call that changed the disk was killed"
    else:
        try:
            disk = store.find(disk_cid)
        except CPIError:
            return  # its facts are damaged, so it may have an owner
        if disk and disk.store == name:
            return
        certain, why = False, "it has no facts, as the call that created it was killed"
        if disk:
            certain, why = True, f"a call that moved the disk to the store {disk.store} was killed"
    yield Garbage("disk file", str(path), why, disk_cid, remove, certain, size_of(path))


def _snapshots(store: DiskStore) -> Iterator[Garbage]:
    snapshots = Snapshots(store)
    for path in snapshots.halves():
        if catalog.is_ours(path.name, cid.SNAPSHOT):
            has_data = any(path.glob("*.raw"))
            why = "it has no facts" if has_data else "a call that deleted it was killed"
            remove, size = partial(snapshots.delete, path.name), size_of(path)
            yield Garbage("snapshot", path.name, why, path.name, remove, not has_data, size)


def _namespaces(layout: Layout) -> Iterator[Garbage]:
    """Yield namespaces of VMs that are gone, and mounts of their layers."""
    mounted: dict[str, tuple[Path, Callable[[Path], None]]] = {
        "network namespace": (layout.namespaces, syscalls.unpin_namespace),
        "layers": (layout.layers, id_maps.umount),
        "user namespace": (layout.user_namespaces, syscalls.unpin_namespace),
    }
    for title, (folder, unmount) in mounted.items():
        for path in entries(folder):
            if _is_gone(path.name, layout.vms):
                remove = _while_gone(path.name, layout.vms, partial(unmount, path))
                yield Garbage(title, str(path), _NO_VM, path.name, remove)


def _reservations(layout: Layout) -> Iterator[Garbage]:
    """Yield what is reserved for VMs that are gone: names of files that contain the VM's CID."""
    vms = layout.vms
    reserved = {
        "address": layout.addresses.glob("*/*"),
        "port": layout.ports.glob("*"),
        "range of user ids": layout.ids.glob("*"),
    }
    for title, paths in reserved.items():
        for path in sorted(paths):
            if _is_gone(owner := _owner(path), vms):

                def unlink(path: Path = path, owner: str = owner) -> None:
                    if _owner(path) == owner:
                        path.unlink(missing_ok=True)

                remove = _while_gone(owner, vms, unlink)
                yield Garbage(title, str(path), f"its VM {owner} is gone", owner, remove)


def _firewall_rules(firewall: Firewall, vms: Path) -> Iterator[Garbage]:
    """Yield the published ports and masquerading of VMs that are gone."""
    for owner, elements in sorted(firewall.owners().items()):
        if _is_gone(owner, vms):

            def remove(owner: str = owner) -> None:
                firewall.remove_elements(sorted(firewall.owners().get(owner, ())))

            why = f"{len(elements)} elements of {firewall.table} are of a VM that is gone"
            remove_still = _while_gone(owner, vms, remove)
            yield Garbage("firewall rules", owner, why, owner, remove_still)


def _owner(path: Path) -> str:
    """Return the first word of a small file; host-local writes it on the first line."""
    try:
        with path.open("rb") as file:
            words = file.read(256).decode("ascii", errors="replace").split()
    except OSError:
        return ""
    return words[0] if words else ""


def _loops(vms: Path) -> Iterator[Garbage]:
    for name, file in sorted(loop.backing_files().items()):
        if Path(file).is_relative_to(vms) and file != str(vms):
            owner = Path(file).relative_to(vms).parts[0]
            if _is_gone(owner, vms):
                why = f"its file {file} was of a VM that is gone"
                yield Garbage("loop device", name, why, owner, partial(loop.clear, name))


def _uploads(folder: Path) -> Iterator[Garbage]:
    """Yield uploads that a killed service received; a running service locks its file."""
    for path in entries(folder):
        if _LOCK_NAME.fullmatch(path.name) and _age(path) > _UPLOAD_SECONDS and _is_idle(path):
            why, lock = "the service that received it was killed", f"upload-{path.name}"
            remove = partial(_delete, path)
            yield Garbage("upload", str(path), why, lock, remove, size=size_of(path))


def _scratch(folder: Path) -> Iterator[Garbage]:
    for path in entries(folder):
        if catalog.is_ours(path.name, cid.DISK) or catalog.is_ours(path.name, cid.SNAPSHOT):
            why, remove = "the call that made it was killed", partial(_delete, path)
            yield Garbage("upload", str(path), why, path.name, remove, size=size_of(path))


def _age(path: Path) -> float:
    """Return the seconds since a file, or a folder or a file in it, was changed."""
    try:
        return time.time() - max(file.stat().st_mtime for file in (path, *_files(path)))
    except OSError:
        return 0  # it is being deleted


def _is_idle(path: Path) -> bool:
    """Tell whether neither a file nor, for a folder, a file in it is locked."""
    try:
        return not any(locks.is_locked(file) for file in (path, *_files(path)))
    except OSError:  # keep what cannot be opened
        return False


def _files(path: Path) -> list[Path]:
    return entries(path) if not path.is_symlink() else []


def _locks(layout: Layout) -> Iterator[Garbage]:
    """Yield lock files of killed calls; taking and releasing the lock removes the file."""
    for path in entries(layout.locks):
        if _LOCK_NAME.fullmatch(path.name) and not locks.is_held(str(layout.run_dir), path.name):
            why = "the call that held it was killed"
            yield Garbage("lock", path.name, why, path.name, lambda: None)


def _is_gone(vm_cid: str, vms: Path) -> bool:
    return catalog.is_ours(vm_cid, cid.VM) and not (vms / vm_cid).exists()


def _while_gone(vm_cid: str, vms: Path, remove: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `remove` if the VM is still gone once its lock is held."""

    def remove_still() -> None:
        if _is_gone(vm_cid, vms):
            remove()

    return remove_still


def _delete(path: Path) -> None:
    """Delete a file or a folder; ignore a file that is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
