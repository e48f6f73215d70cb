"""Writes an image's layers and documents to containerd, all or nothing."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cpi.errors import CloudError
from cpi.host import syscalls
from runtimes.containerd.api import types_pb2
from runtimes.containerd.image_store import ImageStore
from runtimes.containerd.rootfs import enter, mounted
from stemcell_convert import adapt, oci
from stemcell_convert.facts import RootfsFacts, read_facts

if TYPE_CHECKING:
    from stemcell_convert.oci_image import Image


class ImageWriter:
    """One import, under a lease that keeps what is stored until an image refers to it."""

    def __init__(self, store: ImageStore, lease: str, mount_point: Path) -> None:
        self.lease = lease
        self._store = store
        self._mount_point = mount_point
        self.layers: list[oci.Layer] = []  # so far, the lowest first

    @property
    def snapshot(self) -> str:
        """The name of the snapshot that holds the layers so far."""
        return oci.chain_id([layer.diff_id for layer in self.layers])

    def rootfs(self, path: Path, digest: Callable[[], str], limit: int) -> None:
        """Store and unpack the first layer, a tar.gz, in parallel.

        digest: may read the file; it is called in parallel to unpacking. containerd needs it before
        the first byte: content that it has already is only then kept for this import. Raises
        StemcellError, also for more than `limit` bytes unpacked, and CloudError.
        """
        key, mounts = self._prepare()
        size = path.stat().st_size
        with ThreadPoolExecutor(1) as pool, path.open("rb") as file:
            stored = pool.submit(lambda: self._write(file, size, digest()))
            diff_id = syscalls.in_private_mounts(
                lambda: _unpack(path, mounts, self._mount_point, limit)
            )
            stored.result()
        self._commit(key, oci.Layer(oci.LAYER_GZIP, digest(), size, diff_id))

    def layer(self, file: BinaryIO, layer: oci.Layer) -> None:
        """Store a layer and have containerd unpack it. Raises CloudError."""
        self._write(file, layer.size, layer.digest)
        key, mounts = self._prepare()
        diff_id = self._store.apply(layer.media_type, layer.digest, layer.size, mounts)
        _require_same(layer, diff_id)
        self._commit(key, layer)

    def image(self, image: "Image", limit: int) -> None:
        """Store and unpack all layers of an image. Raises StemcellError, CloudError."""
        first, *others = image.layers
        path = image.blob(first.digest)
        if first.media_type == oci.LAYER_GZIP:
            self.rootfs(path, lambda: first.digest, limit)
            _require_same(first, self.layers[0].diff_id)
        else:
            others = [first, *others]
        for layer in others:
            with image.blob(layer.digest).open("rb") as file:
                self.layer(file, layer)

    def look(self, source: str) -> RootfsFacts:
        """Read the facts of all layers together; `source` is what errors call them."""
        key = f"look-{self.lease}"
        mounts = self._store.prepare(key, self.snapshot, lease=self.lease)
        try:
            return enter(mounts, self._mount_point, lambda root: read_facts(root, source))
        finally:
            self._store.remove_snapshot(key)

    def adapt(self, facts: RootfsFacts) -> None:
        """Add the layer that the root file system needs on top."""
        data = adapt.layer(adapt.adaptations(facts))
        self.layer(io.BytesIO(data), oci.plain_layer(data))

    def documents(self, config: bytes, manifest: bytes) -> types_pb2.Descriptor:
        """Store an image's documents, with the labels that keep all its parts."""
        # containerd's garbage collection follows these labels from the image to the snapshot.
        snapshot = {f"containerd.io/gc.ref.snapshot.{self._store.snapshotter}": self.snapshot}
        references = {"containerd.io/gc.ref.content.config": oci.digest(config)}
        for number, layer in enumerate(self.layers):
            references[f"containerd.io/gc.ref.content.l.{number}"] = layer.digest
        for document, labels in ((config, snapshot), (manifest, references)):
            self._write(io.BytesIO(document), len(document), oci.digest(document), labels)
        digest = oci.digest(manifest)
        return types_pb2.Descriptor(media_type=oci.MANIFEST, digest=digest, size=len(manifest))

    def _write(
        self, file: BinaryIO, size: int, digest: str, labels: dict[str, str] | None = None
    ) -> None:
        self._store.write_content(file, size, digest, lease=self.lease, labels=labels)

    def _prepare(self) -> tuple[str, Sequence[types_pb2.Mount]]:
        key = f"extract-{self.lease}-{len(self.layers)}"
        parent = self.snapshot if self.layers else ""
        return key, self._store.prepare(key, parent, lease=self.lease)

    def _commit(self, key: str, layer: oci.Layer) -> None:
        self.layers.append(layer)
        self._store.commit(self.snapshot, key, lease=self.lease)


def _require_same(layer: oci.Layer, diff_id: str) -> None:
    if diff_id != layer.diff_id:
        raise CloudError(
            f"the layer {layer.digest} unpacks to {diff_id}, and its image says {layer.diff_id}"
        )


def _unpack(path: Path, mounts: Sequence[types_pb2.Mount], mount_point: Path, limit: int) -> str:
    from stemcell_convert.unpack import unpack

    with mounted(mounts, mount_point) as folder, path.open("rb") as file:
        return unpack(file, str(path), folder, limit)
