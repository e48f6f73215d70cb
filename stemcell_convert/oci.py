"""OCI image documents of a stemcell: pure functions, canonical JSON, no clock.

Source: opencontainers/image-spec 1.0 (config, manifest, descriptor, annotations).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemcell_convert.facts import RootfsFacts

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


def chain_id(diff_ids: Sequence[str]) -> str:
    """Return the chain ID of layers, the name of their unpacked snapshot (image-spec, config)."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = digest(f"{chain} {diff_id}".encode())
    return chain


def config(facts: RootfsFacts, layers: Sequence[Layer], labels: Mapping[str, str]) -> bytes:
    """Return the image's config: its entry point is the stemcell's init."""
    return _canonical(
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
    return _canonical(
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


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
