"""Stemcells as images of containerd: import, look-up, deletion.

What only an import needs is loaded then: every create_vm looks a stemcell up.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpi import cid
from cpi.config.config import Config
from cpi.errors import CloudError, NotSupported, StemcellNotFound
from cpi.host import locks
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import JsonObject
from runtimes.containerd.storage import Store
from stemcell_convert import adapt, oci
from stemcell_convert.facts import RootfsFacts
from stemcell_convert.stemcell_errors import RegistryUnreachable, StemcellError, UnsupportedStemcell

if TYPE_CHECKING:
    from runtimes.containerd.api import types_pb2
    from runtimes.containerd.imports import Import
    from stemcell_convert.convert import Means
    from stemcell_convert.manifest import Manifest
    from stemcell_convert.pack import Rootfs
    from stemcell_convert.streams import Source

# The image's name in containerd. `ctr run` takes it, and it is a valid reference for a push.
IMAGE_PREFIX = "bosh.local/stemcell/"
LABEL_SNAPSHOT = "bosh.stemcell.snapshot"
LABEL_COMMAND = "bosh.stemcell.command"
_CID_DIGITS = 40  # hex digits of the manifest's digest in a CID: enough never to meet another


@dataclass(frozen=True)
class Stemcell:
    """An imported stemcell: what create_vm has to know of it."""

    image: str
    snapshot: str
    init: str
    command: tuple[str, ...]
    settings: str


class Stemcells:
    """The stemcells of one containerd namespace."""

    def __init__(
        self, store: Store, runtime: str, config: Config, mount_point: Path, log: Log
    ) -> None:
        self._store = store
        self._config = config
        self._imports = Path(config.text("state_dir")) / "imports"
        self._runtime = runtime
        self._run_dir = config.text("run_dir")
        self._mount_point = mount_point
        self._log = log

    def find(self, stemcell_cid: str) -> Stemcell:
        """Return an imported stemcell. Raises StemcellNotFound."""
        image = self._store.get_image(self._image_name(stemcell_cid))
        if image is None or LABEL_SNAPSHOT not in image.labels:
            raise StemcellNotFound(
                f"the stemcell {stemcell_cid} is not in containerd; upload it again "
                "(bosh upload-stemcell --fix)"
            )
        return Stemcell(
            image=image.name,
            snapshot=image.labels[LABEL_SNAPSHOT],
            init=image.labels[oci.LABEL_INIT],
            command=tuple(image.labels[LABEL_COMMAND].split(" ")),
            settings=image.labels[oci.LABEL_SETTINGS],
        )

    def create(self, image: Path, properties: JsonObject) -> str:
        """Import a stemcell's image file, whatever its format, and return its CID.

        An empty one is a light stemcell's, whose image is fetched from its registry. Raises
        CloudError, naming the file and the reason, or NotSupported for another format.
        """
        try:
            if _size(image) == 0:
                from runtimes.containerd.light_stemcells import create

                return create(self, self._config, properties, self._log)
            return self._create(image, properties)
        except UnsupportedStemcell as error:
            raise NotSupported(str(error)) from None
        except RegistryUnreachable as error:
            raise CloudError(str(error), ok_to_retry=True) from None
        except StemcellError as error:
            raise CloudError(str(error)) from None

    def delete(self, stemcell_cid: str) -> None:
        """Delete a stemcell; VMs made of it live on. One that is gone is no error."""
        self._store.delete_image(self._image_name(stemcell_cid))

    def share(self, stemcell_cid: str, image: Path, properties: JsonObject) -> None:
        """Import a stemcell under the CID that another runtime gave it. Raises like `create`."""
        from stemcell_convert.convert import beside
        from stemcell_convert.manifest import of_properties

        name = self._image_name(stemcell_cid)
        if self._store.get_image(name) is not None:
            return
        manifest = beside(image) or of_properties(properties)
        known = bool(self.known(oci.LABEL_SOURCE, _hash(image), manifest))
        own = self._image_name(self.create(image, properties))
        record = self._store.get_image(own)
        if record is None:
            raise CloudError(f"{own} was deleted while it was imported", ok_to_retry=True)
        with self._store.lease() as lease:
            self._store.create_image(name, record.target, dict(record.labels), lease=lease)
            if not known:
                self._store.delete_image(own)

    def known(self, label: str, value: str, manifest: "Manifest | None" = None) -> str | None:
        """The CID of a whole stemcell with this label, made by this version, if there is one.

        manifest: it has that version as well, if it tells one. BOSH deletes one version of a
        stemcell without a thought of another with the same content.
        """
        for image in self._store.find_images(f'labels."{label}"=="{value}"'):
            if image.labels.get(oci.LABEL_ADAPTATION) != adapt.VERSION:
                continue
            version = image.labels.get(oci.LABEL_VERSION, "")
            if manifest and manifest.version not in ("", version):
                continue
            own = self._cid(image.target.digest)
            if image.name != self._image_name(own):  # it is here under another runtime's CID
                continue
            if self._store.has_snapshot(image.labels.get(LABEL_SNAPSHOT, "")):
                self._log.info(f"{value} is imported already, as {image.name}")
                return own
        return None

    @contextmanager
    def import_folder(self, key: str) -> Iterator[Path]:
        """An empty folder for an import, under a lock for it; gone at the end.

        key: hex digits that name what is imported, so that a killed import's rest goes as well.
        """
        folder = self._imports / key
        with locks.hold(self._run_dir, import_lock(key), log=self._log):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def importing(self) -> Iterator["Import"]:
        """An import, of which nothing is left when it fails."""
        from runtimes.containerd.imports import Import

        with self._store.lease() as lease:
            yield Import(self._store, lease, self._mount_point)

    def means(self) -> "Means":
        """What conversions here work with."""
        from cpi.disks.foreign_filesystem import mounted
        from cpi.progress import LogReport
        from stemcell_convert.convert import Means

        return Means(mounted, self._config.integer("stemcell_limit") << 20, LogReport(self._log))

    def record(
        self,
        work: "Import",
        facts: RootfsFacts,
        target: "types_pb2.Descriptor",
        labels: dict[str, str],
    ) -> str:
        """Make the image of what was imported; return the stemcell's CID."""
        labels |= {LABEL_SNAPSHOT: work.snapshot, LABEL_COMMAND: " ".join(facts.command)}
        new = self._cid(target.digest)
        with Undo(self._log) as undo:
            undo.push(lambda: self._store.delete_image(self._image_name(new)))
            self._store.create_image(self._image_name(new), target, labels, lease=work.lease)
            undo.keep()
        self._log.info(f"imported as {self._image_name(new)}, {facts.init} is its init")
        return new

    def _create(self, image: Path, properties: JsonObject) -> str:
        from stemcell_convert.convert import beside, opened
        from stemcell_convert.manifest import of_properties
        from stemcell_convert.recognise import recognise

        means = self.means()
        with opened(image, means.report) as source:
            kind = recognise(source)
            digest = _hash(image)
            with self.import_folder(digest.partition(":")[2]) as folder:
                manifest = beside(image) or of_properties(properties)
                if found := self.known(oci.LABEL_SOURCE, digest, manifest):
                    return found
                rootfs = _rootfs(source, kind, digest, folder, means)
                return self._import(rootfs, digest, manifest, means.limit)

    def _import(self, rootfs: "Rootfs", source: str, manifest: "Manifest", limit: int) -> str:
        self._log.info(f"importing the root file system {rootfs.path} ({rootfs.size} bytes)")
        with self.importing() as work:
            work.rootfs(rootfs.path, rootfs.digest, rootfs.size, limit)
            facts = work.look(str(rootfs.path))
            work.adapt(facts)
            labels = oci.labels(facts, source, manifest)
            target = work.documents(*oci.documents(facts, work.layers, labels))
            return self.record(work, facts, target, labels)

    def _image_name(self, stemcell_cid: str) -> str:
        return f"{IMAGE_PREFIX}{stemcell_cid.rsplit('-', 1)[1]}:latest"

    def _cid(self, digest: str) -> str:
        return cid.new(self._runtime, cid.STEMCELL, digest.partition(":")[2][:_CID_DIGITS])


def import_lock(key: str) -> str:
    """The name of the lock of an import folder's."""
    return f"import-{key[:32]}"


def _size(image: Path) -> int:
    try:
        return os.stat(image).st_size
    except OSError as error:
        raise StemcellError(f"cannot read the stemcell's image {image}: {error.strerror}") from None


def _hash(image: Path) -> str:
    sha = hashlib.sha256()
    with image.open("rb") as file:
        while data := file.read(1 << 20):
            sha.update(data)
    return f"sha256:{sha.hexdigest()}"


def _rootfs(source: "Source", kind: str, digest: str, folder: Path, means: "Means") -> "Rootfs":
    """A stemcell's root file system as a tar.gz: the file itself, or made of its disk."""
    from stemcell_convert.convert import rootfs_of_disk
    from stemcell_convert.pack import Rootfs
    from stemcell_convert.recognise import ROOTFS, TARBALL

    if kind == TARBALL:
        raise UnsupportedStemcell(
            f"{source.name} is a whole stemcell; BOSH gives the CPI the `image` in it "
            "(bosh upload-stemcell does, and bosh-cpi stemcell convert)"
        )
    if kind == ROOTFS and source.path:
        return Rootfs(source.path, digest, source.path.stat().st_size, "")
    return rootfs_of_disk(source, kind, folder, means)[0]
