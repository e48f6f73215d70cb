"""Sources and destinations of the `stemcell` commands."""

from dataclasses import dataclass
from pathlib import Path

from cpi.errors import CloudError
from runtimes import catalog

FILE, RUNTIME = "file", "runtime"
LAYOUT, ARCHIVE = "oci", "oci-archive"
LAYOUTS = (LAYOUT, ARCHIVE)


@dataclass(frozen=True)
class Place:
    """transport: oci, oci-archive, file, or runtime; name: of the image, or of the runtime."""

    transport: str
    path: Path
    name: str = ""

    def __str__(self) -> str:
        name = f":{self.name}" if self.name else ""
        return f"{self.transport}:{self.path}{name}"


def place(text: str) -> Place:
    """Parse a place in skopeo's form, `oci:FOLDER[:NAME]`; anything else is a file."""
    transport, colon, rest = text.partition(":")
    if not colon or transport not in LAYOUTS:
        return Place(FILE, Path(text))
    path, _, name = rest.partition(":")
    if not path:
        form = f"{transport}:PATH"
        raise CloudError(f"{text!a} names no file; it looks like {form} or {form}:NAME")
    return Place(transport, Path(path), name)


def destination(text: str) -> Place:
    """Parse a place to write to. Raises CloudError naming the possible ones."""
    if text in catalog.REGISTRY:
        return Place(RUNTIME, Path(), text)
    target = place(text)
    if target.transport == FILE:
        known = ", ".join([*(f"{transport}:PATH" for transport in LAYOUTS), *catalog.REGISTRY])
        raise CloudError(f"{text!a} is no destination; there are: {known}")
    return target
