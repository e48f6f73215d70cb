"""Stemcells as volumes: one base for each, which VMs' root disks are copied on write from.

`<id>.stemcell` is the disk, `<id>.json` says what is to be known of it. The second is written last:
without it the first is what a killed import left.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpi import cid
from cpi.config.config import Config
from cpi.errors import CloudError, NotSupported, StemcellNotFound
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import JsonObject
from cpi.progress import LogReport
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.volumes import StoragePool, path_of
from runtimes.libvirt.xml.storage_xml import SHARED, Volume
from stemcell_convert.stemcell_errors import StemcellError, UnsupportedStemcell

if TYPE_CHECKING:
    from stemcell_convert.convert import Means
    from stemcell_convert.manifest import Manifest
    from stemcell_convert.streams import Source

_DIGITS = 40  # hexadecimal, of a sha256
DISK, FACTS = ".stemcell", ".json"
_ROOT = ".root"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Base:
    """A stemcell's disk. path: on libvirt's machine; size: bytes; settings, resolution: as the
    agent in it expects them (stemcell_convert.machine)."""

    path: str
    format: str
    size: int
    settings: str
    resolution: str


class Stemcells:
    """All stemcells in a pool. The caller holds the lock of the one it deletes."""

    def __init__(
        self,
        pool: StoragePool,
        profile: Profile,
        config: Config,
        lock: Callable[[str], Any],
        log: Log,
    ) -> None:
        self._pool = pool
        self._profile = profile
        self._config = config
        self._lock = lock
        self._log = log

    def create(self, image: Path, properties: JsonObject) -> str:
        """Import a stemcell's `image` and return its CID. Raises CloudError, NotSupported."""
        return self._import(image, properties, None)

    def share(self, stemcell_cid: str, image: Path, properties: JsonObject) -> None:
        """Import the `image` of a stemcell that another runtime has named."""
        self._import(image, properties, stemcell_cid)

    def find(self, stemcell_cid: str) -> Base:
        """Return an imported stemcell. Raises StemcellNotFound."""
        facts = self._facts(_id(stemcell_cid))
        if facts is None:
            raise StemcellNotFound(
                f"the stemcell {stemcell_cid} is not among those of the {self._profile.name} "
                "runtime: it was uploaded for another one alone (add this one to the "
                "configuration's `runtimes` and upload it again with --fix), or has no kernel"
            )
        return facts

    def delete(self, stemcell_cid: str) -> None:
        """Delete a stemcell; one that is gone is no error. Raises CloudError while VMs use it."""
        name = _id(stemcell_cid) + DISK
        volume = self._pool.find(name)
        if volume is not None:
            path = path_of(volume)
            for clone in self._pool.names():
                if clone.endswith(_ROOT) and self._is_clone(clone, path):
                    raise CloudError(
                        f"the stemcell {stemcell_cid} is in use by the VM "
                        f"{clone.removesuffix(_ROOT)}; delete that first"
                    )
        self._pool.delete(_id(stemcell_cid) + FACTS)
        self._pool.delete(name)

    def _is_clone(self, name: str, path: str) -> bool:
        volume = self._pool.find(name)
        return volume is not None and self._pool.backing(volume) == path

    def _import(self, image: Path, properties: JsonObject, known_as: str | None) -> str:
        from stemcell_convert.convert import beside
        from stemcell_convert.manifest import of_properties
        from stemcell_convert.recognise import LIGHT, ROOTFS, TARBALL, recognise

        try:
            with self._opened(image) as (source, means):
                kind = recognise(source)
                if kind == TARBALL:
                    raise UnsupportedStemcell(
                        f"{image} is a whole stemcell; BOSH gives the CPI the `image` in it"
                    )
                if kind in (ROOTFS, LIGHT):
                    what = "the name of an OCI image" if kind == LIGHT else "a root file system"
                    raise UnsupportedStemcell(
                        f"{image} is {what} without a kernel, which runs in containers alone; a "
                        f"{self._profile.name} VM needs a stemcell with a disk (openstack-qcow2)"
                    )
                manifest = beside(image) or of_properties(properties)
                own = cid.new(self._profile.name, cid.STEMCELL, _digits(image, manifest))
                name = _id(known_as or own)
                with self._lock(import_lock(self._profile.name, name)):
                    if self._facts(name) is None:
                        self._import_disk(source, kind, name, means, manifest)
                    else:
                        self._log.info(f"{image} is imported already, as {name}{DISK}")
                return known_as or own
        except UnsupportedStemcell as error:
            raise NotSupported(str(error)) from None
        except StemcellError as error:
            raise CloudError(str(error)) from None

    @contextmanager
    def _opened(self, image: Path) -> "Iterator[tuple[Source, Means]]":
        from cpi.disks.foreign_filesystem import mounted
        from stemcell_convert.convert import Means, opened

        report = LogReport(self._log)
        limit = self._config.integer("stemcell_limit") << 20
        with opened(image, report) as source:
            yield source, Means(mounted, limit, report)

    def _import_disk(
        self, source: "Source", kind: str, name: str, means: "Means", manifest: "Manifest"
    ) -> None:
        from stemcell_convert import convert, machine

        folder = Path(self._config.text("state_dir")) / "imports" / f"{self._profile.name}-{name}"
        with _emptied(folder):
            raw = convert.raw_disk(source, kind, folder, means)
            if raw == source.path:  # it may have to be changed, and is not ours
                raw = _copy(raw, folder / "raw")
            systems = convert.file_systems(raw)
            found = machine.prepare(raw, systems, manifest, folder)
            self._log.info(
                f"settings reach its agent by {found.settings}, disks are found as "
                f"{found.resolution}{'; its agent.json was changed for that' * found.adapted}"
            )
            self._store(name, raw, found.settings, found.resolution)

    def _store(self, name: str, raw: Path, settings: str, resolution: str) -> None:
        report = LogReport(self._log)
        with Undo(self._log) as undo:
            self._pool.delete(name + DISK)  # what a killed import left
            self._pool.delete(name + FACTS)
            undo.push(lambda: self._pool.delete(name + DISK))
            size, kind = raw.stat().st_size, self._profile.base_format
            volume = self._pool.create(Volume(name + DISK, size, kind, mode=SHARED))
            with report.progress(f"uploading {name}{DISK}") as show:
                self._pool.upload(volume, raw, show)
            base = Base(path_of(volume), kind, size, settings, resolution)
            document = json.dumps(asdict(base)).encode()
            undo.push(lambda: self._pool.delete(name + FACTS))
            facts = self._pool.create(Volume(name + FACTS, len(document)))
            self._pool.write(facts, document)
            undo.keep()

    def _facts(self, name: str) -> Base | None:
        volume = self._pool.find(name + FACTS)
        if volume is None:
            return None
        try:
            return Base(**json.loads(self._pool.read(volume, limit=4096)))
        except (ValueError, TypeError):
            return None  # killed while it was written


def import_lock(runtime: str, identifier: str) -> str:
    """The name of the lock of an import."""
    return f"import-{runtime}-{identifier}"[:60]


def _id(stemcell_cid: str) -> str:
    """What a stemcell's volumes are called: the last part of its CID, whichever runtime made it."""
    return stemcell_cid.rsplit("-", 1)[1]


def _digits(image: Path, manifest: "Manifest") -> str:
    """What tells a stemcell from others: its content, and its name and version.

    BOSH deletes one version of a stemcell without a thought of another with the same content.
    """
    sha = hashlib.sha256(f"{manifest.name}\n{manifest.version}\n".encode())
    with image.open("rb") as file:
        while data := file.read(_CHUNK):
            sha.update(data)
    return sha.hexdigest()[:_DIGITS]


def _copy(image: Path, target: Path) -> Path:
    from cpi.disks.raw_image import copy

    copy(image, target)
    return target


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """An empty folder for root alone, gone at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
