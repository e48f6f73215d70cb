"""The maker of small machines: its own logic, without root and without installing anything."""

import json
import os
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from testing.stemcells import machine_disk, machine_initramfs, machine_stemcell, stemcell_source
from testing.stemcells.machine_infrastructures import INFRASTRUCTURES, manifest, ovf, stemcell_name
from testing.stemcells.stemcell_rootfs import FILES, BuildError, put

DATE = 1_700_000_000
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"


def needs(*programs: str) -> None:
    """Skip a test where a program is missing."""
    for program in programs:
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            pytest.skip(f"{program} is not installed")


def test_manifest_is_what_boshs_own_packager_writes() -> None:
    iaas = INFRASTRUCTURES["openstack"]
    name = stemcell_name(iaas, "bookworm")
    assert name == "bosh-openstack-kvm-debian-bookworm-stand_in_agent"
    content = manifest(iaas, name, "1.2", "abc", suite="bookworm", disk_mib=320)
    assert content == {
        "name": name,
        "version": "1.2",
        "bosh_protocol": 1,
        "api_version": 3,
        "sha1": "abc",
        "operating_system": "debian-bookworm",
        "stemcell_formats": ["openstack-qcow2", "openstack-raw"],
        "cloud_properties": {
            "name": name,
            "version": "1.2",
            "infrastructure": "openstack",
            "hypervisor": "kvm",
            "disk": 320,
            "disk_format": "qcow2",
            "container_format": "bare",
            "os_type": "linux",
            "os_distro": "debian",
            "architecture": "x86_64",
            "auto_disk_config": True,
        },
    }


@pytest.mark.parametrize(
    ("iaas", "types", "resolution"),
    [
        ("openstack", ["File", "ConfigDrive", "HTTP"], "virtio"),
        ("aws", ["HTTP"], "virtio"),
        ("vsphere", ["CDROM"], "scsi"),
    ],
)
def test_agents_find_their_settings_as_boshs_do(
    iaas: str, types: list[str], resolution: str
) -> None:
    document = json.loads((FILES / f"machine-{iaas}/var/vcap/bosh/agent.json").read_text())
    sources = document["Infrastructure"]["Settings"]["Sources"]
    assert [source["Type"] for source in sources] == types
    assert document["Platform"]["Linux"]["DevicePathResolutionType"] == resolution


def test_the_ovf_describes_its_disk() -> None:
    root = ElementTree.fromstring(ovf("a.vmdk", file_size=12, disk_mib=320))  # noqa: S314
    file, disk = root.find(f".//{OVF}File"), root.find(f".//{OVF}Disk")
    assert file is not None
    assert disk is not None
    assert (file.get(f"{OVF}href"), file.get(f"{OVF}size")) == ("a.vmdk", "12")
    assert disk.get(f"{OVF}capacity") == str(320 << 20)


@pytest.mark.parametrize(
    ("iaas", "names"),
    [
        ("openstack", ["root.img"]),
        ("aws", ["root.img"]),
        ("vsphere", ["image.ovf", "image-disk1.vmdk"]),
    ],
)
def test_images_are_packed_as_bosh_does(iaas: str, names: list[str], tmp_path: Path) -> None:
    disk = tmp_path / "root.raw"
    disk.write_bytes(bytes(1 << 20))
    needs("qemu-img")
    machine_stemcell.pack(INFRASTRUCTURES[iaas], disk, tmp_path / "tgz", DATE)
    with tarfile.open(tmp_path / "tgz", "r:gz") as archive:
        assert archive.getnames() == names
        file = archive.extractfile(names[-1])
        assert file is not None
        start = file.read(4)
    assert start == {"openstack": b"QFI\xfb", "aws": bytes(4), "vsphere": b"KDMV"}[iaas]


def test_a_disk_has_one_partition_with_the_files(tmp_path: Path) -> None:
    needs("sfdisk", "mke2fs")
    root = tmp_path / "root"
    root.mkdir()
    put(root, "etc/hosts", FILES / "any/etc/hosts")
    machine_disk.configure(root)
    disk = tmp_path / "root.raw"
    machine_disk.make(root, disk)
    assert disk.stat().st_size == machine_disk.SIZE_MIB << 20
    listed = subprocess.run(["sfdisk", "--json", disk], check=True, capture_output=True)
    (part,) = json.loads(listed.stdout)["partitiontable"]["partitions"]
    assert (part["start"] * 512, part["bootable"]) == (machine_disk.START, True)
    with disk.open("rb") as file:
        file.seek(machine_disk.START + 1024)  # where an ext4 has its superblock
        assert machine_disk.LABEL.encode() in file.read(1024)


class Kernel:
    """A rootfs with some modules of a kernel, and what depmod would find out about them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.folder = root, root / "usr/lib/modules/6.1"
        self.needs = {
            "kernel/fs/ext4.ko": ["kernel/fs/jbd2.ko", "kernel/lib/crc.ko"],
            "kernel/fs/jbd2.ko": ["kernel/lib/crc.ko"],
            "kernel/lib/crc.ko": [],
            "kernel/other-module.ko": [],
        }
        for name in self.needs:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(name)
        (self.folder / "modules.builtin").write_text("kernel/fs/proc-fs.ko\n")
        monkeypatch.setattr(machine_initramfs, "in_root", self.depmod)

    def depmod(self, _root: Path, *_argv: str) -> str:
        lines = [
            f"{name}: {' '.join(self.needs[name])}\n"
            for name in self.needs
            if (self.folder / name).exists()
        ]
        (self.folder / "modules.dep").write_text("".join(lines))
        return ""


def test_modules_load_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path, monkeypatch)
    modules = machine_initramfs.Modules(tmp_path)
    paths = ["kernel/lib/crc.ko", "kernel/fs/jbd2.ko", "kernel/fs/ext4.ko"]
    assert modules.closure(["proc_fs", "ext4", "jbd2"]) == paths
    with pytest.raises(BuildError, match="no module nonsense"):
        modules.closure(["nonsense"])
    modules.keep(["jbd2"])
    left = [path.name for path in sorted(kernel.folder.rglob("*.ko"))]
    assert left == ["jbd2.ko", "crc.ko"]
    (tmp_path / "usr/lib/modules/6.2").mkdir()
    with pytest.raises(BuildError, match="expected one kernel"):
        machine_initramfs.Modules(tmp_path)


def test_the_initramfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(tmp_path, monkeypatch)
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/busybox").write_text("busybox")
    modules = machine_initramfs.Modules(tmp_path)
    groups = {"virtio": ("jbd2",), "scsi": ("ext4",)}
    files = unpacked(b"".join(machine_initramfs.archive(tmp_path, modules, groups)))
    assert files["modules/virtio"] == b"crc.ko\njbd2.ko\n"
    assert files["modules/scsi"] == b"ext4.ko\n"
    assert files["modules/crc.ko"] == b"kernel/lib/crc.ko"
    assert files["bin/busybox"] == b"busybox"
    assert files["init"].startswith(b"#!/bin/busybox sh\n")
    assert list(files)[-1] == "TRAILER!!!"


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Return the files of a cpio archive, as the kernel reads it (init/initramfs.c)."""
    files, offset = {}, 0
    while offset < len(archive):
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        size, length = fields[6], fields[11]
        name = archive[offset + 110 : offset + 110 + length]
        start = offset + (110 + length + 3) // 4 * 4
        files[name.rstrip(b"\0").decode()] = archive[start : start + size]
        offset = start + (size + 3) // 4 * 4
    return files


def test_a_stemcell_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def main(argv: list[str]) -> int:
        made.append(argv[1])
        Path(argv[3]).write_text("stemcell")
        return 0

    monkeypatch.setattr(stemcell_source, "CACHE", tmp_path)
    monkeypatch.setattr(machine_stemcell, "main", main)
    (old := tmp_path / "machine-openstack-0123.tgz").touch()
    (other := tmp_path / "machine-aws-0123.tgz").touch()
    path = machine_stemcell.stand_in_machine()
    assert machine_stemcell.stand_in_machine("openstack") == path
    assert path.read_text() == "stemcell"
    assert made == ["openstack"]
    assert (old.exists(), other.exists()) == (False, True)
    monkeypatch.setattr(machine_stemcell, "main", lambda argv: 1)
    with pytest.raises(stemcell_source.StemcellUnusable, match="no vsphere stemcell"):
        machine_stemcell.stand_in_machine("vsphere")
