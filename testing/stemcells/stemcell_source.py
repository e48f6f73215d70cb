"""Where the demo and the benchmark get their stemcell: a given tarball, or one made and kept."""

import fcntl
import hashlib
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from testing.repository import REPOSITORY
from testing.stemcells import make_stemcell
from testing.stemcells.stemcell_rootfs import AGENT

CACHE = REPOSITORY / ".cache" / "stemcells"
_MEMBERS = ("image", "stemcell.MF")
_KEY_DIGITS = 16


class StemcellUnusable(Exception):
    """There is no stemcell to use; the message says why."""


@dataclass(frozen=True)
class Stemcell:
    """A stemcell's image file, what its manifest says of it, and the image's size in bytes."""

    image: Path
    name: str
    version: str
    size: int

    @property
    def cloud_properties(self) -> dict[str, str]:
        """What BOSH gives to create_stemcell, as far as a CPI cares."""
        return {"name": self.name, "version": self.version}


def stand_in(init: str) -> Path:
    """Return a small stemcell with our stand-in agent, made now unless one is kept already.

    Its name holds a hash of what it is made from. Raises StemcellUnusable.
    """
    here = Path(__file__).parent
    sources = [here / "make_stemcell.py", here / "stemcell_rootfs.py"]
    sources += (REPOSITORY / AGENT).glob("stand_in*.py")
    sources += [path for path in (here / "stemcell_files").rglob("*") if path.is_file()]

    def make(output: Path) -> None:
        if make_stemcell.main(["--init", init, "--output", str(output)]):
            raise StemcellUnusable("no stemcell could be made; give one with --stemcell")

    return kept(f"stand-in-{init}", sources, make)


def kept(name: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """Return the stemcell that `make` writes to a path, made now unless it is kept already.

    It is named after `name` and what it is made from, the sources; older ones are removed. Raises
    what `make` does.
    """
    wanted = CACHE / f"{name}-{key_of(sources, REPOSITORY)}.tgz"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
        if not wanted.exists():
            make(wanted)
            for old in CACHE.glob(f"{name}-*.tgz"):
                if old != wanted:
                    old.unlink()
    return wanted


def key_of(sources: Iterable[Path], base: Path) -> str:
    """A short hash of files: their names below `base`, modes and bytes, in whatever order given."""
    sha = hashlib.sha256()
    for path in sorted(sources):
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o111
        sha.update(f"{path.relative_to(base)} {mode:o} {len(content)}\n".encode() + content)
    return sha.hexdigest()[:_KEY_DIGITS]


def opened(tarball: Path, folder: Path) -> Stemcell:
    """Take `image` and `stemcell.MF` out of a stemcell into a folder. Raises StemcellUnusable.

    The members' bytes are copied to files of our own naming, so that nothing in the archive decides
    where anything is written.
    """
    try:
        with tarfile.open(tarball) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                source = archive.extractfile(member) if name in _MEMBERS else None
                if source is not None:
                    with source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise StemcellUnusable(f"{tarball} is no stemcell: {error}") from None
    for name in _MEMBERS:
        if not (folder / name).is_file():
            raise StemcellUnusable(f"{tarball} is no stemcell: there is no {name} in it")
    manifest = (folder / "stemcell.MF").read_text(errors="replace")
    image = folder / "image"
    name, version = field_of(manifest, "name"), field_of(manifest, "version")
    return Stemcell(image, name, version, image.stat().st_size)


def field_of(manifest: str, key: str) -> str:
    """A top-level string of a stemcell.MF, which is YAML of the plainest kind; "" for none."""
    match = re.search(rf"^{key}:[ \t]*(.*?)[ \t]*$", manifest, re.MULTILINE)
    return match[1].strip("'\"") if match else ""
