"""The infrastructures of small machine stemcells: names, formats, and drivers."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Infrastructure:
    """An infrastructure, and what its stemcell has.

    kernel: Debian's package; disk_drivers, card_drivers: modules for its disks and network cards in
    addition to the default ones; formats: for stemcell.MF; properties: more cloud_properties.
    """

    name: str
    hypervisor: str
    disk_format: str
    formats: tuple[str, ...]
    kernel: str = "linux-image-cloud-amd64"
    disk_drivers: tuple[str, ...] = ()
    card_drivers: tuple[str, ...] = ()
    properties: Mapping[str, object] = field(default_factory=dict)


INFRASTRUCTURES = {
    "openstack": Infrastructure(
        "openstack",
        "kvm",
        "qcow2",
        ("openstack-qcow2", "openstack-raw"),
        properties={"auto_disk_config": True},
    ),
    "aws": Infrastructure(
        "aws", "xen", "raw", ("aws-raw",), properties={"root_device_name": "/dev/sda1"}
    ),
    # The cloud kernel has no drivers for the SATA and SCSI controllers of such machines; this one
    # takes 2 s longer to unpack itself.
    "vsphere": Infrastructure(
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
    iaas: Infrastructure, name: str, version: str, sha1: str, *, suite: str, disk_mib: int
) -> dict[str, object]:
    """Return the content of stemcell.MF, with the fields of BOSH's own stemcells.

    disk_mib: the size of the root disk.
    """
    return {
        "name": name,
        "version": version,
        "bosh_protocol": 1,
        "api_version": 3,
        "sha1": sha1,
        "operating_system": f"debian-{suite}",
        "stemcell_formats": list(iaas.formats),
        "cloud_properties": {
            "name": name,
            "version": version,
            "infrastructure": iaas.name,
            "hypervisor": iaas.hypervisor,
            "disk": disk_mib,
            "disk_format": iaas.disk_format,
            "container_format": "bare",
            "os_type": "linux",
            "os_distro": "debian",
            "architecture": "x86_64",
            **iaas.properties,
        },
    }


def stemcell_name(iaas: Infrastructure, suite: str) -> str:
    """Return a name like those of BOSH's own stemcells."""
    return f"bosh-{iaas.name}-{iaas.hypervisor}-debian-{suite}-stand_in_agent"


def ovf(disk: str, *, file_size: int, disk_mib: int) -> str:
    """Return the description of a vSphere machine with one disk, in the words that ovftool uses.

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
