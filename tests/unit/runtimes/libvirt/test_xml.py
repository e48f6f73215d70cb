"""Golden documents, valid against libvirt's own schemas; and what is read back from them."""

import os
import shutil
import subprocess
from ipaddress import ip_interface
from pathlib import Path

import pytest

from runtimes.libvirt.xml import domain_xml, network_xml, storage_xml
from runtimes.libvirt.xml.domain_xml import Domain, DomainDisk, Facts, Interface
from runtimes.libvirt.xml.network_xml import LibvirtNetwork
from runtimes.libvirt.xml.storage_xml import Volume
from testing.repository import REPOSITORY

SCHEMAS = Path("/usr/share/libvirt/schemas")
ODD = "a<b>&'\"/../é"

LEAST = Domain(
    name="kvm-vm-1",
    type="qemu",
    machine="pc",
    firmware="bios",
    cpu_model="",
    cpu=1,
    memory=1024,
    disks=(DomainDisk("/pool/kvm-vm-1.root", "qcow2", "vda", "virtio"),),
    interfaces=(),
    console="",
    facts=Facts(),
)
DISKS = (
    DomainDisk(
        f"/pool/{ODD}.root", "qcow2", "sda", "scsi", backing=(f"/pool/{ODD}.stemcell", "raw")
    ),
    DomainDisk("/pool/kvm-vm-2.data", "qcow2", "sdb", "scsi", "ephemeral0123456789a"),
    DomainDisk("/pool/kvm-vm-2.iso", "raw", "sdc", "scsi", device="cdrom", read_only=True),
)
FULL = Domain(
    name="kvm-vm-2",
    type="kvm",
    machine="q35",
    firmware="uefi",
    cpu_model="Skylake-Server",
    cpu=2.5,
    memory=4096,
    disks=DISKS,
    interfaces=(
        Interface("52:54:00:00:00:01", "virtio", bridge="bosh0", mtu=1450),
        Interface("52:54:00:00:00:02", "virtio", network=ODD),
    ),
    console="/pool/kvm-vm-2.console",
    facts=Facts("kvm-stemcell-1", "cdrom", "scsi", "xfs", True, {ODD: ODD, "control": "a\x01b"}),
)
HOST_MODEL = Domain(**{**LEAST.__dict__, "type": "kvm", "cpu_model": "host", "cpu": 0.25})

DOCUMENTS = {
    "domain_least": ("domain", domain_xml.domain(LEAST)),
    "domain_full": ("domain", domain_xml.domain(FULL)),
    "domain_host_cpu": ("domain", domain_xml.domain(HOST_MODEL)),
    "pool": ("storagepool", storage_xml.pool(ODD.replace("/", ""), "/var/lib/x")),
    "volume_raw": ("storagevol", storage_xml.volume(Volume(ODD.replace("/", ""), 1 << 30))),
    "volume_clone": (
        "storagevol",
        storage_xml.volume(Volume("kvm-vm-1.root", 5 << 30, "qcow2", ("/pool/a&b", "raw"))),
    ),
    "backup": ("domainbackup", storage_xml.backup(["vda", "vdb"], "vdb", f"/pool/{ODD}", "qcow2")),
    "network_open": (
        "network",
        network_xml.network(
            LibvirtNetwork(
                "bosh-bosh0",
                "bosh0",
                "open",
                (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")),
            )
        ),
    ),
    "network_bare": (
        "network",
        network_xml.network(
            LibvirtNetwork("n", "br1", "", (), "dfbb71ef-9e9e-4ee1-b65c-30556ec6041e")
        ),
    ),
    "network_nat": (
        "network",
        network_xml.network(LibvirtNetwork("bosh", "", "nat", (ip_interface("10.0.0.1/24"),))),
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_golden(name: str) -> None:
    golden = REPOSITORY / "tests" / "golden" / f"{name}.xml"
    text = DOCUMENTS[name][1] + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("name", DOCUMENTS)
def test_valid_against_libvirts_schema(name: str, tmp_path: Path) -> None:
    if shutil.which("xmllint") is None or not SCHEMAS.is_dir():
        pytest.skip("xmllint or libvirt's schemas are missing; `make test-packages` installs them")
    schema, document = DOCUMENTS[name]
    file = tmp_path / "document.xml"
    file.write_text(document)
    argv = ["xmllint", "--noout", "--relaxng", str(SCHEMAS / f"{schema}.rng"), str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_facts_come_back() -> None:
    facts = Facts("kvm-stemcell-1", "cdrom", "scsi", "ext4", True, {ODD: ODD, "empty": ""})
    assert domain_xml.read_facts(domain_xml.facts(facts)) == facts


def test_text_that_xml_cannot_have_is_replaced() -> None:
    facts = Facts(metadata={"a\x00b": "\x1b[31m\ud800\ufffe"})
    assert domain_xml.read_facts(domain_xml.facts(facts)).metadata == {"a\ufffdb": "\ufffd[31m"}


def test_corrupt_metadata_is_an_error() -> None:
    with pytest.raises(ValueError, match="no XML"):
        domain_xml.read_facts("<vm")


def test_attached_disks_are_read() -> None:
    disks = domain_xml.attached(domain_xml.domain(FULL))
    assert [(disk.target, disk.bus, disk.serial) for disk in disks] == [
        ("sda", "scsi", ""),
        ("sdb", "scsi", "ephemeral0123456789a"),
    ]
    assert disks[0].path == f"/pool/{ODD}.root"


def test_names_of_disks() -> None:
    assert domain_xml.free_target("virtio", []) == "vda"
    assert domain_xml.free_target("virtio", ["vda", "vdc"]) == "vdb"
    assert (
        domain_xml.free_target("scsi", [f"sd{c}" for c in "abcdefghijklmnopqrstuvwxyz"]) == "sdaa"
    )


def test_networks_of_others_are_read() -> None:
    network = network_xml.read_network(
        "<network><name>default</name><forward mode='nat'/><bridge name='virbr0'/>"
        "<ip address='192.168.122.1' netmask='255.255.255.0'><dhcp/></ip>"
        "<ip family='ipv6' address='fd00::1' prefix='64'/></network>"
    )
    assert network == LibvirtNetwork(
        "default", "virbr0", "nat", (ip_interface("192.168.122.1/24"), ip_interface("fd00::1/64"))
    )
    assert network_xml.read_network("<network><name>x</name></network>").gateways == ()
