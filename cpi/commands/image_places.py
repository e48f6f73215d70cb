"""Where the `stemcell` commands read from and write to."""

from dataclasses import dataclass
from pathlib import Path

from cpi.errors import CloudError
from runtimes import catalog

FILE, RUNTIME = "file", "runtime"
LAYOUT, ARCHIVE = "oci", "oci-archive"
LAYOUTS = (LAYOUT, ARCHIVE)


@dataclass(frozen=True)
class Place:
    """kind: oci, oci-archive, file, or runtime; name: of the image, or of the runtime."""

    kind: str
    path: Path
    name: str = ""

    def __str__(self) -> str:
        name = f":{self.name}" if self.name else ""
        return f"{self.kind}:{self.path}{name}"


def place(text: str) -> Place:
    """Read a place as skopeo writes them, `oci:FOLDER[:NAME]`; anything else is a file."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in LAYOUTS:
        return Place(FILE, Path(text))
    path, _, name = rest.partition(":")
    if not path:
        raise CloudError(f"{text!a} names no file; it looks like {kind}:PATH or {kind}:PATH:NAME")
    return Place(kind, Path(path), name)


def destination(text: str) -> Place:
    """Read a place to write to. Raises CloudError naming those there are."""
    if text in catalog.REGISTRY:
        return Place(RUNTIME, Path(), text)
    found = place(text)
    if found.kind == FILE:
        there = ", ".join([*(f"{kind}:PATH" for kind in LAYOUTS), *catalog.REGISTRY])
        raise CloudError(f"{text!a} is no destination; there are: {there}")
    return found
