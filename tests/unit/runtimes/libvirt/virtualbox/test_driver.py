"""What the fake of libvirt's VirtualBox driver refuses, as the real one does, and our answers."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt  # noqa: TID253 (for its codes)
import pytest

from cpi.errors import CloudError, CPIError, NotSupported
from cpi.host.process import CommandFailed
from cpi.log import Log
from runtimes.libvirt import client
from runtimes.libvirt.client import AlreadyThere, Connection, is_missing
from runtimes.libvirt.virtualbox import media, vboxmanage, virtualbox_xml
from runtimes.libvirt.virtualbox.folder_pool import FolderPool
from runtimes.libvirt.virtualbox.locked import Locked
from runtimes.libvirt.xml import domain_xml, storage_xml
from runtimes.libvirt.xml.domain_xml import Domain, DomainDisk, Facts, Interface
from tests.support.virtualbox.fake_vbox import FakeVBox, VBoxConnection as Fake
from tests.support.virtualbox.fake_vbox_documents import error
from tests.support.virtualbox.vbox_lab import fake_virtualbox

MIB = 1 << 20
DEBIAN = b"""\
WARNING: The character device /dev/vboxdrv does not exist.
\t Please install the virtualbox-dkms package and the appropriate

\t You will not be able to start VMs until this problem is fixed.
"""


@pytest.fixture
def world() -> Iterator[FakeVBox]:
    with fake_virtualbox() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> FolderPool:
    return FolderPool(tmp_path / "pool")


@pytest.fixture
def wanted(folder: FolderPool) -> Domain:
    """Return a domain with a root disk and an interface."""
    made = folder.create(storage_xml.Volume("some-vm-1.root", 8 * MIB, "vdi"))
    return Domain(
        name="some-vm-1",
        type="vbox",
        machine="",
        firmware="",
        cpu_model="",
        cpu=1.0,
        memory=64,
        disks=(DomainDisk(made.path(), "vdi", "sda", "sata"),),
        interfaces=(Interface("52:54:00:00:00:01", "virtio", bridge="bosh0", mtu=1450),),
        console=f"{made.path()}.console",
        facts=Facts(),
    )


def refused(call: Callable[[], Any]) -> tuple[int, int, str]:
    """Return code, domain and message of libvirt's error."""
    with pytest.raises(libvirt.libvirtError) as raised:
        call()
    refusal = raised.value
    return refusal.get_error_code(), refusal.get_error_domain(), refusal.get_error_message()


# The fake is as strict as the driver


def test_documents_of_other_hypervisors_are_refused(world: FakeVBox, wanted: Domain) -> None:
    virtio = virtualbox_xml.domain(wanted).replace('bus="sata"', 'bus="virtio"')
    message = "unsupported configuration: The vbox driver does not support virtio bus type"
    assert refused(lambda: Fake(world).defineXML(virtio)) == (67, 25, message)
    second = '<controller type="sata" index="1"/></devices>'
    two = virtualbox_xml.domain(wanted).replace("</devices>", second)
    assert "rc=80bb000c" in refused(lambda: Fake(world).defineXML(two))[2]
    assert not world.machines


def test_a_raw_file_is_no_disk_and_is_one_by_its_descriptor(
    world: FakeVBox, wanted: Domain, tmp_path: Path
) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"\0" * MIB)
    plain = virtualbox_xml.with_disk(virtualbox_xml.domain(wanted), str(raw), "raw", "sata")
    assert f"{raw}, rc=80bb0005" in refused(lambda: Fake(world).defineXML(plain))[2]
    vmdk = tmp_path / "disk.vmdk"
    vmdk.write_text(media.descriptor(vmdk.name, raw, MIB))
    other = virtualbox_xml.with_disk(virtualbox_xml.domain(wanted), str(vmdk), "vmdk", "sata")
    Fake(world).defineXML(other)
    assert world.media.known[str(media.uuid_of("disk.vmdk"))] == str(vmdk)
    copy = tmp_path / "copy.vmdk"
    copy.write_text(vmdk.read_text())
    second = virtualbox_xml.domain(replace(wanted, name="some-vm-2"))
    third = virtualbox_xml.with_disk(second, str(copy), "vmdk", "sata")
    assert "rc=80070057" in refused(lambda: Fake(world).defineXML(third))[2]


def test_a_domain_is_not_defined_again_nor_found_by_its_name(
    world: FakeVBox, wanted: Domain
) -> None:
    document = virtualbox_xml.domain(wanted)
    Fake(world).defineXML(document)
    assert "rc=80bb0004" in refused(lambda: Fake(world).defineXML(document))[2]
    other = document.replace("some-vm-1<", "some-vm-2<")
    assert refused(lambda: Fake(world).defineXML(other))[0] == libvirt.VIR_ERR_NO_DOMAIN
    unknown = (1, 0, "An error occurred, but the cause is unknown")
    assert refused(lambda: Fake(world).lookupByName("none")) == unknown
    with pytest.raises(libvirt.libvirtError) as raised:
        Fake(world).lookupByName("none")
    assert not is_missing(raised.value)  # so that it has to be looked for in the list


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("setMetadata", (2, "<x/>", "p", "u", 0)),
        ("metadata", (2, "u", 0)),
        ("setAutostart", (1,)),
        ("blockResize", ("sda", 1, 0)),
        ("rename", ("x", 0)),
    ],
)
def test_what_the_driver_has_not(
    world: FakeVBox, wanted: Domain, name: str, arguments: tuple[object, ...]
) -> None:
    domain = Fake(world).defineXML(virtualbox_xml.domain(wanted))
    code, where, message = refused(lambda: getattr(domain, name)(*arguments))
    assert (code, where) == (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_FROM_DOMAIN)
    assert message.startswith("this function is not supported by the connection driver: virDomain")
    with pytest.raises(NotSupported), client.translated_errors("trying"):
        getattr(domain, name)(*arguments)


def test_events_and_storage_are_not_there(world: FakeVBox) -> None:
    for name in ("domainEventRegisterAny", "listAllStoragePools", "listAllNetworks", "newStream"):
        assert refused(getattr(Fake(world), name))[0] == libvirt.VIR_ERR_NO_SUPPORT
    with pytest.raises(AttributeError):
        Fake(world).no_such_method  # noqa: B018


def test_flags_disks_and_running_domains(world: FakeVBox, wanted: Domain) -> None:
    domain = Fake(world).defineXML(virtualbox_xml.domain(wanted))
    flags = "unsupported flags (0x2) in function vboxDomainAttachDeviceFlags"
    disk = domain_xml.disk(wanted.disks[0])
    assert refused(lambda: domain.attachDeviceFlags(disk, client.CONFIG)) == (8, 25, flags)
    message = "argument unsupported: Unsupported device type 1"
    assert refused(lambda: domain.attachDeviceFlags(disk, client.LIVE)) == (74, 25, message)
    assert "unsupported flags" in refused(lambda: domain.undefineFlags(client.UNDEFINE_ALL))[2]
    assert "LaunchVMProcess failed" in refused(domain.create)[2]
    world.run(["VBoxManage", "startvm", domain.UUIDString(), "--type", "headless"])
    assert refused(domain.undefine)[2].endswith("could not delete the domain, rc=80bb0007")
    client.destroy(domain)
    client.destroy(domain)  # "already powered down" is what was wanted
    client.undefine_plain(domain)
    assert not world.machines


def test_a_vm_has_no_more_disks_than_ports(wanted: Domain) -> None:
    document = virtualbox_xml.domain(wanted)
    for number in range(1, 30):
        document = virtualbox_xml.with_disk(document, f"/disk{number}", "vmdk", "sata")
    assert 'unit="29"' in document
    with pytest.raises(NotSupported, match="at most 30"):
        virtualbox_xml.with_disk(document, "/disk30", "vmdk", "sata")
    fewer = virtualbox_xml.without_disk(document, "/disk7")
    assert 'unit="7"' not in fewer
    assert 'unit="7"' in virtualbox_xml.with_disk(fewer, "/disk30", "vmdk", "sata")


# Which VirtualBox is installed, and which libvirt takes


@pytest.mark.parametrize(
    ("libvirt_version", "installed", "error_class", "said"),
    [
        (
            9_000_000,
            DEBIAN + b"7.2.22_Debianr175245\n",
            NotSupported,
            "libvirt 9.0.0 does not support VirtualBox 7.2.22, which is installed, but VirtualBox "
            "5.2 to 6.1: install that and restart libvirtd, or use the runtime kvm",
        ),
        (9_000_000, b"7.0.20r163906\n", NotSupported, "VirtualBox 5.2 to 6.1: "),
        (10_000_000, b"7.1.4r165100\n", NotSupported, "but VirtualBox 6.1 and 7.0: "),
        (10_000_000, b"6.0.24r139119\n", NotSupported, "but VirtualBox 6.1 and 7.0: "),
        (12_008_000, b"6.1.50r161033\n", NotSupported, "but VirtualBox 7.0: "),
        (12_008_000, b"7.0.20r163906\n", CloudError, "restart libvirtd"),
        (11_000_000, b"6.1.50r161033\n", CloudError, "libvirt 11.0.0 takes VirtualBox 6.1.50"),
        (
            9_000_000,
            None,
            CloudError,
            "VirtualBox is not installed (VBoxManage does not answer): install 5.2 to 6.1, which "
            "is what libvirt 9.0.0 takes, and restart libvirtd",
        ),
    ],
)
def test_refusals_name_both_versions(
    monkeypatch: pytest.MonkeyPatch,
    libvirt_version: int,
    installed: bytes | None,
    error_class: type[CPIError],
    said: str,
) -> None:
    def run(argv: list[str]) -> bytes:
        assert argv == ["VBoxManage", "--version"]
        if installed is None:
            raise CommandFailed("VBoxManage is not installed")
        return installed

    def fails(_uri: str) -> None:
        text = "internal error: unable to initialize VirtualBox driver API"
        raise error(libvirt.VIR_ERR_INTERNAL_ERROR, 25, text)

    monkeypatch.setattr(vboxmanage, "run", run)
    monkeypatch.setattr(libvirt, "open", fails)
    monkeypatch.setattr(libvirt, "getVersion", lambda: libvirt_version)
    connection = Connection("vbox:///session", Log("error"))
    with pytest.raises(CPIError) as raised:
        connection.raw  # noqa: B018
    assert type(raised.value) is error_class
    assert said in raised.value.message
    assert not raised.value.ok_to_retry
    assert "\n" not in raised.value.message
    assert ". " not in raised.value.message  # one sentence


# What our parts do


def test_a_serial_is_made_of_the_uuid_as_virtualbox_does() -> None:
    digits = media.uuid_of("some.vmdk").hex
    last = "".join(reversed(re.findall("..", digits[24:])))
    serial = media.serial_of("some.vmdk")
    assert serial == f"VB{digits[:8]}-{last}"
    assert len(serial) <= 20  # characters of an ATA serial
    assert media.hint_of("some.vmdk", "scsi") == {"id": serial.replace("-", "?")}


def test_a_path_that_a_vmdk_cannot_hold() -> None:
    with pytest.raises(CloudError, match="another folder"):
        media.descriptor("some.vmdk", Path('/a"b'), MIB)


def test_a_folder_of_volumes(folder: FolderPool, tmp_path: Path) -> None:
    assert folder.names() == []
    made = folder.create(storage_xml.Volume("a.iso", 10))
    folder.write(made, b"abc")
    assert folder.read(made, 1, limit=9) == b"bc" + b"\0" * 7
    with pytest.raises(CloudError, match="more than 4 bytes"):
        folder.read(made, limit=4)
    with pytest.raises(AlreadyThere):
        folder.create(storage_xml.Volume("a.iso", 10))
    source = tmp_path / "source"
    source.write_bytes(b"raw" * 1000)
    base = folder.create(storage_xml.Volume("b.stemcell", 3000, mode=storage_xml.SHARED))
    folder.upload(base, source)
    assert (tmp_path / "pool/b.stemcell").read_bytes() == source.read_bytes()
    assert (tmp_path / "pool/b.stemcell").stat().st_mode & 0o777 == 0o644
    assert folder.names() == ["a.iso", "b.stemcell"]
    folder.delete("a.iso")
    folder.delete("a.iso")
    assert folder.find("a.iso") is None


def test_a_volume_that_fails_leaves_nothing(folder: FolderPool, tmp_path: Path) -> None:
    backing = (str(tmp_path / "gone"), "raw")
    with pytest.raises(CloudError, match="gone"):
        folder.create(storage_xml.Volume("a.root", MIB, "vdi", backing=backing))
    assert folder.names() == []


def test_every_call_waits_for_its_turn(world: FakeVBox, wanted: Domain) -> None:
    depth, taken = 0, 0

    @contextmanager
    def turn() -> Iterator[None]:
        nonlocal depth, taken
        assert not depth
        depth, taken = 1, taken + 1
        try:
            yield
        finally:
            depth = 0

    def held() -> AbstractContextManager[None]:
        return turn()

    raw = Locked(Fake(world), held)
    domain = raw.defineXML(virtualbox_xml.domain(wanted))
    assert domain.name() == "some-vm-1"
    assert [listed.UUIDString() for listed in raw.listAllDomains()] == [domain.UUIDString()]
    assert taken == 5
