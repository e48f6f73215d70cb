"""What nobody owns on this host, whatever the runtime: files, namespaces, reservations, devices."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cpi import cid
from cpi.config.config import Config
from cpi.disks import loop
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.disks.snapshots import Snapshots
from cpi.errors import CPIError
from cpi.host import linux, locks
from cpi.host.folders import entries, size_of
from cpi.host.layout import Layout
from cpi.model import Garbage
from runtimes import catalog

_DISK_FILE = re.compile(r"(?P<cid>[a-z0-9-]+)\.(?P<part>raw|json|(raw|json|snapshot)\.part)")
_LOCK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_NO_VM = "there is no VM of this name"
_UPLOAD_SECONDS = 600  # between making a folder and locking the file in it, with room to spare


def find(config: Config) -> list[Garbage]:
    """Return what nobody owns and no running call is at work on. Raises CPIError."""
    layout = Layout.of(config)
    vms, run_dir = layout.vms, str(layout.run_dir)
    found = [
        *_disk_files(DiskStore(folders_of(config))),
        *_snapshots(DiskStore(folders_of(config))),
        *_namespaces(layout.namespaces, vms),
        *_reservations(layout),
        *_loops(vms),
        *_uploads(layout.uploads),
        *_scratch(layout.scratch),
    ]
    found = [one for one in found if not locks.is_held(run_dir, one.lock)]
    return [*found, *_locks(layout)]


def _disk_files(store: DiskStore) -> Iterator[Garbage]:
    for name, folder in store.folders.items():
        for path in entries(folder):
            match = _DISK_FILE.fullmatch(path.name)
            if match and catalog.is_ours(match["cid"], cid.DISK):
                yield from _disk_file(store, name, path, match["cid"], match["part"])


def _disk_file(
    store: DiskStore, name: str, path: Path, disk_cid: str, part: str
) -> Iterator[Garbage]:
    if part.endswith(".part"):
        why, remove = "a call that changed the disk was killed", partial(_delete, path)
        yield Garbage("disk file", str(path), why, disk_cid, remove, size=size_of(path))
        return
    try:
        disk = store.find(disk_cid)
    except CPIError:
        return  # its facts are damaged, and it may well be somebody's
    if disk is None:

        def remove_still() -> None:
            if store.find(disk_cid) is None:
                _delete(path)

        why = "it has no facts, as the call that created it was killed"
        yield Garbage("disk file", str(path), why, disk_cid, remove_still, False, size_of(path))
    elif disk.store != name:
        why = f"a call that moved the disk to the store {disk.store} was killed"
        remove = partial(_delete, path)
        yield Garbage("disk file", str(path), why, disk_cid, remove, size=size_of(path))


def _snapshots(store: DiskStore) -> Iterator[Garbage]:
    snapshots = Snapshots(store)
    for path in snapshots.halves():
        if catalog.is_ours(path.name, cid.SNAPSHOT):
            has_data = any(path.glob("*.raw"))
            why = "it has no facts" if has_data else "a call that deleted it was killed"
            remove, size = partial(snapshots.delete, path.name), size_of(path)
            yield Garbage("snapshot", path.name, why, path.name, remove, not has_data, size)


def _namespaces(folder: Path, vms: Path) -> Iterator[Garbage]:
    for path in entries(folder):
        if _is_gone(path.name, vms):
            remove = _while_gone(path.name, vms, partial(linux.unpin_network_namespace, path))
            yield Garbage("network namespace", str(path), _NO_VM, path.name, remove)


def _reservations(layout: Layout) -> Iterator[Garbage]:
    """Addresses and ports in the names of files that say which VM has them."""
    vms, addresses, ports = layout.vms, layout.addresses.glob("*/*"), layout.ports.glob("*")
    for kind, paths in (("address", addresses), ("port", ports)):
        for path in sorted(paths):
            if _is_gone(owner := _owner(path), vms):

                def unlink(path: Path = path, owner: str = owner) -> None:
                    if _owner(path) == owner:
                        path.unlink(missing_ok=True)

                remove = _while_gone(owner, vms, unlink)
                yield Garbage(kind, str(path), f"its VM {owner} is gone", owner, remove)


def _owner(path: Path) -> str:
    """The first word of a small file, which host-local's have on a line of its own."""
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
    """What a service that was killed had received; one that lives has its file locked."""
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
    """Seconds since a file, or a folder or what is in it, was changed."""
    try:
        return time.time() - max(one.stat().st_mtime for one in (path, *_files(path)))
    except OSError:
        return 0  # it goes just now


def _is_idle(path: Path) -> bool:
    """Tell whether nobody has locked a file, or one in a folder."""
    try:
        return not any(locks.is_locked(file) for file in (path, *_files(path)))
    except OSError:  # what cannot be opened is left alone
        return False


def _files(path: Path) -> list[Path]:
    return entries(path) if not path.is_symlink() else []


def _locks(layout: Layout) -> Iterator[Garbage]:
    """The files of locks that killed calls held; whoever takes one removes it."""
    for path in entries(layout.locks):
        if _LOCK_NAME.fullmatch(path.name) and not locks.is_held(str(layout.run_dir), path.name):
            why = "the call that held it was killed"
            yield Garbage("lock", path.name, why, path.name, lambda: None)


def _is_gone(vm_cid: str, vms: Path) -> bool:
    return catalog.is_ours(vm_cid, cid.VM) and not (vms / vm_cid).exists()


def _while_gone(vm_cid: str, vms: Path, remove: Callable[[], None]) -> Callable[[], None]:
    """What removes something of a VM if that is still gone; its lock is held then."""

    def remove_still() -> None:
        if _is_gone(vm_cid, vms):
            remove()

    return remove_still


def _delete(path: Path) -> None:
    """Delete a file or a folder; gone is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
