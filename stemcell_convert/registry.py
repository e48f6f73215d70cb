"""Images in registries: push and pull.

Layers are streamed both ways and resumed where a connection broke. All that a registry sends is
checked against its digest.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stemcell_convert import oci, oci_image as images, oci_layout
from stemcell_convert.oci_image import DOCUMENT_LIMIT, INDEX_TYPES, MANIFEST_TYPES, Image
from stemcell_convert.reference import Reference
from stemcell_convert.registry_client import Access, RegistryClient
from stemcell_convert.report import Progress, Report
from stemcell_convert.stemcell_errors import RegistryUnreachable, StemcellError
from stemcell_convert.streams import CHUNK

_ACCEPT = {"Accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))}
_WINDOW_SECONDS, _WINDOW_BYTES = 60, 64 << 10  # a download slower than this is given up
_TRIES = 3  # of a transfer without much progress


class Registry:
    """One repository of one registry. Methods raise StemcellError and RegistryUnreachable."""

    def __init__(self, reference: Reference, access: Access, report: Report) -> None:
        self._name = reference.name
        self._report = report
        self._client = RegistryClient(reference, access)

    def manifest(self, reference: Reference) -> tuple[str, bytes]:
        """Return digest and bytes of the manifest of a reference."""
        with self._client.answer("GET", _path(reference), headers=_ACCEPT) as response:
            document = b""
            for data in response.raw.stream(CHUNK, decode_content=True):
                document += data
                if len(document) > DOCUMENT_LIMIT:
                    raise StemcellError(f"{reference}: the manifest is larger than 4 MiB")
        digest = oci.digest(document)
        if reference.digest and digest != reference.digest:
            raise StemcellError(
                f"{reference}: the registry sent a manifest whose digest is {digest}; what it has "
                "is not what the stemcell names"
            )
        return digest, document

    def require(self, reference: Reference) -> None:
        """Raise StemcellError if these credentials do not give the manifest of a reference."""
        self._client.require(_path(reference), _ACCEPT)

    def pull(self, reference: Reference, folder: Path, architecture: str) -> Image:
        """Fetch an image into an empty folder, as a layout without an index.

        architecture: OCI's name of the one to take where there are several.
        """
        try:
            image = self.look(reference, folder, architecture)
            with self._report.progress(f"pulling {self._name}") as show:
                done, total = 0, sum(layer.size for layer in image.layers)
                for digest, size in {layer.digest: layer.size for layer in image.layers}.items():
                    self._download(digest, size, image.blob(digest), _from(done, total, show))
                    done += size
            return oci_layout.finish(image)
        except OSError as error:
            raise StemcellError(f"cannot store {reference}: {error.strerror or error}") from None

    def look(self, reference: Reference, folder: Path, architecture: str) -> Image:
        """Fetch only an image's documents into an empty folder."""
        source = str(reference)
        digest, document = self.manifest(reference)
        index = images.parse_json(document, source)
        if "manifests" in index:
            digest = images.for_platform(index, architecture, source)
            _, document = self.manifest(replace(reference, tag="", digest=digest))
        manifest = images.parse_manifest(document, source)
        oci_layout.begin(folder)
        path = images.blob_path(folder, manifest.config)
        self._download(manifest.config, manifest.config_size, path, lambda done, total: None)
        config = path.read_bytes()
        return Image(folder, document, config, images.layers_of(manifest, config, source))

    def push(self, image: Image, tag: str) -> None:
        """Send an image under a tag; existing blobs are not sent."""
        with self._report.progress(f"pushing {self._name}") as show:
            done, total = 0, sum(size for _, size in image.blobs)
            for digest, size in image.blobs:
                if self._client.has_blob(digest):
                    self._report.say(f"{digest[:19]} is there already")
                else:
                    self._upload(image.blob(digest), digest, size, _from(done, total, show))
                done += size
                show(done, total)
        headers = {"Content-Type": image.media_type}
        with self._client.answer(
            "PUT", f"manifests/{tag}", headers=headers, data=image.manifest
        ) as response:
            stored = response.headers.get("Docker-Content-Digest", image.digest)
        if stored != image.digest:
            raise StemcellError(
                f"{self._name}: the registry stored the manifest as {stored}, "
                f"expected {image.digest}"
            )

    def _download(self, digest: str, size: int, target: Path, show: Progress) -> None:
        """Fetch a blob, resuming after a broken connection, and check its digest."""
        sha, done, failures, pace = hashlib.sha256(), 0, 0, _Pace(self._name)
        with target.open("xb") as file:
            while done < size or not size:
                before = done
                try:
                    with self._client.blob(digest, done) as stream:
                        for data in stream:
                            done += len(data)
                            pace.came(len(data))
                            if done > size:
                                raise StemcellError(
                                    f"{self._name}: the registry sent more than the {size} bytes "
                                    f"of {digest}"
                                )
                            sha.update(data)
                            file.write(data)
                            show(done, size)
                    if done == size:
                        break
                    raise RegistryUnreachable(f"{self._name}: the connection ended early")
                except RegistryUnreachable as error:
                    if done == before:
                        pace.restart()
                    failures = 1 if done - before >= _WINDOW_BYTES else failures + 1
                    if failures >= _TRIES:
                        raise
                    self._report.say(f"{error}; going on at byte {done} of {size}")
                    time.sleep(failures - 1)
        if f"sha256:{sha.hexdigest()}" != digest:
            raise StemcellError(
                f"{self._name}: what the registry sent as {digest} has another digest, "
                f"sha256:{sha.hexdigest()}"
            )

    def _upload(self, path: Path, digest: str, size: int, show: Progress) -> None:
        """Send a blob, from its beginning again after a broken connection."""
        for left in reversed(range(_TRIES)):
            try:
                return self._client.upload(_BlobBody(path, size, show), digest)
            except RegistryUnreachable as error:
                if not left:
                    raise
                self._report.say(f"{error}; sending {digest[:19]} again")
                time.sleep(_TRIES - 1 - left)
        return None


class _Pace:
    """Notices a download that goes on so slowly that it will not end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.restart()

    def restart(self) -> None:
        """Begin anew with the next bytes: a wait for the first ones has a deadline of its own."""
        self._since: float | None = None
        self._bytes = 0

    def came(self, count: int) -> None:
        """Note that bytes have come. Raises StemcellError when they were few for a while."""
        self._since = self._since or time.monotonic()
        self._bytes += count
        seconds = time.monotonic() - self._since
        if seconds < _WINDOW_SECONDS:
            return
        if self._bytes < _WINDOW_BYTES:
            raise StemcellError(
                f"{self._name}: the registry sent {self._bytes} bytes of a layer in {seconds:.0f} "
                f"s; one slower than {_WINDOW_BYTES >> 10} KiB in {_WINDOW_SECONDS} s is given up"
            )
        self._since, self._bytes = time.monotonic(), 0


def _path(reference: Reference) -> str:
    return f"manifests/{reference.digest or reference.tag or oci_layout.DEFAULT_NAME}"


def _from(before: int, total: int, show: Progress) -> Progress:
    return lambda done, _: show(before + done, total)


class _BlobBody:
    """A file as a request's body, which can be sent again when the registry asks for a log-in."""

    def __init__(self, path: Path, size: int, show: Progress) -> None:
        self._path, self._size, self._show = path, size, show

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        done = 0
        with self._path.open("rb") as file:
            while data := file.read(CHUNK):
                yield data
                done += len(data)
                self._show(done, self._size)
