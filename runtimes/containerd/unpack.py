"""Unpacks a stemcell's root file system while its bytes go into the content store.

containerd would do it after the last byte is stored, in one thread. Here decompression, hashing and
tar(1) run side by side, so importing costs little more than writing the files.
"""

import hashlib
import subprocess
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip, igzip_lib

from cpi.process import ENVIRONMENT
from stemcell_convert.errors import StemcellError

CHUNK = 1 << 20  # bytes

# GNU tar never follows a link of the archive out of the folder: absolute links and those with ".."
# are made last. Names of whiteouts mean nothing in a first layer, and containerd drops them too.
# Of the extended attributes, `trusted.*` are overlayfs' own and no stemcell's business.
_TAR = (
    "tar",
    "--extract",
    "--file=-",
    "--numeric-owner",
    "--same-owner",
    "--same-permissions",
    "--delay-directory-restore",
    "--acls",
    "--xattrs",
    "--xattrs-include=security.*",
    "--xattrs-include=user.*",
    "--exclude=.wh.*",
    "--warning=no-unknown-keyword",
    "--warning=no-timestamp",
)


def unpack(image: Path, folder: Path) -> str:
    """Unpack a tar.gz into a folder and return its diff ID (sha256 of the tar in it).

    Raises StemcellError, naming the file and the reason, when it is cut short or damaged.
    """
    with subprocess.Popen(
        [*_TAR, f"--directory={folder}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as tar:
        try:
            digest = _feed(image, cast(BinaryIO, tar.stdin))
        except BrokenPipeError:
            digest = ""  # tar ended early, and says why
        except BaseException:
            tar.kill()
            raise
        _, errors = tar.communicate()
    if tar.returncode or not digest:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise StemcellError(f"{image} cannot be unpacked: {'; '.join(lines[-3:]) or 'tar failed'}")
    return digest


def _feed(image: Path, pipe: BinaryIO) -> str:
    sha = hashlib.sha256()
    try:
        with igzip.open(image, "rb") as stream:
            while data := stream.read(CHUNK):
                sha.update(data)
                pipe.write(data)
    # igzip_lib's stub calls its exception class a value.
    except (EOFError, igzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise StemcellError(f"{image} is cut short or damaged: {error}") from None
    return f"sha256:{sha.hexdigest()}"
