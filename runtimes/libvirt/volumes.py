"""Volumes of one storage pool, streamed, so that libvirt may be on another machine."""

import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cpi.disks.raw_image import quiet
from cpi.errors import CloudError
from cpi.log import Log
from cpi.progress import Progress
from runtimes.libvirt import client
from runtimes.libvirt.client import AlreadyThere, Connection, lookup_or_none, translated_errors
from runtimes.libvirt.xml import storage_xml
from runtimes.libvirt.xml.elements import parsed
from runtimes.libvirt.xml.storage_xml import Volume

SMALL = 16 << 20  # bytes: the most that is read into memory

_BUSY_SECONDS, _BUSY_PAUSE = 60.0, 0.05


class StoragePool:
    """One storage pool, made as a folder when it is missing."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        path: str,
        lock: Callable[[str], Any],
        log: Log,
        *,
        key: str = "",
    ) -> None:
        """path: of the folder on libvirt's machine; lock: returns a lock by its name.

        key: of the configuration, which says that the pool must be there; "": it may be anywhere.
        """
        self.name = name
        self._connection = connection
        self.path = path
        self._key = key
        self._lock = lock
        self._log = log
        self._pool: Any = None

    @property
    def raw(self) -> Any:
        """libvirt's pool, active. Raises CloudError."""
        # After a restart of the daemon the old one belongs to a closed connection.
        if self._pool is None or self._pool.connect() is not self._connection.raw:
            pool = self._connection.pool(self.name)
            path = self.misplaced()
            if path:
                raise CloudError("; ".join(self.refusal(path)))
            self._pool = pool if pool is not None and pool.isActive() else self._started()
        return self._pool

    def require(self) -> None:
        """Raise CloudError if the pool cannot be used, before something else is changed."""
        self.raw  # noqa: B018 - which starts it

    def misplaced(self) -> str:
        """Return the folder of libvirt's pool if the configuration says another, else ""."""
        pool = self._connection.pool(self.name) if self._key else None
        if pool is None:
            return ""
        with translated_errors(f"looking at the storage pool {self.name}"):
            path = parsed(pool.XMLDesc(0)).findtext("target/path") or ""
        return "" if os.path.realpath(path) == os.path.realpath(self.path) else path

    def refusal(self, path: str) -> tuple[str, str]:
        """Return what is wrong with a pool in another folder, and what to do."""
        return (
            f"libvirt's storage pool {self.name} is in {path}, and the configuration says "
            f"{self.path}",
            f"to go on with the VMs and stemcells there, set {self._key} to {path}; without them, "
            f"`virsh pool-destroy {self.name}` and `virsh pool-undefine {self.name}` make libvirt "
            "forget it, and the next call makes a new one",
        )

    def _started(self) -> Any:
        with (
            self._lock(f"pool-{self.name}"),
            translated_errors(f"starting the storage pool {self.name}"),
        ):
            pool = self._connection.pool(self.name)
            if pool is None:
                self._log.info(f"making the storage pool {self.name} in {self.path}")
                document = storage_xml.pool(self.name, self.path)
                pool = self._connection.raw.storagePoolDefineXML(document)
                pool.build()
                pool.setAutostart(1)
            if not pool.isActive():
                pool.create()
        return pool

    def names(self) -> list[str]:
        """Return the names of all volumes."""
        with translated_errors(f"listing the storage pool {self.name}"):
            names: list[str] = self.raw.listVolumes()
        return names

    def find(self, name: str) -> Any:
        """Return the volume of this name, or None."""
        return lookup_or_none(self.raw.storageVolLookupByName, name)

    def create(self, volume: Volume) -> Any:
        """Make a volume. Raises CloudError for a name that is taken, NoDiskSpace."""
        where = f"making the volume {volume.name} in the storage pool {self.name}"
        document = storage_xml.volume(volume)
        try:
            with translated_errors(where):
                return self.raw.createXML(document)
        except AlreadyThere:
            # A file may have come or gone without libvirt.
            self.refresh()
            if self.find(volume.name) is not None:
                raise
            with translated_errors(where):
                return self.raw.createXML(document)

    def copy(self, source: Any, volume: Volume) -> None:
        """Make a volume with the content of another, on libvirt's side. Raises NoDiskSpace."""
        doing = f"copying the volume {source.name()} to {volume.name}"
        document = storage_xml.volume(volume)
        with translated_errors(doing):
            self.raw.createXMLFrom(document, source, 0)

    def refresh(self) -> None:
        """Have libvirt read the pool again, once no upload or creation is running."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                with translated_errors(f"looking into the storage pool {self.name}"):
                    self.raw.refresh()
                return
            except CloudError as error:
                # There is no event for the end of other jobs in the pool.
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
            _send_file(stream, file, size, progress)

    def write(self, volume: Any, data: bytes) -> None:
        """Write bytes into a volume, from its beginning."""
        file = io.BytesIO(data)
        with self._stream(f"writing {volume.name()}") as stream:
            volume.upload(stream, 0, len(data), 0)
            stream.sendAll(lambda _stream, count, _opaque: file.read(count), None)
            stream.finish()

    def read(self, volume: Any, offset: int = 0, length: int = 0, limit: int = SMALL) -> bytes:
        """Read a volume from an offset (bytes) on, `length` bytes, or all of them for 0.

        Raises CloudError for more than `limit`.
        """
        with self._stream(f"reading {volume.name()}") as stream:
            volume.download(stream, offset, length, 0)
            try:
                return _receive_bytes(stream, limit)
            except ValueError as error:
                raise CloudError(f"the volume {volume.name()} has {error}") from None

    @contextmanager
    def _stream(self, doing: str) -> Iterator[Any]:
        with translated_errors(doing):
            stream = self._connection.raw.newStream()
            try:
                yield stream
            except BaseException:
                client.abort(stream)
                raise

    def delete(self, name: str) -> None:
        """Delete a volume, if it exists."""
        volume = self.find(name)
        if volume is None:
            return
        try:
            with translated_errors(f"deleting the volume {name}"):
                volume.delete()
        except CloudError:
            self.refresh()  # its file may have gone without libvirt
            if self.find(name) is not None:
                raise

    def backing(self, volume: Any) -> str:
        """Return the path of what a volume is a clone of, or ""."""
        with translated_errors(f"looking at the volume {volume.name()}"):
            root = parsed(volume.XMLDesc())
        return root.findtext("backingStore/path") or ""


def path_of(volume: Any) -> str:
    """Return a volume's path on libvirt's machine."""
    with translated_errors("looking at a volume"):
        return str(volume.path())


def capacity_of(volume: Any, *, taken: bool = False) -> int:
    """Return a volume's capacity, or its allocation, in bytes."""
    with translated_errors("looking at a volume"):
        return int(volume.info()[2 if taken else 1])


# Files and bytes through libvirt's streams, holes as holes


def _send_file(stream: Any, file: BinaryIO, size: int, progress: Progress) -> None:
    """Send a sparse file's first `size` bytes into a stream that takes holes."""
    fd = file.fileno()

    def send(_stream: Any, count: int, _opaque: Any) -> bytes:
        data = os.read(fd, count)
        progress(os.lseek(fd, 0, os.SEEK_CUR), size)
        return data

    def next_extent(_stream: Any, _opaque: Any) -> tuple[bool, int]:
        here = os.lseek(fd, 0, os.SEEK_CUR)
        data = _next_offset(fd, here, os.SEEK_DATA, size)
        if data > here:
            os.lseek(fd, here, os.SEEK_SET)
            return False, data - here
        hole = _next_offset(fd, here, os.SEEK_HOLE, size)
        os.lseek(fd, here, os.SEEK_SET)
        return here < size, hole - here

    def skip(_stream: Any, count: int, _opaque: Any) -> int:
        return os.lseek(fd, count, os.SEEK_CUR)

    os.lseek(fd, 0, os.SEEK_SET)
    stream.sparseSendAll(send, next_extent, skip, None)
    stream.finish()


def _next_offset(fd: int, here: int, what: int, size: int) -> int:
    """Return where data, or a hole, comes next; the end of the file when there is none."""
    try:
        return min(os.lseek(fd, here, what), size)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def _receive_bytes(stream: Any, limit: int) -> bytes:
    """Receive a stream, `limit` bytes at most. Raises ValueError for more."""
    pieces: list[bytes] = []
    total = 0

    def keep(_stream: Any, data: bytes, _opaque: Any) -> int:
        nonlocal total
        total += len(data)
        if total > limit:
            return -1
        pieces.append(data)
        return 0

    try:
        stream.recvAll(keep, None)
    except Exception:
        if total > limit:
            raise ValueError(f"more than {limit} bytes") from None
        raise
    stream.finish()
    return b"".join(pieces)
