"""OCI image layouts: a folder with an image's blobs, and the same as an archive.

Source: opencontainers/image-spec, image-layout.md. Every source gives a layout, and every
destination takes one.
"""

import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemcell_convert import oci, oci_image as images, tars
from stemcell_convert.oci_image import Image, blob_path
from stemcell_convert.stemcell_errors import StemcellError

DEFAULT_NAME = "latest"
_REF_NAME = "org.opencontainers.image.ref.name"
_INDEX, _VERSION = "index.json", "oci-layout"
_VERSION_DOCUMENT = {"imageLayoutVersion": "1.0.0"}
_DOCKER_INDEX = "manifest.json"  # what `docker load` reads, in an archive


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """Make a temporary folder for a layout, on the file system of its destination."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=f".{beside.name}.") as folder:
        yield Path(folder)


def begin(folder: Path) -> Path:
    """Make the folders of a layout; return where its blobs go."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    return blobs


def finish(image: Image) -> Image:
    """Add an image's documents to a layout that has its layers."""
    for document in (image.config, image.manifest):
        image.blob(oci.digest(document)).write_bytes(document)
    return image


def read(folder: Path, name: str, architecture: str) -> Image:
    """Return an image of a layout: the one of this name, or without a name the only one.

    architecture: OCI's word for the one to take where there are several. Raises StemcellError
    naming the folder and the reason.
    """
    entries = _entries(folder)
    chosen = [entry for entry in entries if not name or _name(entry) == name]
    if len(chosen) != 1:
        problem = f"no image {name!a}" if name else f"{len(entries)} images"
        names = ", ".join(sorted(map(_name, entries))) or "none"
        raise StemcellError(f"{folder} has {problem}; name one of: {names}")
    digest = str(chosen[0].get("digest"))
    if chosen[0].get("mediaType") in images.INDEX_TYPES:
        index = images.parse_json(_blob(folder, digest), str(folder))
        digest = images.for_platform(index, architecture, str(folder))
    return of_manifest(folder, digest)


def of_manifest(folder: Path, digest: str) -> Image:
    """Return the image of a layout with this manifest. Raises StemcellError."""
    document = _blob(folder, digest)
    manifest = images.parse_manifest(document, str(folder))
    config = _blob(folder, manifest.config)
    image = Image(folder, document, config, images.layers_of(manifest, config, str(folder)))
    for layer in image.layers:
        path = image.blob(layer.digest)
        if not path.is_file() or path.stat().st_size != layer.size:
            raise StemcellError(f"{folder} lacks the layer {layer.digest}, or a part of it")
    return image


def copy(image: Image, folder: Path) -> Image:
    """Copy an image into an empty folder, as a layout without an index."""
    begin(folder)
    for digest in (*dict(image.blobs), image.digest):
        shutil.copyfile(image.blob(digest), blob_path(folder, digest))
    return replace(image, folder=folder)


def put(image: Image, target: Path, name: str) -> None:
    """Move a new layout to `target`, or its image into an existing layout.

    It replaces an image of the same name. Raises StemcellError when `target` is something else.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        _write_index(image.folder, [_entry(image, name)])
        os.replace(image.folder, target)
        return
    entries = [entry for entry in _entries(target) if _name(entry) != name]
    (target / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    for digest in [*(digest for digest, _ in image.blobs), image.digest]:
        os.replace(image.blob(digest), blob_path(target, digest))
    _write_index(target, [*entries, _entry(image, name)])


def write_archive(image: Image, target: Path, name: str) -> None:
    """Write a new layout as a tar that `docker load`, ctr, podman and skopeo take."""
    fresh = image.folder.with_suffix(".tar")
    docker = [
        {
            "Config": _member(oci.digest(image.config)),
            "Layers": [_member(layer.digest) for layer in image.layers],
            "RepoTags": [_repository_tag(image, name)],
        }
    ]
    _write_index(image.folder, [_entry(image, name)])
    (image.folder / _DOCKER_INDEX).write_bytes(oci.canonical(docker))
    blobs = sorted(_member(digest) for digest in {image.digest, *dict(image.blobs)})
    with tarfile.open(fresh, "x", format=tarfile.PAX_FORMAT) as tar:
        for member in (*blobs, _INDEX, _DOCKER_INDEX, _VERSION):
            info = tarfile.TarInfo(member)
            info.mode, info.size = 0o644, (image.folder / member).stat().st_size
            with (image.folder / member).open("rb") as file:
                tar.addfile(info, file)
    os.replace(fresh, target)


def open_archive(archive: Path, folder: Path) -> None:
    """Unpack an archive of a layout into an empty folder. Raises StemcellError."""
    begin(folder)
    wanted = (_INDEX, _VERSION)
    try:
        with (
            archive.open("rb") as stream,
            tars.opened(stream, str(archive), zipped=False) as members,
        ):
            for member, content in members:
                name = member.name.removeprefix("./")
                digest = name.removeprefix("blobs/sha256/")
                # Holes would let a small archive unpack to any size.
                if content is None or member.issparse():
                    continue
                if not (name in wanted or images.is_digest(f"sha256:{digest}")):
                    continue
                target = folder / name if name in wanted else blob_path(folder, f"sha256:{digest}")
                with target.open("xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except FileExistsError as error:
        raise StemcellError(f"{archive} is no archive of an OCI image: {error}") from None
    except OSError as error:
        raise StemcellError(f"cannot unpack {archive}: {error.strerror or error}") from None


def _member(digest: str) -> str:
    return f"blobs/sha256/{digest.partition(':')[2]}"


def _repository_tag(image: Image, name: str) -> str:
    """Return the name for `docker load`: the stemcell's own, without invalid characters."""
    stemcell = oci.stemcell_of(image.labels)
    repository = re.sub(r"[^a-z0-9]+", "-", stemcell.name.lower()).strip("-") or "stemcell"
    tag = re.sub(r"[^A-Za-z0-9._-]+", "-", stemcell.version or name).lstrip(".-")[:128]
    return f"{repository}:{tag or DEFAULT_NAME}"


def _entries(folder: Path) -> list[dict[str, Any]]:
    index = images.parse_json(_read(folder / _INDEX, str(folder)), str(folder))
    return images.objects_in(index.get("manifests"))


def _name(entry: dict[str, Any]) -> str:
    annotations = entry.get("annotations")
    return str(annotations.get(_REF_NAME, "")) if isinstance(annotations, dict) else ""


def _entry(image: Image, name: str) -> dict[str, Any]:
    return {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.manifest),
        "platform": {"architecture": image.architecture, "os": "linux"},
        "annotations": {_REF_NAME: name},
    }


def _write_index(folder: Path, entries: list[dict[str, Any]]) -> None:
    (folder / _VERSION).write_text(json.dumps(_VERSION_DOCUMENT))
    index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": entries}
    fresh = folder / f".{_INDEX}"
    fresh.write_bytes(oci.canonical(index))
    os.replace(fresh, folder / _INDEX)


def _blob(folder: Path, digest: str) -> bytes:
    data = _read(blob_path(folder, digest), str(folder))
    if oci.digest(data) != digest:
        raise StemcellError(f"{folder}: the blob {digest} is damaged")
    return data


def _read(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(images.DOCUMENT_LIMIT)
    except OSError as error:
        raise StemcellError(
            f"{source} is no OCI image layout, or is not whole ({path.name}: {error.strerror})"
        ) from None
