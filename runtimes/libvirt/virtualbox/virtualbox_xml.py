"""The domain's document as libvirt's VirtualBox driver supports it.

Pure. All disks are on one SATA controller, with an address each: the driver makes no second one,
which its own addresses would need from the seventh disk on.
"""

import re
from dataclasses import replace
from xml.etree import ElementTree as Xml

from cpi.errors import NotSupported
from runtimes.libvirt.virtualbox.media import uuid_of
from runtimes.libvirt.xml.domain_xml import Domain, DomainDisk, free_target, interface_element
from runtimes.libvirt.xml.elements import add_text, parsed, rendered

_PORTS = 30  # of the controller


def domain(wanted: Domain) -> str:
    """Render a domain. Raises NotSupported for more disks than there are ports."""
    root = Xml.Element("domain", type=wanted.type)
    add_text(root, "name", wanted.name)
    add_text(root, "uuid", str(uuid_of(wanted.name)))
    add_text(root, "memory", str(wanted.memory << 10), unit="KiB")
    add_text(root, "vcpu", str(int(wanted.cpu)))
    system = Xml.SubElement(root, "os")
    add_text(system, "type", "hvm")
    Xml.SubElement(system, "boot", dev="hd")
    features = Xml.SubElement(root, "features")
    for name in ("acpi", "apic", "pae"):  # what is absent is off
        Xml.SubElement(features, name)
    devices = Xml.SubElement(root, "devices")
    Xml.SubElement(devices, "controller", type="sata", index="0")
    for disk in wanted.disks:
        devices.append(_disk(disk))
    for interface in wanted.interfaces:
        devices.append(interface_element(replace(interface, mtu=None, target="")))
    if wanted.console:
        serial = Xml.SubElement(devices, "serial", type="file")
        Xml.SubElement(serial, "source", path=wanted.console)
        Xml.SubElement(serial, "target", port="0")
    return rendered(root)


def _disk(wanted: DomainDisk) -> Xml.Element:
    root = Xml.Element("disk", type="file", device=wanted.device)
    Xml.SubElement(root, "source", file=wanted.path)
    Xml.SubElement(root, "target", dev=wanted.target, bus=wanted.bus)
    port = _port(wanted.target)
    if port >= _PORTS:
        raise NotSupported(f"a VM has at most {_PORTS} disks in VirtualBox, CD-ROMs included")
    Xml.SubElement(
        root, "address", type="drive", controller="0", bus="0", target="0", unit=str(port)
    )
    return root


def _port(target: str) -> int:
    taken: list[str] = []
    while (name := free_target("sata", taken)) != target:
        taken.append(name)
    return len(taken)


# Changes of a rendered document


def with_disk(document: str, path: str, format_: str, bus: str) -> str:
    """Add a disk to a document, at the first free port. Raises NotSupported."""
    root, devices = _domain_and_devices(document)
    taken = [target.get("dev", "") for target in devices.iterfind("disk/target")]
    devices.append(_disk(DomainDisk(path, format_, free_target(bus, taken), bus)))
    return rendered(root)


def without_disk(document: str, path: str) -> str:
    """Remove the disk in that file from a document; the others keep their ports."""
    root, devices = _domain_and_devices(document)
    for disk in devices.findall("disk"):
        if _source(disk) == path:
            devices.remove(disk)
    return rendered(root)


def has_disk(document: str, path: str) -> bool:
    """Tell whether a document has a disk in that file."""
    _, devices = _domain_and_devices(document)
    return any(_source(disk) == path for disk in devices.iterfind("disk"))


def lost(document: str, defined: str) -> str:
    """Return in words what a domain lacks of its document; "" for nothing.

    The driver reports some failures only in its log, and defines the rest.
    """
    wanted, got = _figures(document), _figures(defined)
    return ", ".join(
        f"{name} {value}, not {got[name]}" for name, value in wanted.items() if got[name] != value
    )


_UNITS = {"b": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _figures(document: str) -> dict[str, object]:
    root, devices = _domain_and_devices(document)
    memory = root.find("memory")
    unit = 0 if memory is None else _UNITS.get(memory.get("unit", "KiB"), 0)
    return {
        "memory (MiB)": int(root.findtext("memory") or 0) * unit >> 20,
        "CPUs": int(root.findtext("vcpu") or 0),
        "disks": sorted(_source(disk) for disk in devices.iterfind("disk")),
        "interfaces": sorted(
            re.sub("[^0-9a-f]", "", mac.get("address", "").lower())
            for mac in devices.iterfind("interface/mac")
        ),
    }


def _source(disk: Xml.Element) -> str:
    source = disk.find("source")
    return "" if source is None else source.get("file", "")


def _domain_and_devices(document: str) -> tuple[Xml.Element, Xml.Element]:
    """Return a domain and its devices."""
    root = parsed(document)
    devices = root.find("devices")
    return root, Xml.SubElement(root, "devices") if devices is None else devices
