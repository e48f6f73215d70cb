"""Volumes of one storage pool, streamed, so that libvirt may be on another machine."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from cpi.disks.raw_image import quiet
from cpi.errors import CloudError
from cpi.log import Log
from cpi.progress import Progress
from runtimes.libvirt import client, streams
from runtimes.libvirt.client import AlreadyThere, Connection, found, told, told_existing
from runtimes.libvirt.xml import storage_xml
from runtimes.libvirt.xml.storage_xml import Volume

SMALL = 16 << 20  # bytes: as much as is ever read into memory

_BUSY_SECONDS, _BUSY_PAUSE = 60.0, 0.05


class Pool:
    """One storage pool, made as a folder when it is missing."""

    def __init__(
        self, connection: Connection, name: str, path: str, lock: Callable[[str], Any], log: Log
    ) -> None:
        """path: of the folder on libvirt's machine; lock: holds a lock by its name."""
        self.name = name
        self._connection = connection
        self._path = path
        self._lock = lock
        self._log = log
        self._pool: Any = None

    @property
    def raw(self) -> Any:
        """libvirt's pool, active. Raises CloudError."""
        # After a restart of the daemon the old one is of a connection that is no more.
        if self._pool is None or self._pool.connect() is not self._connection.raw:
            pool = self._connection.pool(self.name)
            self._pool = pool if pool is not None and pool.isActive() else self._started()
        return self._pool

    def _started(self) -> Any:
        with self._lock(f"pool-{self.name}"), told(f"starting the storage pool {self.name}"):
            pool = self._connection.pool(self.name)
            if pool is None:
                self._log.info(f"making the storage pool {self.name} in {self._path}")
                document = storage_xml.pool(self.name, self._path)
                pool = self._connection.raw.storagePoolDefineXML(document)
                pool.build()
                pool.setAutostart(1)
            if not pool.isActive():
                pool.create()
        return pool

    def names(self) -> list[str]:
        """The names of all volumes."""
        with told(f"listing the storage pool {self.name}"):
            names: list[str] = self.raw.listVolumes()
        return names

    def find(self, name: str) -> Any:
        """The volume of this name, or None."""
        return found(self.raw.storageVolLookupByName, name)

    def create(self, volume: Volume) -> Any:
        """Make a volume. Raises CloudError for a name that is taken, NoDiskSpace."""
        where = f"making the volume {volume.name} in the storage pool {self.name}"
        document = storage_xml.volume(volume)
        try:
            with told_existing(where):
                return self.raw.createXML(document)
        except AlreadyThere:
            # A file may have been put there, or have gone, without libvirt's knowledge.
            self.refresh()
            if self.find(volume.name) is not None:
                raise
            with told(where):
                return self.raw.createXML(document)

    def copy(self, source: Any, volume: Volume) -> None:
        """Make a volume with the content of another, without sending it. Raises NoDiskSpace."""
        doing = f"copying the volume {source.name()} to {volume.name}"
        document = storage_xml.volume(volume)
        with told(doing):
            self.raw.createXMLFrom(document, source, 0)

    def refresh(self) -> None:
        """Have libvirt look again at what there is, when nobody uploads or makes anything."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                with told(f"looking into the storage pool {self.name}"):
                    self.raw.refresh()
                return
            except CloudError as error:
                # Nothing tells when the work of others in the pool has come to its end.
                if "asynchronous jobs" not in error.message or time.monotonic() > end:
                    raise
            time.sleep(_BUSY_PAUSE)

    def upload(self, volume: Any, path: Path, progress: Progress = quiet) -> None:
        """Write a file into a volume, its holes left out."""
        size = path.stat().st_size
        with (
            path.open("rb") as file,
            self._stream(f"uploading {path} to {volume.name()}") as stream,
        ):
            volume.upload(stream, 0, size, client.SPARSE_UPLOAD)
            streams.send_file(stream, file, size, progress)

    def write(self, volume: Any, data: bytes) -> None:
        """Write bytes into a volume, from its beginning."""
        with self._stream(f"writing {volume.name()}") as stream:
            volume.upload(stream, 0, len(data), 0)
            streams.send_bytes(stream, data)

    def read(self, volume: Any, offset: int = 0, length: int = 0, limit: int = SMALL) -> bytes:
        """Read a volume from an offset (bytes) on, `length` bytes, or all of them for 0.

        Raises CloudError for more than `limit`.
        """
        with self._stream(f"reading {volume.name()}") as stream:
            volume.download(stream, offset, length, 0)
            try:
                return streams.receive_bytes(stream, limit)
            except ValueError as error:
                raise CloudError(f"the volume {volume.name()} has {error}") from None

    @contextmanager
    def _stream(self, doing: str) -> Iterator[Any]:
        with told(doing):
            stream = self._connection.raw.newStream()
            try:
                yield stream
            except BaseException:
                client.abort(stream)
                raise

    def delete(self, name: str) -> None:
        """Delete a volume; one that is gone is no error."""
        volume = self.find(name)
        if volume is None:
            return
        try:
            with told(f"deleting the volume {name}"):
                volume.delete()
        except CloudError:
            self.refresh()  # its file may have gone without libvirt
            if self.find(name) is not None:
                raise

    def backing(self, volume: Any) -> str:
        """The path of what a volume is a clone of, or ""."""
        with told(f"looking at the volume {volume.name()}"):
            root = Xml.fromstring(volume.XMLDesc())  # noqa: S314 (libvirt's own)
        return root.findtext("backingStore/path") or ""


def path_of(volume: Any) -> str:
    """A volume's path on libvirt's machine."""
    with told("looking at a volume"):
        return str(volume.path())


def capacity_of(volume: Any, *, taken: bool = False) -> int:
    """A volume's size for whoever uses it, or the room that it has taken, in bytes."""
    with told("looking at a volume"):
        return int(volume.info()[2 if taken else 1])
