"""The kinds of small machine stemcells: what BOSH calls them and what is in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """One infrastructure's stemcell.

    kernel: Debian's package; disk_drivers, card_drivers: modules for its disks and network cards
    beside the usual ones; formats: what stemcell.MF says; properties: more of its cloud_properties.
    """

    infrastructure: str
    hypervisor: str
    disk_format: str
    formats: tuple[str, ...]
    kernel: str = "linux-image-cloud-amd64"
    disk_drivers: tuple[str, ...] = ()
    card_drivers: tuple[str, ...] = ()
    properties: Mapping[str, object] = field(default_factory=dict)


KINDS = {
    "openstack": Kind(
        "openstack",
        "kvm",
        "qcow2",
        ("openstack-qcow2", "openstack-raw"),
        properties={"auto_disk_config": True},
    ),
    "aws": Kind("aws", "xen", "raw", ("aws-raw",), properties={"root_device_name": "/dev/sda1"}),
    # The cloud kernel has no drivers for the SATA and SCSI controllers of such machines; this one
    # takes 2 s longer to unpack itself.
    "vsphere": Kind(
        "vsphere",
        "esxi",
        "ovf",
        ("vsphere-ova", "vsphere-ovf"),
        kernel="linux-image-amd64",
        disk_drivers=("ahci", "mptspi", "mptsas", "vmw_pvscsi"),
        card_drivers=("e1000", "e1000e", "vmxnet3"),
        properties={"root_device_name": "/dev/sda1"},
    ),
}


def manifest(
    kind: Kind, name: str, version: str, sha1: str, *, suite: str, disk_mib: int
) -> dict[str, object]:
    """The content of stemcell.MF, field by field like in BOSH's own stemcells.

    disk_mib: the size of the root disk.
    """
    return {
        "name": name,
        "version": version,
        "bosh_protocol": 1,
        "api_version": 3,
        "sha1": sha1,
        "operating_system": f"debian-{suite}",
        "stemcell_formats": list(kind.formats),
        "cloud_properties": {
            "name": name,
            "version": version,
            "infrastructure": kind.infrastructure,
            "hypervisor": kind.hypervisor,
            "disk": disk_mib,
            "disk_format": kind.disk_format,
            "container_format": "bare",
            "os_type": "linux",
            "os_distro": "debian",
            "architecture": "x86_64",
            **kind.properties,
        },
    }


def stemcell_name(kind: Kind, suite: str) -> str:
    """A name in the manner of BOSH's own stemcells."""
    return f"bosh-{kind.infrastructure}-{kind.hypervisor}-debian-{suite}-stand_in_agent"


def ovf(disk: str, *, file_size: int, disk_mib: int) -> str:
    """The description of a vSphere machine with one disk, in the words that ovftool uses.

    disk: the disk's file; file_size: its bytes; disk_mib: the disk's size.
    """
    return OVF.format(disk=disk, file_size=file_size, capacity=disk_mib << 20)


OVF = """\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
    <File ovf:href="{disk}" ovf:id="file1" ovf:size="{file_size}"/>
  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
    <Disk ovf:capacity="{capacity}" ovf:diskId="vmdisk1" ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection>
    <Info>The list of logical networks</Info>
    <Network ovf:name="nat"><Description>The nat network</Description></Network>
  </NetworkSection>
  <VirtualSystem ovf:id="vm">
    <Info>A virtual machine</Info>
    <OperatingSystemSection ovf:id="94">
      <Info>The kind of installed guest operating system</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:ElementName>1 virtual CPU(s)</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>512MB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>512</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:ElementName>scsiController0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:ElementName>disk0</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""
