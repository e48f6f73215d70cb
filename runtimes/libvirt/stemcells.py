"""Stemcells as volumes, from which VMs' root disks are copied on write.

`<id>.stemcell` is the disk, `<id>.json` has its facts. These are written last: a disk without them
is what a killed import left.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpi import cid
from cpi.config.config import Config
from cpi.errors import CloudError, StemcellNotFound
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import JsonObject
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.volumes import StoragePool, path_of
from runtimes.libvirt.xml.storage_xml import SHARED, Volume
from runtimes.stemcell_imports import StemcellImports, Upload, import_lock
from stemcell_convert.stemcell_errors import UnsupportedStemcell

if TYPE_CHECKING:
    from stemcell_convert.stemcell_manifest import Manifest

_DIGITS = 40  # hexadecimal, of a sha256
DISK, FACTS = ".stemcell", ".json"
_ROOT = ".root"


@dataclass(frozen=True)
class Base:
    """A stemcell's disk. path: on libvirt's machine; size: bytes; key: of its upload.

    settings, resolution: as its agent expects them (stemcell_convert.machine_agent).
    """

    path: str
    format: str
    size: int
    settings: str
    resolution: str
    key: str = ""


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
        self._imports = StemcellImports(profile.name, config, log)
        self._lock = lock
        self._log = log

    def create(self, image: Path, properties: JsonObject) -> str:
        """Import a stemcell's `image` and return its CID. Raises CloudError, NotSupported."""
        from stemcell_convert.convert import raw_disk

        with self._importing(image, properties) as (upload, folder):
            known = self._known(upload)
            if known:
                self._log.info(f"{image} is imported already, as {_id(known)}{DISK}")
                return known
            raw = raw_disk(upload.source, upload.format, folder, upload.means)
            stemcell_cid = self._cid(upload.source.drain(), upload.manifest)
            if self._facts(_id(stemcell_cid)) is None:
                self._import(raw, _id(stemcell_cid), upload)
            return stemcell_cid

    def share(self, stemcell_cid: str, image: Path, properties: JsonObject) -> None:
        """Import the `image` of a stemcell under the CID that another runtime gave it."""
        from stemcell_convert.convert import raw_disk

        with self._importing(image, properties) as (upload, folder):
            if self._facts(_id(stemcell_cid)) is None:
                raw = raw_disk(upload.source, upload.format, folder, upload.means)
                self._import(raw, _id(stemcell_cid), upload)

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
        """Delete a stemcell, if it exists. Raises CloudError while VMs use it."""
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

    @contextmanager
    def _importing(self, image: Path, properties: JsonObject) -> Iterator[tuple[Upload, Path]]:
        """Open an `image` and yield it with a folder. Refuse one without a disk."""
        from stemcell_convert.recognise import LIGHT, ROOTFS

        with self._imports.opened(image, properties) as upload:
            if upload.format in (ROOTFS, LIGHT):
                light = upload.format == LIGHT
                what = "the name of an OCI image" if light else "a root file system"
                raise UnsupportedStemcell(
                    f"{image} is {what} without a kernel, which runs in containers alone; a "
                    f"{self._profile.name} VM needs a stemcell with a disk (openstack-qcow2)"
                )
            with self._imports.folder(upload.key) as folder:
                yield upload, folder

    def _known(self, upload: Upload) -> str | None:
        """Return the CID under which the same stemcell was imported before, or None.

        The file is read only if its key is that of a stemcell that is here.
        """
        names = [name.removesuffix(FACTS) for name in self._pool.names() if name.endswith(FACTS)]
        if not any(base.key == upload.key for base in map(self._facts, names) if base):
            return None
        stemcell_cid = self._cid(upload.digest, upload.manifest)
        return stemcell_cid if self._facts(_id(stemcell_cid)) else None

    def _cid(self, digest: str, manifest: "Manifest") -> str:
        """Return the CID of a stemcell with this content, name and version.

        Two versions with the same content need two CIDs: BOSH deletes one and keeps the other.
        """
        identity = f"{manifest.name}\n{manifest.version}\n{digest}"
        digits = hashlib.sha256(identity.encode()).hexdigest()[:_DIGITS]
        return cid.new(self._profile.name, cid.STEMCELL, digits)

    def _import(self, raw: Path, name: str, upload: Upload) -> None:
        """Create the volumes of a disk, after changing its agent's settings if necessary.

        Volumes of that name, left by a killed import, are deleted first.
        """
        from stemcell_convert import convert, machine_agent

        expected = machine_agent.prepare(
            raw, convert.file_systems(raw), upload.manifest, raw.parent
        )
        self._log.info(
            f"settings reach its agent by {expected.settings}, disks are found as "
            f"{expected.resolution}{'; its agent.json was changed for that' * expected.adapted}"
        )
        with self._lock(import_lock(self._profile.name, name)), Undo(self._log) as undo:
            self._pool.delete(name + DISK)
            self._pool.delete(name + FACTS)
            undo.push(lambda: self._pool.delete(name + DISK))
            size = raw.stat().st_size
            volume = self._pool.create(Volume(name + DISK, size, mode=SHARED))
            with upload.means.report.progress(f"uploading {name}{DISK}") as show:
                self._pool.upload(volume, raw, show)
            path, settings, resolution = path_of(volume), expected.settings, expected.resolution
            base = Base(path, "raw", size, settings, resolution, upload.key)
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


def _id(stemcell_cid: str) -> str:
    """Return the name of a stemcell's volumes: its CID's last part, for every runtime."""
    return stemcell_cid.rsplit("-", 1)[1]
