"""Errors and documents of the FAKE VirtualBox driver (see fake_vbox.py)."""

import re
import subprocess
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

import libvirt  # noqa: TID253 (for its errors)

SCHEMA = "/usr/share/libvirt/schemas/domain.rng"

NONE, DOMAIN, VBOX = 0, 20, 25  # virErrorDomain
OFF, RUNNING, ABORTED = "PoweredOff", "Running", "Aborted"
_CONTROLLERS = ("fdc", "ide", "scsi", "sata")
_NICS = 8  # of a PIIX3; more are ignored
_PORTS = 30


def error(code: int, domain: int, message: str) -> libvirt.libvirtError:
    """Return libvirt's exception, as its Python binding makes it."""
    made = libvirt.libvirtError(message)
    made.args = (message,)
    made.err = (code, domain, message, 2, "%s", message, None, -1, -1)
    return made


def internal(message: str) -> libvirt.libvirtError:
    return error(libvirt.VIR_ERR_INTERNAL_ERROR, VBOX, f"internal error: {message}")


def failed(message: str) -> libvirt.libvirtError:
    return error(libvirt.VIR_ERR_OPERATION_FAILED, VBOX, f"operation failed: {message}")


def unsupported(message: str) -> libvirt.libvirtError:
    text = f"unsupported configuration: {message}"
    return error(libvirt.VIR_ERR_CONFIG_UNSUPPORTED, VBOX, text)


def unknown() -> libvirt.libvirtError:
    """Return libvirt's error of a driver that fails without a message."""
    return error(
        libvirt.VIR_ERR_INTERNAL_ERROR, NONE, "An error occurred, but the cause is unknown"
    )


def no_domain(message: str) -> libvirt.libvirtError:
    return error(libvirt.VIR_ERR_NO_DOMAIN, VBOX, f"Domain not found: {message}")


@dataclass
class VBoxMachine:
    """The state that VirtualBox keeps of a domain."""

    name: str
    uuid: str
    memory: int  # KiB
    vcpus: int
    features: set[str]
    disks: dict[int, tuple[str, str]]  # by port: device and path
    interfaces: list[tuple[str, str, str]]  # type, MAC and source
    console: str
    state: str = OFF
    held: int = 0  # how many calls it is still locked for, once it is off
    slow: int = 0  # how often it is asked before it has shut down


def validate(document: str) -> None:
    argv = ["xmllint", "--noout", "--relaxng", SCHEMA, "-"]
    done = subprocess.run(argv, input=document.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def parse(document: str) -> VBoxMachine:
    root = Xml.fromstring(document)  # noqa: S314 (ours)
    devices = root.find("devices")
    assert devices is not None
    if root.find("os").get("firmware"):  # type: ignore[union-attr]
        raise AssertionError("the driver loses firmware without a word")
    controllers = [controller.get("type") for controller in devices.iterfind("controller")]
    for controller_type in controllers:
        if controller_type not in _CONTROLLERS:
            raise unsupported(f"The vbox driver does not support {controller_type} controller type")
        if controllers.count(controller_type) > 1:
            raise internal(
                "Failed to add storage controller (name: SATA Controller, busType: 2), rc=80bb000c"
            )
    disks: dict[int, tuple[str, str]] = {}
    for disk in devices.iterfind("disk"):
        port, device, path = _disk(disk)
        if port in disks or not 0 <= port < _PORTS:
            raise internal(f"Could not attach the file as harddisk: {path}, rc=80070057")
        disks[port] = (device, path)
    interfaces = [_interface(interface) for interface in devices.iterfind("interface")][:_NICS]
    serial = devices.find("serial[@type='file']/source")
    assert root.findtext("memory")
    unit = {"KiB": 1, "MiB": 1 << 10}[root.find("memory").get("unit", "KiB")]  # type: ignore[union-attr]
    return VBoxMachine(
        name=root.findtext("name") or "",
        uuid=root.findtext("uuid") or "",
        memory=int(root.findtext("memory") or 0) * unit,
        vcpus=int(root.findtext("vcpu") or 0),
        features={feature.tag for feature in root.iterfind("features/*")},
        disks=disks,
        interfaces=interfaces,
        console="" if serial is None else serial.get("path", ""),
    )


def _disk(disk: Xml.Element) -> tuple[int, str, str]:
    """Return port, device and path, checked in the driver's order."""
    disk_type, device = disk.get("type"), disk.get("device", "disk")
    if disk_type != "file":
        raise unsupported(f"Unsupported storage type {disk_type}, the only supported type is file")
    source, target, address = disk.find("source"), disk.find("target"), disk.find("address")
    assert source is not None
    assert target is not None
    if device not in ("disk", "cdrom", "floppy"):
        raise unsupported(f"The vbox driver does not support {device} disk device")
    bus = target.get("bus")
    if bus not in ("ide", "sata", "scsi", "fdc"):
        raise unsupported(f"The vbox driver does not support {bus} bus type")
    if bus != "sata":  # needs models that no document of ours has
        raise unsupported("Unexpected IDE controller model -1")
    assert disk.find("serial") is None, "the driver loses serials without a word"
    assert disk.find("readonly") is None, "an immutable disk forgets what is written"
    assert address is not None, "libvirt's own addresses end at the sixth disk"
    assert address.get("controller") == "0"
    return int(address.get("unit", "")), device, source.get("file", "")


def _interface(nic: Xml.Element) -> tuple[str, str, str]:
    nic_type, source, mac = nic.get("type", ""), nic.find("source"), nic.find("mac")
    assert nic_type in ("bridge", "network", "internal", "user"), "others silently become NAT"
    assert mac is not None
    address = mac.get("address", "")
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", address)
    assert not int(address[:2], 16) & 1, "VirtualBox ignores a multicast address"
    return nic_type, address, "" if source is None else source.get(nic_type, "")


def dump(machine: VBoxMachine) -> str:
    """Return the driver's document of a machine, with target names made by counting."""
    root = Xml.Element("domain", type="vbox")
    for tag, text in (("name", machine.name), ("uuid", machine.uuid)):
        Xml.SubElement(root, tag).text = text
    Xml.SubElement(root, "memory", unit="KiB").text = str(machine.memory)
    Xml.SubElement(root, "vcpu").text = str(machine.vcpus)
    Xml.SubElement(Xml.SubElement(root, "os"), "type").text = "hvm"
    devices = Xml.SubElement(root, "devices")
    for index, (port, (device, path)) in enumerate(sorted(machine.disks.items())):
        disk = Xml.SubElement(devices, "disk", type="file", device=device)
        Xml.SubElement(disk, "source", file=path)
        Xml.SubElement(disk, "target", dev=f"sd{chr(ord('a') + index)}", bus="sata")
        Xml.SubElement(disk, "address", type="drive", controller="0", bus="0", unit=str(port))
    for interface_type, mac, source in machine.interfaces:
        interface = Xml.SubElement(devices, "interface", type=interface_type)
        Xml.SubElement(interface, "mac", address=mac)
        Xml.SubElement(interface, "source", {interface_type: source})
    return Xml.tostring(root, encoding="unicode")
