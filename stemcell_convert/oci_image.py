"""Reads and checks an OCI image's documents, which are untrusted, and finds its blobs.

Source: opencontainers/image-spec (manifest, config, image-index); Docker's older media types mean
the same.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemcell_convert import oci
from stemcell_convert.stemcell_errors import StemcellError

DOCUMENT_LIMIT = 4 << 20  # bytes, as registries have it
_DOCKER = "application/vnd.docker."
INDEX_TYPES = (oci.INDEX, f"{_DOCKER}distribution.manifest.list.v2+json")
MANIFEST_TYPES = (oci.MANIFEST, f"{_DOCKER}distribution.manifest.v2+json")
# Media types of layers, and OCI's type for each.
_LAYER_TYPES = {
    oci.LAYER: oci.LAYER,
    oci.LAYER_GZIP: oci.LAYER_GZIP,
    f"{oci.LAYER}+zstd": f"{oci.LAYER}+zstd",
    f"{_DOCKER}image.rootfs.diff.tar": oci.LAYER,
    f"{_DOCKER}image.rootfs.diff.tar.gzip": oci.LAYER_GZIP,
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Image:
    """An image whose blobs lie in a layout's folder."""

    folder: Path
    manifest: bytes
    config: bytes
    layers: tuple[oci.Layer, ...]

    @property
    def digest(self) -> str:
        """The manifest's digest, which names the image."""
        return oci.digest(self.manifest)

    @property
    def size(self) -> int:
        """The bytes of all its blobs."""
        layers = sum(layer.size for layer in self.layers)
        return len(self.manifest) + len(self.config) + layers

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of its config."""
        config = json.loads(self.config).get("config")
        labels = config.get("Labels") if isinstance(config, dict) else None
        items = labels.items() if isinstance(labels, dict) else ()
        return {key: value for key, value in items if isinstance(value, str)}

    @property
    def architecture(self) -> str:
        """OCI's name of its architecture."""
        return str(json.loads(self.config).get("architecture", ""))

    @property
    def media_type(self) -> str:
        """The manifest's media type."""
        return str(json.loads(self.manifest).get("mediaType", oci.MANIFEST))

    @property
    def blobs(self) -> Sequence[tuple[str, int]]:
        """Digest and size of every blob but the manifest, the config last."""
        layers = {layer.digest: layer.size for layer in self.layers}
        return [*layers.items(), (oci.digest(self.config), len(self.config))]

    def blob(self, digest: str) -> Path:
        """Return the path of a blob."""
        return blob_path(self.folder, digest)


@dataclass(frozen=True)
class ImageManifest:
    """A manifest's content: the config, then media type, digest and size (bytes) of each layer."""

    config: str
    config_size: int
    layers: tuple[tuple[str, str, int], ...]


def blob_path(folder: Path, digest: str) -> Path:
    """Return a blob's path in a layout. Raises StemcellError for an invalid digest."""
    if not is_digest(digest):
        raise StemcellError(f"{folder}: {digest!a} is no sha256 digest")
    return folder / "blobs" / "sha256" / digest.partition(":")[2]


def is_digest(value: object) -> bool:
    """Tell whether a value is a sha256 digest as OCI writes it."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def parse_manifest(document: bytes, source: str) -> ImageManifest:
    """Read an image's manifest. Raises StemcellError, calling it `source`."""
    content = parse_json(document, source)
    try:
        manifest = ImageManifest(
            _digest(content["config"]["digest"]),
            _size(content["config"]["size"]),
            tuple(
                (_layer_type(layer), _digest(layer["digest"]), _size(layer["size"]))
                for layer in content["layers"]
            ),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StemcellError(f"{source} has no image manifest that can be used: {error}") from None
    if not manifest.layers:
        raise StemcellError(f"{source} has an image without layers")
    if manifest.config_size > DOCUMENT_LIMIT:
        raise StemcellError(f"{source} has a config of {manifest.config_size} bytes")
    return manifest


def layers_of(manifest: ImageManifest, config: bytes, source: str) -> tuple[oci.Layer, ...]:
    """Join a manifest's layers with the diff IDs of its config. Raises StemcellError."""
    rootfs = parse_json(config, source).get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    diff_ids = listed if isinstance(listed, list) else []
    if len(diff_ids) != len(manifest.layers) or not all(map(is_digest, diff_ids)):
        raise StemcellError(f"{source} has an image whose config does not fit its layers")
    return tuple(
        oci.Layer(media_type, digest, size, diff_id)
        for (media_type, digest, size), diff_id in zip(manifest.layers, diff_ids, strict=True)
    )


def for_platform(index: Mapping[str, Any], architecture: str, source: str) -> str:
    """Return the digest of an index's image for Linux on an architecture (OCI's word).

    An index of one image gives that. Raises StemcellError naming the platforms there are.
    """
    entries = objects_in(index.get("manifests"))
    platforms: dict[str, object] = {}
    for entry in entries:
        platform = entry.get("platform")
        platform = platform if isinstance(platform, dict) else {}
        name = f"{platform.get('os', 'linux')}/{platform.get('architecture', 'unknown')}"
        platforms.setdefault(name, entry.get("digest"))
    chosen = platforms.get(f"linux/{architecture}")
    if chosen is None and len(entries) == 1:
        chosen = entries[0].get("digest")
    if not isinstance(chosen, str) or not is_digest(chosen):
        there = ", ".join(sorted(platforms)) or "none"
        raise StemcellError(f"{source} has no image for linux/{architecture}; it has: {there}")
    return chosen


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """Read a JSON object. Raises StemcellError."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StemcellError(f"{source} has a document that is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise StemcellError(f"{source} has a document that is no JSON object")
    return document


def objects_in(value: object) -> list[dict[str, Any]]:
    """Return the JSON objects of a list; of anything else, none."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _layer_type(layer: Mapping[str, Any]) -> str:
    media_type = layer["mediaType"]
    if not isinstance(media_type, str) or media_type not in _LAYER_TYPES:
        raise ValueError(f"a layer is of type {media_type!a}")
    return _LAYER_TYPES[media_type]


def _digest(value: object) -> str:
    if not isinstance(value, str) or not is_digest(value):
        raise ValueError(f"{value!a} is no sha256 digest")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!a} is no size")
    return value
