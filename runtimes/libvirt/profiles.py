"""Hypervisors as data: what libvirt's driver for each can do, and how to ask for it.

Only `virtualbox` modules are specific to a hypervisor. A new one needs a Profile here, a class of
three lines in runtime.py, its configuration keys, an entry in the catalog, and a test class. See
docs/adding-a-runtime.md.
"""

from dataclasses import dataclass

from cpi.config.config import Config
from cpi.errors import NotSupported
from cpi.model import VMProperties


@dataclass(frozen=True)
class Profile:
    """One hypervisor, as libvirt's driver presents it.

    name: of the runtime. domain_types: of libvirt, the best first; the second is used when the host
    lacks the first. clone_format: of volumes that are copied on write from stemcells. disk_format:
    of persistent disks that the hypervisor opens. bus: of disks whose stemcell resolves "virtio"
    and "scsi" paths. settings_device: type and bus of the device with the settings. nic: the model
    of network interfaces.

    What its driver can do: uploads (volumes are streamed, so libvirt may be elsewhere), hotplug
    (disks come and go while it runs), metadata (facts in the domain's own document), serials (of
    disks), block_resize, backup (copies of a disk in use), events, autostart, networks (of
    libvirt), lookups (tell "not there" from a failure), concurrent (several calls at once), starts
    (without a display), cpu_shares (parts of a CPU).

    packages: of Debian, that bring the hypervisor and libvirt's driver for it.

    document: the dialect of its domains' documents, of vms.DOCUMENTS. without: settings and
    cloud_properties that its driver does not support. interfaces: a VM's maximum, or None.
    """

    name: str
    domain_types: tuple[str, ...]
    machine: str
    clone_format: str
    disk_format: str
    bus: dict[str, str]
    settings_device: dict[str, tuple[str, str]]
    nic: str
    uploads: bool = True
    hotplug: bool = True
    metadata: bool = True
    serials: bool = True
    block_resize: bool = True
    backup: bool = True
    events: bool = True
    autostart: bool = True
    networks: bool = True
    lookups: bool = True
    concurrent: bool = True
    starts: bool = True
    cpu_shares: bool = True
    packages: tuple[str, ...] = ()
    document: str = "qemu"
    without: tuple[str, ...] = ()
    interfaces: int | None = None

    def setting(self, config: Config, name: str) -> str:
        """Return a setting of the configuration, "" for one that the driver does not support."""
        return "" if name in self.without else config.text(f"{self.name}.{name}")


KVM = Profile(
    name="kvm",
    domain_types=("kvm", "qemu"),
    machine="pc",
    clone_format="qcow2",
    disk_format="raw",
    # By virtio-scsi, whose disks a VMware stemcell's agent finds by their serial.
    bus={"virtio": "virtio", "scsi": "scsi"},
    # No driver is needed for them that the disks do not need.
    settings_device={"config-drive": ("disk", "virtio"), "cdrom": ("cdrom", "scsi")},
    nic="virtio",
    packages=("libvirt-daemon-driver-qemu", "qemu-system-x86"),
)

# Read from the driver's source (libvirt 9.0 and 11.3); docs/virtualbox.md has the table.
VIRTUALBOX = Profile(
    name="virtualbox",
    domain_types=("vbox",),
    machine="",
    clone_format="vdi",
    # A few lines that say where the raw disk is: the driver opens no raw file as a disk.
    disk_format="vmdk",
    bus={"virtio": "sata", "scsi": "sata"},
    settings_device={"config-drive": ("cdrom", "sata"), "cdrom": ("cdrom", "sata")},
    nic="virtio",
    uploads=False,
    hotplug=False,
    metadata=False,
    serials=False,
    block_resize=False,
    backup=False,
    events=False,
    autostart=False,
    networks=False,
    lookups=False,
    concurrent=False,
    starts=False,
    cpu_shares=False,
    packages=("libvirt-daemon-driver-vbox", "virtualbox"),
    document="virtualbox",
    without=("accelerator", "firmware", "machine", "cpu_model"),
    interfaces=8,
)


def require_possible(profile: Profile, wanted: VMProperties, networks: int) -> None:
    """Raise NotSupported, naming the property, for a VM that the driver cannot make.

    networks: the number of its interfaces.
    """
    if wanted.host_service:
        raise NotSupported(
            "cloud_properties.host_service is for containers, which share the host's sockets; a "
            "full VM reaches the host's service with endpoint: https://<host>:<port>"
        )
    if wanted.mounts:
        raise NotSupported(
            "cloud_properties.mounts is for containers; a full VM shares no folders with the host"
        )
    for name in profile.without:
        value = getattr(wanted, name, None)
        if value is not None and (name, value) != ("firmware", "bios"):
            raise NotSupported(
                f"cloud_properties.{name}: {value} cannot be had from {profile.name}, whose driver "
                "has no way to set it; leave it out"
            )
    if not profile.cpu_shares and wanted.cpu is not None and wanted.cpu % 1:
        raise NotSupported(
            f"cloud_properties.cpu: {wanted.cpu:g} is no whole number, and {profile.name} gives "
            "whole CPUs alone"
        )
    if profile.interfaces is not None and networks > profile.interfaces:
        raise NotSupported(
            f"{networks} networks are more than the {profile.interfaces} interfaces that a VM of "
            f"{profile.name} has"
        )
