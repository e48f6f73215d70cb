"""Hypervisors as data: what libvirt's driver for each can do, and how it is asked.

Policy reads these; nothing else in this folder names a hypervisor. A new one is a Profile here, a
class of three lines in runtime.py, its configuration keys, an entry in the registry, and a test
class. See docs/adding-a-runtime.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """One hypervisor, as libvirt's driver presents it.

    name: of the runtime. domain_types: libvirt's words for how to run a domain, the best first; the
    second is what runs when the host lacks the first. base_format: of stemcells' volumes and
    clone_format: of what is copied on write from them, in libvirt's words. disk_format: of
    persistent disks that the hypervisor opens. bus: of disks whose stemcell resolves "virtio" and
    "scsi" paths. settings_device: kind and bus of the device that the settings come on. nic: the
    model of network interfaces.

    What its driver can do: uploads (volumes are streamed), hotplug (disks come and go while it
    runs), metadata (facts in the domain's own document), serials (of disks), block_resize, backup
    (copies of a disk in use), events, autostart, console (into a file), bridges (of the host).
    """

    name: str
    domain_types: tuple[str, ...]
    os_type: str
    machine: str
    base_format: str
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
    console: bool = True
    bridges: bool = True


KVM = Profile(
    name="kvm",
    domain_types=("kvm", "qemu"),
    os_type="hvm",
    machine="pc",
    base_format="raw",
    clone_format="qcow2",
    disk_format="raw",
    # By virtio-scsi, whose disks a VMware stemcell's agent finds by their serial.
    bus={"virtio": "virtio", "scsi": "scsi"},
    # No driver is needed for them that the disks do not need.
    settings_device={"config-drive": ("disk", "virtio"), "cdrom": ("cdrom", "scsi")},
    nic="virtio",
)
