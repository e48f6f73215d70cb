"""OCI image documents of a stemcell: pure functions, canonical JSON, no clock.

Source: opencontainers/image-spec 1.0 (config, manifest, descriptor, annotations).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemcell_convert import adapt
from stemcell_convert.facts import RootfsFacts
from stemcell_convert.stemcell_manifest import Manifest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

# What the image says of the stemcell; the CPI reads them back from here.
LABEL_INIT = "bosh.stemcell.init"
LABEL_SETTINGS = "bosh.stemcell.settings"
LABEL_SOURCE = "bosh.stemcell.source"
LABEL_ADAPTATION = "bosh.stemcell.adaptation"
LABEL_NAME = "bosh.stemcell.name"
LABEL_VERSION = "bosh.stemcell.version"
LABEL_OS = "bosh.stemcell.operating_system"
LABEL_API = "bosh.stemcell.api_version"
LABEL_FORMATS = "bosh.stemcell.formats"
# The same for other tools (image-spec, annotations).
_TITLE, _VERSION = "org.opencontainers.image.title", "org.opencontainers.image.version"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


@dataclass(frozen=True)
class Layer:
    """A layer as stored: digest and size (bytes) of its blob, diff_id of the tar in it."""

    media_type: str
    digest: str
    size: int
    diff_id: str


def digest(data: bytes) -> str:
    """Return the sha256 digest of a document as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def host_architecture() -> str:
    """Return OCI's name of this machine's architecture."""
    return _ARCHITECTURES.get(os.uname().machine, os.uname().machine)


def chain_id(diff_ids: Sequence[str]) -> str:
    """Return the chain ID of layers, the name of their unpacked snapshot (image-spec, config)."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = digest(f"{chain} {diff_id}".encode())
    return chain


def labels(facts: RootfsFacts, source: str, stemcell: Manifest) -> dict[str, str]:
    """Return what an image says of its stemcell; `source` is the digest of its `image` file."""
    labels = {
        LABEL_INIT: facts.init,
        LABEL_SETTINGS: facts.settings,
        LABEL_SOURCE: source,
        LABEL_ADAPTATION: adapt.VERSION,
        LABEL_NAME: stemcell.name,
        LABEL_VERSION: stemcell.version,
        LABEL_OS: stemcell.operating_system,
        LABEL_API: stemcell.api_version,
        LABEL_FORMATS: ",".join(stemcell.formats)[:1024],
        _TITLE: stemcell.name,
        _VERSION: stemcell.version,
    }
    return {key: value for key, value in labels.items() if value}


def stemcell_of(labels: Mapping[str, str]) -> Manifest:
    """Return which stemcell an image says it is."""
    formats = labels.get(LABEL_FORMATS, "")
    return Manifest(
        name=labels.get(LABEL_NAME, ""),
        version=labels.get(LABEL_VERSION, ""),
        operating_system=labels.get(LABEL_OS, ""),
        api_version=labels.get(LABEL_API, ""),
        formats=tuple(formats.split(",")) if formats else (),
    )


def plain_layer(data: bytes) -> Layer:
    """Return the layer whose blob is a tar as it is: its digest is its diff ID."""
    return Layer(LAYER, digest(data), len(data), digest(data))


def documents(
    facts: RootfsFacts, layers: Sequence[Layer], labels: Mapping[str, str]
) -> tuple[bytes, bytes]:
    """Return an image's config and its manifest."""
    made = config(facts, layers, labels)
    return made, manifest(made, layers, labels)


def config(facts: RootfsFacts, layers: Sequence[Layer], labels: Mapping[str, str]) -> bytes:
    """Return the image's config: its entry point is the stemcell's init."""
    return canonical(
        {
            "architecture": facts.architecture,
            "os": "linux",
            "config": {
                "Entrypoint": list(facts.command),
                "Env": [
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "container=oci",
                ],
                "Labels": dict(labels),
                "StopSignal": "SIGRTMIN+3" if facts.init == "systemd" else "SIGHUP",
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [
                {"created_by": "the stemcell's root file system, unchanged"},
                {"created_by": "what it needs to live in a container"},
            ][: len(layers)],
        }
    )


def manifest(config_document: bytes, layers: Sequence[Layer], labels: Mapping[str, str]) -> bytes:
    """Return the image's manifest."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": CONFIG,
                "digest": digest(config_document),
                "size": len(config_document),
            },
            "layers": [
                {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
                for layer in layers
            ],
            "annotations": dict(labels),
        }
    )


def canonical(document: Any) -> bytes:
    """Return a document as JSON, the same bytes every time."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
