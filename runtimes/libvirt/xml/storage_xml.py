"""libvirt's documents about storage: pools, volumes and backups. Pure (formatstorage.html)."""

from dataclasses import dataclass
from xml.etree import ElementTree as Xml

PRIVATE = "0600"
# Read by whatever user runs the hypervisor; written by its owner, as without root libvirt has to.
SHARED = "0644"


@dataclass(frozen=True)
class Volume:
    """A volume to make. capacity: bytes; backing: path and format of what it is a clone of."""

    name: str
    capacity: int
    format: str = "raw"
    backing: tuple[str, str] | None = None
    mode: str = PRIVATE


def pool(name: str, path: str) -> str:
    """A pool that is a folder."""
    root = Xml.Element("pool", type="dir")
    _text(root, "name", name)
    target = Xml.SubElement(root, "target")
    _text(target, "path", path)
    # Others may pass through to files that are theirs: the hypervisor has a user of its own.
    _text(Xml.SubElement(target, "permissions"), "mode", "0711")
    return _shown(root)


def volume(wanted: Volume) -> str:
    """A volume, which takes its room when it is written."""
    root = Xml.Element("volume")
    _text(root, "name", wanted.name)
    _text(root, "capacity", str(wanted.capacity), unit="bytes")
    _text(root, "allocation", "0", unit="bytes")
    target = Xml.SubElement(root, "target")
    Xml.SubElement(target, "format", type=wanted.format)
    _text(Xml.SubElement(target, "permissions"), "mode", wanted.mode)
    if wanted.backing:
        path, kind = wanted.backing
        backing = Xml.SubElement(root, "backingStore")
        _text(backing, "path", path)
        Xml.SubElement(backing, "format", type=kind)
    return _shown(root)


def backup(disks: list[str], device: str, path: str, kind: str) -> str:
    """A copy of one disk of a running domain, as it is now, into a volume that is there.

    disks: the target names of all the domain's disks; device: the one to copy.
    """
    root = Xml.Element("domainbackup", mode="push")
    parent = Xml.SubElement(root, "disks")
    for name in disks:
        if name != device:
            Xml.SubElement(parent, "disk", name=name, backup="no")
            continue
        disk = Xml.SubElement(parent, "disk", name=name, backup="yes", type="file")
        Xml.SubElement(disk, "driver", type=kind)
        Xml.SubElement(disk, "target", file=path)
    return _shown(root)


def _text(parent: Xml.Element, tag: str, text: str, **attributes: str) -> None:
    Xml.SubElement(parent, tag, attributes).text = text


def _shown(root: Xml.Element) -> str:
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode")
