"""Imports of stemcells: a root file system, a disk or an image in a registry becomes an image."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpi.config.config import Config
from cpi.errors import CloudError
from cpi.host.undo import Undo
from cpi.log import Log
from cpi.model import JsonObject
from runtimes.containerd.api import types_pb2
from runtimes.containerd.image_store import ImageStore
from runtimes.containerd.image_writer import ImageWriter
from runtimes.containerd.stemcells import (
    IMAGE_PREFIX,
    LABEL_COMMAND,
    LABEL_SNAPSHOT,
    cid_of,
    image_name,
)
from runtimes.stemcell_imports import StemcellImports, Upload
from stemcell_convert import adapt, oci
from stemcell_convert.convert import rootfs_of_disk
from stemcell_convert.facts import RootfsFacts
from stemcell_convert.recognise import LIGHT, ROOTFS
from stemcell_convert.stemcell_manifest import Manifest, of_properties

if TYPE_CHECKING:
    from stemcell_convert.oci_image import Image

LABEL_KEY = "bosh.stemcell.upload"  # of containerd's image: the key of the `image` it was made of


class Imports:
    """Imports into one containerd namespace."""

    def __init__(
        self, store: ImageStore, runtime: str, config: Config, mount_point: Path, log: Log
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._config = config
        self._mount_point = mount_point
        self._log = log
        self._imports = StemcellImports(runtime, config, log)

    def create(self, image: Path, properties: JsonObject) -> str:
        """Import a stemcell's image file, whatever its format, and return its CID.

        An empty one is a light stemcell's, whose image is fetched from its registry. Raises
        CloudError, naming the file and the reason, or NotSupported for another format.
        """
        return self._create(image, properties)[0]

    def share(self, stemcell_cid: str, image: Path, properties: JsonObject) -> None:
        """Import a stemcell under the CID that another runtime gave it. Raises like `create`."""
        if self._store.get_image(image_name(stemcell_cid)) is not None:
            return
        own, is_new = self._create(image, properties)
        record = self._store.get_image(image_name(own))
        if record is None:
            raise CloudError(f"{own} was deleted while it was imported", ok_to_retry=True)
        with self._store.lease() as lease:
            labels = dict(record.labels)
            self._store.create_image(image_name(stemcell_cid), record.target, labels, lease=lease)
            if is_new:
                self._store.delete_image(image_name(own))

    def _create(self, image: Path, properties: JsonObject) -> tuple[str, bool]:
        """Return the stemcell's CID, and whether it is new."""
        with self._imports.opened(image, properties) as upload:
            if upload.format == LIGHT:
                return self._pull(upload)
            with self._imports.folder(upload.key) as folder:

                def is_same(labels: Mapping[str, str]) -> bool:
                    # The key first: for the digest the whole file has to be read.
                    same_key = labels.get(LABEL_KEY) == upload.key
                    return same_key and labels.get(oci.LABEL_SOURCE) == upload.digest

                known = self._known(is_same, upload.manifest)
                return (known, False) if known else (self._import(upload, folder), True)

    def _known(
        self, is_same: Callable[[Mapping[str, str]], bool], manifest: Manifest | None = None
    ) -> str | None:
        """Return the CID of a complete stemcell with such labels, made by this version, or None.

        manifest: if it has a version, the stemcell must have it too. Two versions with the same
        content need two CIDs: BOSH deletes one and keeps the other.
        """
        for image in self._store.find_images(f'name~="^{IMAGE_PREFIX}"'):
            if image.labels.get(oci.LABEL_ADAPTATION) != adapt.VERSION:
                continue
            version = image.labels.get(oci.LABEL_VERSION, "")
            if manifest and manifest.version not in ("", version):
                continue
            own = cid_of(self._runtime, image.target.digest)
            if image.name != image_name(own):  # it is here under another runtime's CID
                continue
            # Labels first: containerd is asked only about the one that may be it.
            if not is_same(image.labels):
                continue
            if self._store.has_snapshot(image.labels.get(LABEL_SNAPSHOT, "")):
                self._log.info(f"it is imported already, as {image.name}")
                return own
        return None

    def _import(self, upload: Upload, folder: Path) -> str:
        """Import a root file system, or that of a disk; return the CID."""
        if upload.format == ROOTFS:
            with self._writing() as writer:
                writer.rootfs(upload.path, lambda: upload.digest, upload.means.limit)
                facts = writer.look(str(upload.path))
                return self._finish(writer, upload, upload.digest, facts)
        rootfs, facts = rootfs_of_disk(upload.source, upload.format, folder, upload.means)
        with self._writing() as writer:
            writer.rootfs(rootfs.path, lambda: rootfs.digest, upload.means.limit)
            return self._finish(writer, upload, upload.source.drain(), facts)

    def _finish(self, writer: ImageWriter, upload: Upload, digest: str, facts: RootfsFacts) -> str:
        """Complete the image of a root file system. digest: the upload's."""
        writer.adapt(facts)
        labels = oci.labels(facts, digest, upload.manifest)
        target = writer.documents(*oci.documents(facts, writer.layers, labels))
        return self._record(writer, facts, target, {**labels, LABEL_KEY: upload.key})

    def _pull(self, upload: Upload) -> tuple[str, bool]:
        """Import the image that a light stemcell names. Returns like `_create`."""
        from runtimes.containerd import light_stemcells as light

        named = light.reference(upload.properties, self._config)
        label = light.LABEL_REFERENCE if named.digest else light.LABEL_TAG
        key = hashlib.sha256(str(named).encode()).hexdigest()
        report = upload.means.report
        if self._config.flag("registry.check_access"):
            light.require_access(named, self._config, report)
        with self._imports.folder(key) as folder:
            if known := self._known(lambda labels: labels.get(label) == str(named)):
                return known, False
            image, labels = light.pull(named, folder / "layout", self._config, report)
            return self._import_pulled(image, labels[light.LABEL_REFERENCE], labels, upload), True

    def _import_pulled(
        self, image: "Image", reference: str, labels: Mapping[str, str], upload: Upload
    ) -> str:
        here = oci.host_architecture()
        if image.architecture != here:
            self._log.warn(f"the image is for {image.architecture}, this host is {here}")
        with self._writing() as writer:
            writer.image(image, upload.means.limit)
            facts = writer.look(reference)
            # Of the image's own labels only those of a stemcell that we made are trusted.
            ours = image.labels.get(oci.LABEL_ADAPTATION) == adapt.VERSION
            stemcell = oci.stemcell_of(image.labels) if ours else of_properties(upload.properties)
            own_labels = oci.labels(facts, image.digest, stemcell)
            config, manifest = image.config, image.manifest
            if not ours or image.media_type != oci.MANIFEST:
                writer.adapt(facts)
                config, manifest = oci.documents(facts, writer.layers, own_labels)
            target = writer.documents(config, manifest)
            return self._record(writer, facts, target, {**own_labels, **labels})

    @contextmanager
    def _writing(self) -> Iterator[ImageWriter]:
        """Write an image; a failure leaves nothing of it."""
        with self._store.lease() as lease:
            yield ImageWriter(self._store, lease, self._mount_point)

    def _record(
        self,
        writer: ImageWriter,
        facts: RootfsFacts,
        target: types_pb2.Descriptor,
        labels: Mapping[str, str],
    ) -> str:
        """Record the image that was written; return the stemcell's CID."""
        command = " ".join(facts.command)
        labels = {**labels, LABEL_SNAPSHOT: writer.snapshot, LABEL_COMMAND: command}
        stemcell_cid = cid_of(self._runtime, target.digest)
        name = image_name(stemcell_cid)
        with Undo(self._log) as undo:
            undo.push(lambda: self._store.delete_image(name))
            self._store.create_image(name, target, labels, lease=writer.lease)
            undo.keep()
        self._log.info(f"imported as {name}, {facts.init} is its init")
        return stemcell_cid
