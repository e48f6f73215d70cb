"""Stand-in stemcells for the tests, the demo and benchmarks: made once, kept in the checkout."""

import hashlib
import tarfile
from pathlib import Path

from tools import make_stemcell

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / ".cache" / "stemcells"


def stand_in(init: str) -> Path:
    """Return the tarball of a stemcell with our stand-in agent; makes it when its sources changed.

    Raises RuntimeError when it cannot be made; the maker says why on stderr.
    """
    tarball = FOLDER / f"{init}-{_sources()}.tgz"
    if not tarball.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        for old in FOLDER.glob(f"{init}-*.tgz"):
            old.unlink()
        if make_stemcell.main(["--init", init, "--output", str(tarball)]) != 0:
            raise RuntimeError(f"cannot make a {init} stemcell")
    return tarball


def unpack(tarball: Path, folder: Path) -> Path:
    """Unpack a stemcell tarball as BOSH does, and return the path of its image."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tarball) as tar:
        tar.extractall(folder, filter="data")
    return folder / "image"


def _sources() -> str:
    sha = hashlib.sha256()
    sources = [*REPOSITORY.glob("tools/*stemcell*.py"), REPOSITORY / "tools/stand_in_agent.py"]
    sources += [path for path in REPOSITORY.glob("tools/stemcell_files/**/*") if path.is_file()]
    for path in sorted(sources):
        sha.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return sha.hexdigest()[:12]
