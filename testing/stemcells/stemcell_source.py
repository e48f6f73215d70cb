"""The stemcell of the demo and the benchmarks: a given tarball, or one made and cached."""

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
        """The properties of create_stemcell that a CPI uses."""
        return {"name": self.name, "version": self.version}


def stand_in(init: str) -> Path:
    """Return a small stemcell with our stand-in agent, making it unless it is cached.

    Its name holds a hash of what it is made from. Raises StemcellUnusable.
    """
    folder = Path(__file__).parent
    sources = [folder / "make_stemcell.py", folder / "stemcell_rootfs.py"]
    sources += (REPOSITORY / AGENT).glob("stand_in*.py")
    sources += [path for path in (folder / "stemcell_files").rglob("*") if path.is_file()]

    def make(output: Path) -> None:
        if make_stemcell.main(["--init", init, "--output", str(output)]):
            raise StemcellUnusable("no stemcell could be made; give one with --stemcell")

    return kept(f"stand-in-{init}", sources, make)


def kept(name: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """Return the stemcell that `make` writes to a path, making it unless it is cached.

    Its name has `name` and a hash of `sources`; older ones are removed. Raises what `make` does.
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
    """Return a short hash of files (names below `base`, modes, content), in any order."""
    sha = hashlib.sha256()
    for path in sorted(sources):
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o111
        sha.update(f"{path.relative_to(base)} {mode:o} {len(content)}\n".encode() + content)
    return sha.hexdigest()[:_KEY_DIGITS]


def opened(tarball: Path, folder: Path) -> Stemcell:
    """Take `image` and `stemcell.MF` out of a stemcell into a folder. Raises StemcellUnusable.

    The members' bytes are copied to files that we name, so that the archive does not decide where
    anything is written.
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
    """Return a top-level string of a stemcell.MF, which is simple YAML; "" for none."""
    match = re.search(rf"^{key}:[ \t]*(.*?)[ \t]*$", manifest, re.MULTILINE)
    return match[1].strip("'\"") if match else ""
