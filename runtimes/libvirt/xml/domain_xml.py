"""libvirt's documents about VMs: the domain, its disks and interfaces, and our facts in it.

Pure, and without policy: what to render has been decided (formatdomain.html). Names are escaped by
ElementTree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as Xml

from runtimes.libvirt.xml.elements import add_text, parsed, rendered

NAMESPACE = "https://github.com/cloudfoundry/bosh-containerd-cpi/domain/1"
PREFIX = "bosh"
_PERIOD = 100_000  # microseconds: the kernel's default period of CPU quotas
_HOTPLUG_PORTS = 16  # of machines whose PCI Express slots must be there before they are used


@dataclass(frozen=True)
class DomainDisk:
    """A disk of a domain. path: on libvirt's machine; target: vda and the like; serial: or "".

    discard: whether the host gets back what the VM deletes. backing: path and format of what it is
    a clone of.
    """

    path: str
    format: str
    target: str
    bus: str
    serial: str = ""
    device: str = "disk"
    read_only: bool = False
    discard: bool = True
    backing: tuple[str, str] | None = None


@dataclass(frozen=True)
class Interface:
    """A network interface on a bridge of the host or a libvirt network.

    mtu: bytes, or None. target: the name of the bridge's port, or "" for one of libvirt's choice.
    """

    mac: str
    model: str
    bridge: str = ""
    network: str = ""
    mtu: int | None = None
    target: str = ""


@dataclass(frozen=True)
class Facts:
    """What the CPI keeps in a domain's metadata; no secrets.

    stemcell: its CID; settings, resolution: what its agent expects (see machine_agent);
    filesystem: what its disks should have, or ""; complete: it was started; metadata: BOSH's own.
    """

    stemcell: str = ""
    settings: str = ""
    resolution: str = ""
    filesystem: str = ""
    complete: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Domain:
    """A VM to define. cpu: CPUs; memory: MiB; console: a file for what it prints, or ""."""

    name: str
    type: str
    machine: str
    firmware: str
    cpu_model: str
    cpu: float
    memory: int
    disks: tuple[DomainDisk, ...]
    interfaces: tuple[Interface, ...]
    console: str
    facts: Facts


def domain(wanted: Domain) -> str:
    """Render a domain."""
    root = Xml.Element("domain", type=wanted.type)
    add_text(root, "name", wanted.name)
    Xml.register_namespace(PREFIX, NAMESPACE)
    Xml.SubElement(root, "metadata").append(_facts(wanted.facts, f"{{{NAMESPACE}}}vm"))
    add_text(root, "memory", str(wanted.memory), unit="MiB")
    count = max(1, -int(-wanted.cpu // 1))
    add_text(root, "vcpu", str(count))
    if wanted.cpu != count:
        tune = Xml.SubElement(root, "cputune")
        add_text(tune, "global_period", str(_PERIOD))
        add_text(tune, "global_quota", str(max(1000, round(wanted.cpu * _PERIOD))))
    system = Xml.SubElement(root, "os", {"firmware": "efi"} if wanted.firmware == "uefi" else {})
    machine = {"machine": wanted.machine} if wanted.machine else {}
    add_text(system, "type", "hvm", **machine)
    if wanted.firmware == "uefi":  # it does not trust the signatures of stemcells' boot loaders
        loader = Xml.SubElement(system, "firmware")
        Xml.SubElement(loader, "feature", enabled="no", name="secure-boot")
    Xml.SubElement(system, "boot", dev="hd")
    features = Xml.SubElement(root, "features")
    Xml.SubElement(features, "acpi")
    Xml.SubElement(features, "apic")
    _cpu(root, wanted.cpu_model)
    Xml.SubElement(root, "clock", offset="utc")
    add_text(root, "on_poweroff", "destroy")
    add_text(root, "on_reboot", "restart")
    add_text(root, "on_crash", "restart")
    _devices(Xml.SubElement(root, "devices"), wanted)
    return rendered(root)


def _cpu(root: Xml.Element, model: str) -> None:
    if model == "host":
        Xml.SubElement(root, "cpu", mode="host-passthrough")
    elif model:
        cpu = Xml.SubElement(root, "cpu", mode="custom", match="exact")
        add_text(cpu, "model", model, fallback="forbid")


def _devices(devices: Xml.Element, wanted: Domain) -> None:
    for disk in wanted.disks:
        devices.append(_disk(disk))
    if any(disk.bus == "scsi" for disk in wanted.disks):
        Xml.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    if wanted.machine not in ("", "pc") and not wanted.machine.startswith("pc-i440fx"):
        Xml.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
        for index in range(1, _HOTPLUG_PORTS + 1):
            Xml.SubElement(
                devices, "controller", type="pci", index=str(index), model="pcie-root-port"
            )
    for interface in wanted.interfaces:
        devices.append(interface_element(interface))
    if wanted.console:
        serial = Xml.SubElement(devices, "serial", type="file")
        Xml.SubElement(serial, "source", path=wanted.console, append="on")
        Xml.SubElement(serial, "target", port="0")
    Xml.SubElement(devices, "memballoon", model="none")
    rng = Xml.SubElement(devices, "rng", model="virtio")  # or first keys wait for entropy
    add_text(rng, "backend", "/dev/urandom", model="random")


def disk(wanted: DomainDisk) -> str:
    """Render a disk, to attach or detach."""
    return rendered(_disk(wanted))


def _disk(wanted: DomainDisk) -> Xml.Element:
    root = Xml.Element("disk", type="file", device=wanted.device)
    driver = Xml.SubElement(root, "driver", name="qemu", type=wanted.format)
    if wanted.discard and not wanted.read_only:
        driver.set("discard", "unmap")  # what the VM deletes, the host gets back
    Xml.SubElement(root, "source", file=wanted.path)
    if wanted.backing:
        root.append(_backing_store(*wanted.backing))
    Xml.SubElement(root, "target", dev=wanted.target, bus=wanted.bus)
    if wanted.read_only:
        Xml.SubElement(root, "readonly")
    if wanted.serial:
        add_text(root, "serial", wanted.serial)
    return root


def _backing_store(path: str, format_: str) -> Xml.Element:
    """Name the only backing file of a clone.

    AppArmor lets a VM open what its document names: libvirt's helper that writes the profile may
    not read the clone's own header.
    """
    root = Xml.Element("backingStore", type="file")
    Xml.SubElement(root, "format", type=format_)
    Xml.SubElement(root, "source", file=path)
    Xml.SubElement(root, "backingStore")
    return root


def interface_element(wanted: Interface) -> Xml.Element:
    """Return the element of a network interface."""
    root = Xml.Element("interface", type="network" if wanted.network else "bridge")
    Xml.SubElement(root, "mac", address=wanted.mac)
    if wanted.network:
        Xml.SubElement(root, "source", network=wanted.network)
    else:
        Xml.SubElement(root, "source", bridge=wanted.bridge)
    if wanted.target:
        Xml.SubElement(root, "target", dev=wanted.target)
    Xml.SubElement(root, "model", type=wanted.model)
    if wanted.mtu is not None:
        Xml.SubElement(root, "mtu", size=str(wanted.mtu))
    return root


# The facts in the domain's metadata


def facts(wanted: Facts) -> str:
    """Render the element for setMetadata, which adds the namespace itself."""
    return rendered(_facts(wanted, "vm"))


def _facts(wanted: Facts, tag: str) -> Xml.Element:
    root = Xml.Element(tag, complete="yes" if wanted.complete else "no")
    add_text(root, "stemcell", wanted.stemcell)
    add_text(root, "settings", wanted.settings)
    add_text(root, "resolution", wanted.resolution)
    add_text(root, "filesystem", wanted.filesystem)
    for key, value in wanted.metadata.items():
        add_text(root, "metadata", _printable(value), key=_printable(key))
    return root


def read_facts(document: str) -> Facts:
    """Read what `facts` rendered. Raises ValueError for anything else."""
    try:
        root = parsed(document)
    except Xml.ParseError as error:
        raise ValueError(f"metadata that is no XML: {error}") from None
    return Facts(
        stemcell=root.findtext("stemcell") or "",
        settings=root.findtext("settings") or "",
        resolution=root.findtext("resolution") or "",
        filesystem=root.findtext("filesystem") or "",
        complete=root.get("complete") == "yes",
        metadata={entry.get("key", ""): entry.text or "" for entry in root.iter("metadata")},
    )


@dataclass(frozen=True)
class Attached:
    """A disk that a domain has: its file, and its names there."""

    path: str
    target: str
    bus: str
    serial: str


def attached(document: str) -> list[Attached]:
    """Return the disks in a domain's document, without CD-ROMs."""
    root = parsed(document)
    disks = []
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or disk.get("device", "disk") != "disk":
            continue
        disks.append(
            Attached(
                path="" if source is None else source.get("file", ""),
                target=target.get("dev", ""),
                bus=target.get("bus", ""),
                serial=disk.findtext("serial") or "",
            )
        )
    return disks


def targets(document: str) -> list[str]:
    """Return the target names of a domain's disks and CD-ROMs."""
    root = parsed(document)
    return [target.get("dev", "") for target in root.iterfind("devices/disk/target")]


def free_target(bus: str, taken: list[str]) -> str:
    """Return the first free name for a disk on a bus: vda, vdb, …, vdz, vdaa."""
    stem = {"virtio": "vd", "ide": "hd"}.get(bus, "sd")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    names = [*letters, *(first + second for first in letters for second in letters)]
    return next(name for suffix in names if (name := f"{stem}{suffix}") not in taken)


def _printable(text: str) -> str:
    """Return text without the characters that XML 1.0 cannot have."""
    return "".join(
        character if character in "\t\n\r" or character >= " " else "\ufffd"
        for character in text
        if not "\ud800" <= character <= "\udfff" and character not in "\ufffe\uffff"
    )
