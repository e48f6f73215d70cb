"""Unpacks a root file system's tar.gz as it is read.

Decompression, hashing and tar(1) run side by side, so it costs little more than writing the files.
"""

import hashlib
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip, igzip_lib

from stemcell_convert.facts import FACT_PATHS
from stemcell_convert.programs import ENVIRONMENT, last_lines
from stemcell_convert.stemcell_errors import StemcellError, over_limit
from stemcell_convert.streams import CHUNK, Readable, widen

# GNU tar never follows a link of the archive out of the folder: absolute links and those with ".."
# are made last. Names of whiteouts mean nothing in a first layer, and containerd drops them too.
# Of the extended attributes, `trusted.*` are overlayfs' own and no stemcell's business.
_ALL = (
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
# It reads 2048 blocks of 512 bytes at once, as much as the pipe holds, where it would read 20.
_BLOCKS = "--blocking-factor=2048"

# Only what read_facts reads, as any user; what is missing is ignored. A hard link becomes the file
# itself where both are wanted, else it is missing as well.
_A_LOOK = (
    "--no-same-owner",
    "--no-same-permissions",
    "--no-recursion",
    *(f"{dot}{path}" for path in FACT_PATHS for dot in (".", "")),
)
_MEMORY = 512 << 20  # bytes that tar may take; the folders of a root file system take a few MiB


def unpack(stream: Readable, name: str, folder: Path, limit: int) -> str:
    """Unpack a tar.gz into a folder and return its diff ID (sha256 of the tar in it).

    Raises StemcellError, calling it `name`, when it is cut short, damaged, or has more than `limit`
    bytes.
    """
    digest, failure = _through_tar(stream, name, folder, limit, _ALL)
    if failure or not digest:
        raise StemcellError(f"{name} cannot be unpacked: {failure or 'tar failed'}")
    return digest


def look_into(stream: Readable, name: str, folder: Path, limit: int) -> str:
    """Unpack only what read_facts reads, which needs no root; return the diff ID as well.

    Raises StemcellError as unpack does.
    """
    digest, failure = _through_tar(stream, name, folder, limit, _A_LOOK)
    if not digest:
        raise StemcellError(f"{name} cannot be read: {failure}")
    return digest


def _through_tar(
    stream: Readable, name: str, folder: Path, limit: int, options: Sequence[str]
) -> tuple[str, str]:
    """Feed tar; return the diff ID, "" if tar ended early, and tar's error."""
    # A pipe for its stderr could fill up and block both.
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            ["tar", "--extract", "--file=-", _BLOCKS, f"--directory={folder}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=ENVIRONMENT,
        ) as tar,
    ):
        # A header may have any size, and tar takes each into memory.
        with suppress(ProcessLookupError):  # it may have failed already
            resource.prlimit(tar.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        pipe = cast(BinaryIO, tar.stdin)
        widen(pipe.fileno())
        try:
            digest = _feed(stream, name, pipe, limit)
            pipe.close()
        except BrokenPipeError:
            digest = ""
        except BaseException:
            tar.kill()
            raise
        return digest, last_lines(stderr) if tar.wait() else ""


def _feed(stream: Readable, name: str, pipe: BinaryIO, limit: int) -> str:
    sha, size = hashlib.sha256(), 0
    try:
        with igzip.IGzipFile(fileobj=cast(BinaryIO, stream), mode="rb") as plain:
            while data := plain.read(CHUNK):
                size += len(data)
                if size > limit:
                    raise over_limit(f"the root file system in {name} has", limit)
                sha.update(data)
                pipe.write(data)
    # igzip_lib's stub calls its exception class a value.
    except (EOFError, igzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise StemcellError(f"{name} is cut short or damaged: {error}") from None
    return f"sha256:{sha.hexdigest()}"
