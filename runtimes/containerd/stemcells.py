"""Stemcells as images of containerd: import, look-up, deletion.

What only an import needs is loaded then: every create_vm looks a stemcell up.
"""

import hashlib
import io
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpi import cid, linux, locks
from cpi.config import Config
from cpi.errors import CloudError, NotSupported, StemcellNotFound
from cpi.log import Log
from cpi.model import JsonObject
from cpi.undo import Undo
from runtimes.containerd.api import types_pb2
from runtimes.containerd.store import Store
from stemcell_convert import adapt, oci
from stemcell_convert.errors import StemcellError, UnsupportedStemcell
from stemcell_convert.facts import RootfsFacts, read_facts
from stemcell_convert.inroot import Root

if TYPE_CHECKING:
    from stemcell_convert.convert import Rootfs

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
        self._imports = Path(config.text("state_dir")) / "imports"
        self._limit = config.integer("stemcell_limit") << 20
        self._runtime = runtime
        self._run_dir = Path(config.text("run_dir"))
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

        Raises CloudError, naming the file and the reason, or NotSupported for another format.
        """
        from stemcell_convert.recognise import recognise

        try:
            kind = recognise(image)
            source = _hash(image)
            with locks.hold(str(self._run_dir), f"import-{source[7:39]}", log=self._log):
                known = self._known(source)
                if known:
                    self._log.info(f"stemcell image {source} is imported already: {known}")
                    return known
                with self._rootfs(image, kind, source) as rootfs:
                    return self._import(rootfs, source, properties)
        except UnsupportedStemcell as error:
            raise NotSupported(str(error)) from None
        except StemcellError as error:
            raise CloudError(str(error)) from None

    def delete(self, stemcell_cid: str) -> None:
        """Delete a stemcell; VMs made of it live on. One that is gone is no error."""
        self._store.delete_image(self._image_name(stemcell_cid))

    def _image_name(self, stemcell_cid: str) -> str:
        return f"{IMAGE_PREFIX}{stemcell_cid.rsplit('-', 1)[1]}:latest"

    def _known(self, source: str) -> str | None:
        """The CID of an image made of these bytes by this version, if it is still whole."""
        for image in self._store.find_images(f'labels."{oci.LABEL_SOURCE}"=="{source}"'):
            if image.labels.get(oci.LABEL_ADAPTATION) != adapt.VERSION:
                continue
            if self._store.has_snapshot(image.labels.get(LABEL_SNAPSHOT, "")):
                return cid.new(self._runtime, cid.STEMCELL, _identifier(image.target.digest))
        return None

    @contextmanager
    def _rootfs(self, image: Path, kind: str, source: str) -> Iterator["Rootfs"]:
        """The stemcell's root file system as a tar.gz; what it takes to make one goes at the end.

        The folder's name is the source's, so that what a killed import left goes as well.
        """
        from runtimes.containerd.disk_stemcells import mounted_disk
        from stemcell_convert.convert import Rootfs, rootfs_of_disk
        from stemcell_convert.recognise import ROOTFS

        if kind == ROOTFS:
            yield Rootfs(image, source, image.stat().st_size)
            return
        folder = self._imports / source.partition(":")[2]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        try:
            yield linux.in_private_mounts(
                lambda: rootfs_of_disk(
                    image, kind, folder, mounted_disk, self._limit, self._log.info
                )
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _import(self, rootfs: "Rootfs", source: str, properties: JsonObject) -> str:
        with self._store.lease() as lease:
            self._log.info(f"importing the root file system {rootfs.path} ({rootfs.size} bytes)")
            key = f"extract-{lease} {rootfs.digest}"
            mounts = self._store.prepare(key, "", lease=lease)
            with ThreadPoolExecutor(1) as pool, rootfs.path.open("rb") as file:
                stored = pool.submit(
                    self._store.write_content, file, rootfs.size, rootfs.digest, lease=lease
                )
                facts, diff_id = linux.in_private_mounts(
                    lambda: _unpack(rootfs.path, mounts, self._mount_point)
                )
                stored.result()
            self._store.commit(diff_id, key, lease=lease)
            layer = oci.Layer(oci.LAYER_GZIP, rootfs.digest, rootfs.size, diff_id)
            layers = [layer, self._adapt(facts, diff_id, lease)]
            return self._record(facts, layers, source, properties, lease)

    def _adapt(self, facts: RootfsFacts, parent: str, lease: str) -> oci.Layer:
        """Store and unpack the layer that the root file system needs on top."""
        data = adapt.layer(adapt.adaptations(facts))
        layer = oci.Layer(oci.LAYER, oci.digest(data), len(data), oci.digest(data))
        self._store.write_content(io.BytesIO(data), layer.size, layer.digest, lease=lease)
        key = f"extract-{lease} {layer.digest}"
        mounts = self._store.prepare(key, parent, lease=lease)
        self._store.apply(layer.media_type, layer.digest, layer.size, mounts)
        self._store.commit(oci.chain_id([parent, layer.diff_id]), key, lease=lease)
        return layer

    def _record(
        self,
        facts: RootfsFacts,
        layers: list[oci.Layer],
        source: str,
        properties: JsonObject,
        lease: str,
    ) -> str:
        """Store config and manifest and make the image; its labels hold everything together."""
        labels = _labels(facts, source, properties)
        snapshot = oci.chain_id([layer.diff_id for layer in layers])
        config = oci.config(facts, layers, labels)
        manifest = oci.manifest(config, layers, labels)
        # containerd's garbage collection follows these labels from the image to the snapshot.
        self._store.write_content(
            io.BytesIO(config),
            len(config),
            oci.digest(config),
            lease=lease,
            labels={f"containerd.io/gc.ref.snapshot.{self._store.snapshotter}": snapshot},
        )
        references = {"containerd.io/gc.ref.content.config": oci.digest(config)}
        for number, layer in enumerate(layers):
            references[f"containerd.io/gc.ref.content.l.{number}"] = layer.digest
        digest = oci.digest(manifest)
        self._store.write_content(
            io.BytesIO(manifest), len(manifest), digest, lease=lease, labels=references
        )
        new = cid.new(self._runtime, cid.STEMCELL, _identifier(digest))
        labels |= {LABEL_SNAPSHOT: snapshot, LABEL_COMMAND: " ".join(facts.command)}
        target = types_pb2.Descriptor(media_type=oci.MANIFEST, digest=digest, size=len(manifest))
        with Undo(self._log) as undo:
            undo.push(lambda: self._store.delete_image(self._image_name(new)))
            self._store.create_image(self._image_name(new), target, labels, lease=lease)
            undo.keep()
        self._log.info(f"imported as {self._image_name(new)}, {facts.init} is its init")
        return new


def _identifier(digest: str) -> str:
    return digest.partition(":")[2][:_CID_DIGITS]


def _hash(image: Path) -> str:
    sha = hashlib.sha256()
    with image.open("rb") as file:
        while data := file.read(1 << 20):
            sha.update(data)
    return f"sha256:{sha.hexdigest()}"


def _labels(facts: RootfsFacts, source: str, properties: JsonObject) -> dict[str, str]:
    labels = {
        oci.LABEL_INIT: facts.init,
        oci.LABEL_SETTINGS: facts.settings,
        oci.LABEL_SOURCE: source,
        oci.LABEL_ADAPTATION: adapt.VERSION,
    }
    for label, key in ((oci.LABEL_NAME, "name"), (oci.LABEL_VERSION, "version")):
        value = properties.get(key)
        if isinstance(value, (str, int, float)) and len(str(value)) <= 256:
            labels[label] = str(value)
    return labels


def _unpack(image: Path, mounts: Sequence[types_pb2.Mount], at: Path) -> tuple[RootfsFacts, str]:
    from runtimes.containerd.unpack import unpack

    with mounted(mounts, at) as folder:
        diff_id = unpack(image, folder)
        with Root(folder) as root:
            return read_facts(root, str(image)), diff_id


@contextmanager
def mounted(mounts: Sequence[types_pb2.Mount], at: Path) -> Iterator[Path]:
    """Mount a snapshot, for use inside linux.in_private_mounts.

    `at` is made when missing. Calls at the same time may share it: each has mounts of its own.
    """
    at.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        for mount in mounts:
            linux.mount_words(mount.source, at, mount.type, list(mount.options))
            stack.callback(linux.umount, at, linux.MNT_DETACH)
        yield at
