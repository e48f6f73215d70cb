"""Packs a folder into a tar.gz, with the same bytes for the same files."""

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip

from stemcell_convert import oci
from stemcell_convert.programs import ENVIRONMENT, last_lines
from stemcell_convert.report import Progress
from stemcell_convert.stemcell_errors import StemcellError
from stemcell_convert.streams import CHUNK, Written, widen

_LEVEL = 1  # of igzip: as fast as the disk, and a third of the size

# Names sorted and only the files' mtimes, so that the bytes depend only on the disk. Its extended
# attributes, file capabilities among them, and holes are kept.
_TAR = (
    "tar",
    "--create",
    "--file=-",
    "--format=posix",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    "--sort=name",
    "--numeric-owner",
    "--acls",
    "--xattrs",
    "--xattrs-include=security.*",
    "--xattrs-include=user.*",
    "--sparse",
    "--sparse-version=0.0",  # the later ones write the process id of tar into names
    "--one-file-system",
    "--anchored",
    "--exclude=./lost+found",
)


@dataclass(frozen=True)
class Rootfs:
    """A root file system as a tar.gz: digest and size (bytes) of the file, diff ID of the tar."""

    path: Path
    digest: str
    size: int
    diff_id: str

    @property
    def layer(self) -> oci.Layer:
        """The file as a layer."""
        return oci.Layer(oci.LAYER_GZIP, self.digest, self.size, self.diff_id)


def pack(root: Path, target: Path, show: Progress) -> Rootfs:
    """Pack a folder, a file system's root, into a new tar.gz. Raises StemcellError."""
    space = os.statvfs(root)
    total = (space.f_blocks - space.f_bfree) * space.f_frsize
    sha, done = hashlib.sha256(), 0
    # A pipe for its stderr could fill up and block both.
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            [*_TAR, f"--directory={root}", "."],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=ENVIRONMENT,
        ) as tar,
    ):
        try:
            written = Written(target)
            # No name and no time in the gzip header: they would differ each time.
            with (
                written.file,
                igzip.IGzipFile(
                    filename="", mode="wb", compresslevel=_LEVEL, fileobj=written, mtime=0
                ) as zipped,
            ):
                stream = cast(BinaryIO, tar.stdout)
                widen(stream.fileno())
                while data := stream.read(CHUNK):
                    sha.update(data)
                    zipped.write(data)
                    done += len(data)
                    show(min(done, total), total)
        except BaseException:
            tar.kill()
            raise
        if tar.wait():
            raise StemcellError(f"the root file system cannot be packed: {last_lines(stderr)}")
    return Rootfs(target, written.digest, written.size, f"sha256:{sha.hexdigest()}")
