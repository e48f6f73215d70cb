"""libvirt's documents about storage: pools, volumes and backups. Pure (formatstorage.html)."""

from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from runtimes.libvirt.xml.elements import add_text, rendered

PRIVATE = "0600"
# Read by the hypervisor's user; written by its owner, as libvirt without root needs to.
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
    """Render a pool that is a folder."""
    root = Xml.Element("pool", type="dir")
    add_text(root, "name", name)
    target = Xml.SubElement(root, "target")
    add_text(target, "path", path)
    # The hypervisor's own user may traverse the folder to its files.
    add_text(Xml.SubElement(target, "permissions"), "mode", "0711")
    return rendered(root)


def volume(wanted: Volume) -> str:
    """Render a volume, which is allocated as it is written."""
    root = Xml.Element("volume")
    add_text(root, "name", wanted.name)
    add_text(root, "capacity", str(wanted.capacity), unit="bytes")
    add_text(root, "allocation", "0", unit="bytes")
    target = Xml.SubElement(root, "target")
    Xml.SubElement(target, "format", type=wanted.format)
    add_text(Xml.SubElement(target, "permissions"), "mode", wanted.mode)
    if wanted.backing:
        path, format_ = wanted.backing
        backing = Xml.SubElement(root, "backingStore")
        add_text(backing, "path", path)
        Xml.SubElement(backing, "format", type=format_)
    return rendered(root)


def backup(disks: list[str], device: str, path: str, format_: str) -> str:
    """Render a backup of one disk of a running domain into an existing volume.

    disks: the target names of all the domain's disks; device: the one to copy.
    """
    root = Xml.Element("domainbackup", mode="push")
    parent = Xml.SubElement(root, "disks")
    for name in disks:
        if name != device:
            Xml.SubElement(parent, "disk", name=name, backup="no")
            continue
        disk = Xml.SubElement(parent, "disk", name=name, backup="yes", type="file")
        Xml.SubElement(disk, "driver", type=format_)
        Xml.SubElement(disk, "target", file=path)
    return rendered(root)
