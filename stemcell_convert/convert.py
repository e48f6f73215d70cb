"""Converts a stemcell of any format to an OCI image.

The root file system of a warden stemcell is unchanged; of a disk the root partition is packed. The
same stemcell gives the same bytes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from stemcell_convert import (
    adapt,
    disk_image,
    oci,
    oci_layout,
    partitions,
    stemcell_manifest as manifests,
    tars,
)
from stemcell_convert.facts import RootfsFacts, read_facts
from stemcell_convert.gpt import Read
from stemcell_convert.inroot import Root
from stemcell_convert.oci_image import Image
from stemcell_convert.pack import Rootfs, pack
from stemcell_convert.recognise import LIGHT, ROOTFS, TARBALL, recognise
from stemcell_convert.report import Report
from stemcell_convert.stemcell_errors import LightStemcell, StemcellError, over_limit
from stemcell_convert.stemcell_manifest import Manifest
from stemcell_convert.streams import CHUNK, Source, widen
from stemcell_convert.unpack import look_into
from stemcell_convert.unwrap import unwrap

Result = TypeVar("Result")


class Mounter(Protocol):
    """Mounts a file system of a raw disk read-only in a folder while a function uses it."""

    def __call__(
        self,
        raw: Path,
        system: partitions.FileSystem,
        folder: Path,
        use: Callable[[Path], Result],
        /,
    ) -> Result: ...


@dataclass(frozen=True)
class Means:
    """The means of a conversion. limit: the most bytes that a stemcell may unpack to."""

    mounted: Mounter
    limit: int
    report: Report


@dataclass(frozen=True)
class Contents:
    """What was taken out of a stemcell: its root file system, facts and manifest.

    image_digest, image_format: of its `image`; the format in recognise's words.
    """

    rootfs: Rootfs
    facts: RootfsFacts
    image_digest: str
    image_format: str
    manifest: Manifest


def convert(stemcell: Path, folder: Path, means: Means) -> tuple[Image, Contents]:
    """Make an OCI image of a stemcell's tarball, or of its `image`, in an empty folder.

    The image is a layout below the folder, which the caller moves away before removing the rest.
    Raises StemcellError naming the file.
    """
    target = folder / "layout"
    blobs = oci_layout.begin(target)
    contents = take(stemcell, folder, means)
    layers = [contents.rootfs.layer]
    os.replace(contents.rootfs.path, blobs / contents.rootfs.digest.partition(":")[2])
    data = adapt.layer(adapt.adaptations(contents.facts))
    layers.append(oci.plain_layer(data))
    (blobs / layers[1].digest.partition(":")[2]).write_bytes(data)
    labels = oci.labels(contents.facts, contents.image_digest, contents.manifest)
    config, manifest = oci.documents(contents.facts, layers, labels)
    image = Image(target, manifest, config, tuple(layers))
    return oci_layout.finish(image), contents


def take(stemcell: Path, folder: Path, means: Means) -> Contents:
    """Take the root file system out of a stemcell's tarball or `image`. Raises StemcellError."""
    with opened(stemcell, means.report) as source:
        if recognise(source) == TARBALL:
            return _of_tarball(source, folder, means)
        contents = _of_image(source, folder, means)
    return replace(contents, manifest=beside(stemcell) or Manifest())


@contextmanager
def opened(stemcell: Path, report: Report) -> Iterator[Source]:
    """Open a stemcell's file, showing progress as it is read. Raises StemcellError."""
    try:
        with stemcell.open("rb") as file, report.progress(f"reading {stemcell.name}") as show:
            size = os.fstat(file.fileno()).st_size
            yield Source(file, str(stemcell), show=lambda done: show(done, size))
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, str(stemcell)) else ""
        raise StemcellError(
            f"cannot convert {stemcell}: {error.strerror or error}{where}"
        ) from None


def beside(image: Path) -> Manifest | None:
    """Read the stemcell.MF beside an `image`, if there is one. Raises StemcellError."""
    path = image.with_name(manifests.NAME)
    with suppress(FileNotFoundError), path.open("rb") as file:
        return manifests.parse(file.read(manifests.LIMIT + 1), str(path))
    return None


def _of_tarball(tarball: Source, folder: Path, means: Means) -> Contents:
    """Find image and manifest in a stemcell's tarball, in any order."""
    contents: Contents | None = None
    manifest: Manifest | None = None
    light = False
    with tars.opened(tarball, tarball.name, zipped=True, limit=means.limit) as members:
        for member, content in tars.files(members):
            if member == "image" and contents is None and not light:
                source = Source(content, f"{tarball.name}: image")
                light = recognise(source) == LIGHT
                contents = None if light else _of_image(source, folder, means)
            elif member == manifests.NAME:
                document = content.read(manifests.LIMIT + 1)
                manifest = manifests.parse(document, f"{tarball.name}: {member}")
    if manifest and light:
        raise LightStemcell(
            f"{tarball.name} is a light stemcell of {manifest.image or 'no image'}; "
            "`bosh-cpi stemcell pull` fetches that"
        )
    if contents is None or manifest is None:
        missing = "image" if manifest else manifests.NAME
        raise StemcellError(f"{tarball.name} has no {missing}: is this a BOSH stemcell?")
    return replace(contents, manifest=manifest)


def extract(stemcell: Path, folder: Path, means: Means) -> tuple[Path, Manifest]:
    """Unpack a stemcell's `image` and stemcell.MF into a folder, as BOSH does for a CPI.

    A bare `image` stays where it is. Raises StemcellError.
    """
    with opened(stemcell, means.report) as source:
        if recognise(source) != TARBALL:
            return stemcell, beside(stemcell) or Manifest()
        with tars.opened(source, source.name, zipped=True, limit=means.limit) as members:
            for member, content in tars.files(members):
                if member in ("image", manifests.NAME):
                    with (folder / member).open("xb") as file:
                        shutil.copyfileobj(content, file, CHUNK)
    manifest = beside(folder / "image")
    if manifest is None or not (folder / "image").exists():
        raise StemcellError(f"{stemcell} has no image or no {manifests.NAME}")
    return folder / "image", manifest


def _of_image(source: Source, folder: Path, means: Means) -> Contents:
    image_format = recognise(source)
    if image_format == LIGHT:
        raise LightStemcell(f"{source.name} is empty, as in a light stemcell")
    if image_format == ROOTFS:
        rootfs, facts = _copy(source, folder, means)
    else:
        rootfs, facts = rootfs_of_disk(source, image_format, folder, means)
    return Contents(rootfs, facts, source.drain(), image_format, Manifest())


def _copy(source: Source, folder: Path, means: Means) -> tuple[Rootfs, RootfsFacts]:
    """Copy a root file system's tar.gz, looking into it on the way."""
    target, look = folder / "rootfs.tar.gz", folder / "look"
    look.mkdir()
    inlet, outlet = os.pipe()
    with ThreadPoolExecutor(1) as pool:

        def look_in() -> str:
            with open(inlet, "rb") as pipe:
                return look_into(pipe, source.name, look, means.limit)

        looked = pool.submit(look_in)
        widen(outlet)
        # When looking ends early, result() raises.
        with suppress(BrokenPipeError), open(outlet, "wb") as pipe, target.open("xb") as file:
            while data := source.read(CHUNK):
                # Zeros after the end of a gzip are not counted by the unpacking.
                if source.size > means.limit:
                    raise over_limit(f"{source.name} has", means.limit)
                file.write(data)
                pipe.write(data)
        diff_id = looked.result()
    with Root(look) as root:
        facts = read_facts(root, source.name)
    return Rootfs(target, source.drain(), source.size, diff_id), facts


def rootfs_of_disk(
    source: Source, image_format: str, folder: Path, means: Means
) -> tuple[Rootfs, RootfsFacts]:
    """Return the root file system of the disk in a stemcell's `image` of this format.

    folder: has room for the disk twice; the caller removes what is in it. Raises StemcellError.
    """
    try:
        raw = raw_disk(source, image_format, folder, means)
        systems = file_systems(raw)
        for system in systems:
            packed = means.mounted(raw, system, folder / "root", _packer(system, folder, means))
            if packed:
                return packed
    except StemcellError as error:
        if source.name in str(error):
            raise
        raise StemcellError(f"{source.name}: {error}") from None
    raise StemcellError(
        f"{source.name}: none of the disk's file systems ({len(systems)} of ext4 or xfs) has an "
        f"/etc/os-release, so none is a root file system; besides: {_others(raw) or 'nothing'}"
    )


def raw_disk(source: Source, image_format: str, folder: Path, means: Means) -> Path:
    """Take the disk out of a stemcell's `image` of this format, as a raw file in the folder.

    A bare disk is copied as well, so that the `image` is read once. Raises StemcellError.
    """
    means.report.say(f"taking the disk out of {source.name}")
    disk = unwrap(source, image_format, folder / "disk", means.limit)
    raw = disk_image.to_raw(disk, folder / "raw", means.limit)
    if raw != disk:
        disk.unlink()
    return raw


def file_systems(raw: Path) -> list[partitions.FileSystem]:
    """Return the ext4 and xfs file systems of a raw disk, the last one first.

    Raises StemcellError when there is none, naming what the disk has.
    """
    with _reader(raw) as read:
        systems = partitions.file_systems(read, disk_image.raw_size(raw))
    if not systems:
        raise StemcellError(
            f"the disk has {_others(raw) or 'nothing known'}, and neither ext4 nor xfs, one of "
            "which a stemcell's root is on"
        )
    return systems


def _others(raw: Path) -> str:
    """Return what a disk holds that cannot be a root here, for a message."""
    with _reader(raw) as read:
        return ", ".join(partitions.others(read, disk_image.raw_size(raw)))


@contextmanager
def _reader(raw: Path) -> Iterator[Read]:
    with raw.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        yield read


def _packer(
    system: partitions.FileSystem, folder: Path, means: Means
) -> Callable[[Path], tuple[Rootfs, RootfsFacts] | None]:
    """Return what packs a mounted file system, if it is a root."""

    def packed(mounted: Path) -> tuple[Rootfs, RootfsFacts] | None:
        with Root(mounted) as root:
            if not root.exists("/etc/os-release"):
                return None
            facts = read_facts(root, "the disk's root file system")
        where = f"the {system.fstype} at {system.offset} of the disk"
        with means.report.progress(f"packing {where}") as show:
            return pack(mounted, folder / "rootfs.tar.gz", show), facts

    return packed
