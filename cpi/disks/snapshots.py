"""Snapshots of persistent disks: whole copies, which share their blocks where the host can.

`<folder>/snapshots/<snapshot CID>/` has the raw disk and its facts. A snapshot is independent of
its disk and outlives it: BOSH deletes a disk's snapshots before the disk, except those to keep
(bosh-director, SnapshotManager.delete_snapshots).
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cpi.disks import raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore
from cpi.errors import CloudError
from cpi.host.facts_file import read_facts, write_facts
from cpi.progress import Progress

_FOLDER = "snapshots"
_RAW, _FACTS = "disk.raw", "facts.json"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot's facts. size, table: MiB, as the disk's; created_at: UTC, ISO 8601."""

    cid: str
    disk_cid: str
    size: int
    filesystem: str
    created_at: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    table: int = 0

    @property
    def whole(self) -> int:
        """The size of the raw disk in MiB."""
        return self.size + self.table


def describe(disk: Disk, snapshot_cid: str, metadata: Mapping[str, str]) -> Snapshot:
    """Return the facts of a snapshot that is taken now."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Snapshot(
        *(snapshot_cid, disk.cid, disk.size, disk.filesystem, now, dict(metadata), disk.table)
    )


class Snapshots:
    """The snapshots beside the disks. The caller holds the lock of the disk, or snapshot."""

    def __init__(self, disks: DiskStore) -> None:
        self._disks = disks

    def take(
        self,
        disk: Disk,
        snapshot_cid: str,
        metadata: Mapping[str, str],
        still: AbstractContextManager[None] | None = None,
        copy: Callable[[Path, Path], None] = images.copy,
    ) -> Snapshot:
        """Take a snapshot of a disk, while `still` keeps writers away. Raises NoDiskSpace.

        copy: copies the first file to the second, as of one moment.
        """
        self._disks.check(disk)
        folder = self._disks.folders[disk.store] / _FOLDER
        folder.mkdir(exist_ok=True, mode=0o700)
        fresh = self._disks.partial_snapshot(disk)
        shutil.rmtree(fresh, ignore_errors=True)
        snapshot = describe(disk, snapshot_cid, metadata)
        try:
            fresh.mkdir(mode=0o700)
            with still or nullcontext():
                copy(self._disks.image(disk), fresh / _RAW)
            write_facts(fresh / _FACTS, asdict(snapshot))
            images.flush(fresh / _RAW)
            images.replace(fresh, folder / snapshot_cid)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return snapshot

    def all(self) -> Iterator[Snapshot]:
        """Yield every snapshot, the oldest first."""
        snapshots = [self.get(path.name) for path in self._folders() if (path / _FACTS).exists()]
        yield from sorted(snapshots, key=lambda snapshot: (snapshot.created_at, snapshot.cid))

    def halves(self) -> Iterator[Path]:
        """Yield the folders of snapshots that lack their facts or their data."""
        for path in self._folders():
            if not ((path / _FACTS).exists() and (path / _RAW).exists()):
                yield path

    def get(self, snapshot_cid: str) -> Snapshot:
        """Return a snapshot's facts. Raises CloudError when they are missing or corrupt."""
        facts = self._folder(snapshot_cid) / _FACTS
        document = read_facts(facts)
        if document is None:
            raise CloudError(f"there is no snapshot {snapshot_cid}")
        try:
            return Snapshot(**document)
        except TypeError as error:
            raise CloudError(f"the facts in {facts} are damaged: {error}") from None

    def image(self, snapshot: Snapshot) -> Path:
        """Return the raw disk's path."""
        return self._folder(snapshot.cid) / _RAW

    def delete(self, snapshot_cid: str) -> None:
        """Delete a snapshot, if it exists."""
        folder = self._folder(snapshot_cid)
        if folder.is_dir():
            images.require_unused(folder / _RAW, snapshot_cid)
            (folder / _RAW).unlink(missing_ok=True)
            shutil.rmtree(folder)

    def restore(self, snapshot: Snapshot, disk: Disk, progress: Progress = images.quiet) -> None:
        """Give a free disk the content of a snapshot; its size stays. Raises NoDiskSpace.

        The disk is replaced at the end, atomically. Raises CloudError when it is smaller than the
        snapshot, or of another file system.
        """
        if disk.whole < snapshot.whole or disk.filesystem != snapshot.filesystem:
            raise CloudError(
                f"the snapshot {snapshot.cid} ({snapshot.size} MiB, {snapshot.filesystem}) does "
                f"not fit the disk {disk.cid} ({disk.size} MiB, {disk.filesystem})"
            )
        self._fill(self._disks.image(disk), snapshot, disk, progress)

    def restore_to_new(
        self, snapshot: Snapshot, disk: Disk, progress: Progress = images.quiet
    ) -> None:
        """Create a disk with the content of a snapshot. Raises NoDiskSpace, CloudError."""
        image = self._disks.image(disk)
        try:
            self._fill(image, snapshot, disk, progress)
            self._disks.save(disk)
        except BaseException:
            image.unlink(missing_ok=True)
            raise

    def _fill(self, image: Path, snapshot: Snapshot, disk: Disk, progress: Progress) -> None:
        source, fresh = self.image(snapshot), images.partial(image)
        images.check(source, snapshot.disk_cid, snapshot.whole, snapshot.filesystem)
        try:
            images.copy(source, fresh, progress)
            if disk.whole > snapshot.whole:
                images.set_size(fresh, disk.whole)
            if disk.preallocate:
                images.allocate(fresh)
            images.write_table(fresh, disk.cid)
            if disk.cid != snapshot.disk_cid:
                images.renew_identity(fresh, disk.filesystem)
            if disk.whole > snapshot.whole:
                images.grow_unmounted(fresh, disk.filesystem)
            images.replace(fresh, image)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def _folders(self) -> Iterator[Path]:
        for folder in self._disks.folders.values():
            yield from (folder / _FOLDER).glob("*-snapshot-*")

    def _folder(self, snapshot_cid: str) -> Path:
        for folder in self._disks.folders.values():
            if (folder / _FOLDER / snapshot_cid).is_dir():
                return folder / _FOLDER / snapshot_cid
        return next(iter(self._disks.folders.values())) / _FOLDER / snapshot_cid
