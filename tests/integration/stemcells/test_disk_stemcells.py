"""Stemcells that are disks, in every format that BOSH publishes, become containers."""

import bz2
import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testing.stemcells.stemcell_disks import NO_TABLE, archive, converted, disk
from tests.support.containerd.disk_actions import attach_and_mount
from tests.support.containerd.machine import VM, Machine, failing
from tests.support.open_counter import counted_opens
from tests.support.stemcells.machine_root import CAPABILITY, machine_root

OVF = b"<?xml version='1.0'?><Envelope/>"
_PIECE = 8 << 20  # bytes


class Maker:
    """Makes the `image` file of each variant of stemcell, and each disk and format once."""

    def __init__(self, warden: Path, folder: Path) -> None:
        self.folder = folder
        self.root = machine_root(warden, folder)
        self.raw_of: dict[str, Path] = {}  # by variant, the source of its image
        self.layers: dict[Path, str] = {}  # by raw disk, the digest of its layer, from any format
        self._used = Path()

    def raw(self, layout: str, filesystem: str = "ext4") -> Path:
        self._used = self.folder / f"{layout}-{filesystem}.raw"
        if not self._used.exists():
            disk(self.root, self.folder, layout, filesystem)
        return self._used

    def vmdk(self) -> Path:
        raw = self.raw("mbr+esp")
        path = raw.with_suffix(".vmdk")
        return path if path.exists() else converted(raw, "vmdk", "subformat=streamOptimized")

    def image(self, variant: str) -> Path:
        path = self.folder / f"image-{variant}"
        if not path.exists():
            make: Callable[[Path], Path] = getattr(self, f"_{variant}")
            make(path)
            self.raw_of[variant] = self._used
        return path

    def _openstack_qcow2(self, path: Path) -> Path:
        return archive(path, "w:gz", {"root.img": converted(self.raw("mbr"), "qcow2")})

    def _aws_raw(self, path: Path) -> Path:
        return archive(path, "w:gz", {"root.img": self.raw("mbr")})

    def _google_rawdisk(self, path: Path) -> Path:
        return archive(path, "w:gz", {"disk.raw": self.raw("mbr+esp")})

    def _vsphere_ova(self, path: Path) -> Path:
        checksums = b"SHA1(image.ovf)= 0\n"
        members: dict[str, Path | bytes] = {"image.ovf": OVF, "image.mf": checksums}
        return archive(path, "w:gz", {**members, "image-disk1.vmdk": self.vmdk()})

    def _plain_ova(self, path: Path) -> Path:
        return archive(path, "w:", {"image.ovf": OVF, "image-disk1.vmdk": self.vmdk()})

    def _azure_vhd(self, path: Path) -> Path:
        vhd = converted(self.raw("gpt"), "vpc", "subformat=fixed,force_size=on")
        return archive(path, "w:gz", {"root.vhd": vhd})

    def _softlayer_vhd(self, path: Path) -> Path:
        vhd = converted(self.raw("mbr+boot"), "vpc", "subformat=dynamic,force_size=on")
        return archive(path, "w:gz", {"root.vhd": vhd})

    def _cloudstack_vhd(self, path: Path) -> Path:
        vhd = converted(self.raw("mbr"), "vpc", "subformat=dynamic,force_size=on")
        return _bzipped(vhd, path)

    def _cloudstack_vhdx(self, path: Path) -> Path:
        return _bzipped(converted(self.raw("mbr"), "vhdx"), path)

    def _bare_qcow2(self, path: Path) -> Path:
        return converted(self.raw("gpt"), "qcow2").rename(path)

    def _bare_raw(self, path: Path) -> Path:
        return self.raw(NO_TABLE).rename(path)

    def _xfs(self, path: Path) -> Path:
        return archive(path, "w:gz", {"root.img": self.raw("gpt", "xfs")})


def _bzipped(disk: Path, path: Path) -> Path:
    """Compress the disk with bzip2, in parallel pieces, since bzip2 is slow."""
    data = memoryview(disk.read_bytes())
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    with ThreadPoolExecutor() as pool:
        path.write_bytes(b"".join(pool.map(lambda piece: bz2.compress(piece, 1), pieces)))
    return path


VARIANTS = [name[1:] for name in vars(Maker) if name.startswith("_") and "__" not in name]


@pytest.fixture(scope="module")
def maker(runit_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(runit_image, tmp_path_factory.mktemp("disks"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_format_boots(machine: Machine, maker: Maker, clean: None, variant: str) -> None:
    image = maker.image(variant)
    with counted_opens(image) as opens:
        stemcell = machine.call("create_stemcell", str(image), {"name": variant, "version": "1"})
        assert opens() == 1, "it is read only once"
    assert machine.call("create_stemcell", str(image), {}) == stemcell
    assert not list((machine.host.state / "imports").iterdir())
    vm = machine.create_vm(stemcell, agent_id="the-agent")
    vm.wait_for_agent()
    assert '"the-agent"' in vm.sh("cat /var/vcap/bosh/warden-cpi-agent-env.json")
    assert vm.sh("find /boot -type f; cat /etc/fstab /boot/grub/grub.cfg") == "/boot/grub/grub.cfg"
    vm.sh("/var/vcap/bosh/bin/bosh-start-logging-and-auditing")
    layer = _layer(machine, stemcell)
    assert maker.layers.setdefault(maker.raw_of[variant], layer) == layer, "as in other formats"
    vm.delete()
    machine.call("delete_stemcell", stemcell)


def _layer(machine: Machine, stemcell: str) -> str:
    """Return the digest of a stemcell's root file system."""
    name = f"bosh.local/stemcell/{stemcell.rsplit('-', 1)[1]}:latest"
    row = machine.ctr("images", "ls", f"name=={name}").splitlines()[1]
    digest = next(word for word in row.split() if word.startswith("sha256:"))
    return str(json.loads(machine.ctr("content", "get", digest))["layers"][0]["digest"])


_ODD = """
import os, json
os.chdir("/opt/odd")
plain, sparse = os.lstat("plain"), os.lstat("sparse")
print(json.dumps([
    oct(os.lstat(".").st_mode), oct(plain.st_mode), plain.st_uid, plain.st_gid, plain.st_mtime_ns,
    plain.st_nlink, os.lstat("linked").st_ino == plain.st_ino, os.readlink("symbolic"),
    os.getxattr("plain", "user.note").decode(), os.getxattr("plain", "security.capability").hex(),
    sparse.st_size, sparse.st_blocks < 64, os.lstat("null").st_rdev, oct(os.lstat("fifo").st_mode),
    sorted(name.hex() for name in os.listdir(b".") if name[0] > 127),
]))
"""


def test_everything_about_a_file_is_kept(machine: Machine, maker: Maker, clean: None) -> None:
    stemcell = machine.call("create_stemcell", str(maker.image("bare_qcow2")), {})
    vm = machine.create_vm(stemcell)
    vm.wait_for_agent()
    seen = json.loads(vm.sh(f"python3 -c '{_ODD}'"))
    assert seen == [
        "0o42755", "0o104711", 1234, 56789, 1234567890_000000000, 2, True, "/nowhere/at all",
        "kept", CAPABILITY.hex(), (64 << 20) + 3, True, 259, "0o10644", ["fffe206e616d65"],
    ]  # fmt: skip
    vm.delete()
    machine.call("delete_stemcell", stemcell)


def test_a_disk_is_attached_in_a_vm_of_a_disk_stemcell(
    machine: Machine, maker: Maker, clean: None
) -> None:
    stemcell = machine.call("create_stemcell", str(maker.image("openstack_qcow2")), {})
    vm: VM = machine.create_vm(stemcell)
    vm.wait_for_agent()
    cid = machine.create_disk()
    attach_and_mount(vm, cid)
    assert vm.agent("list_disk") == [cid]
    vm.delete()
    machine.call("delete_stemcell", stemcell)


def test_disks_that_begin_alike_are_different_stemcells(
    machine: Machine, maker: Maker, clean: None, tmp_path: Path
) -> None:
    """An upload is identified by size and beginning until it is read to its end."""
    disks = [tmp_path / "one", tmp_path / "other"]
    for number, path in enumerate(disks):
        data = bytearray(maker.raw("gpt").read_bytes())
        data[-1] = number  # of the GPT's second copy, which nothing here reads
        path.write_bytes(data)
    stemcells = [machine.call("create_stemcell", str(path), {}) for path in disks]
    assert len(set(stemcells)) == 2
    assert [machine.call("create_stemcell", str(path), {}) for path in disks] == stemcells
    for stemcell in stemcells:
        machine.call("delete_stemcell", stemcell)


def test_a_disk_that_reads_other_files_is_refused(
    machine: Machine, maker: Maker, clean: None, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(maker.raw("mbr").read_bytes()[: 1 << 20])
    image = tmp_path / "image"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image], check=True
    )
    error = failing(lambda: machine.call("create_stemcell", str(image), {}))
    assert error.type == "CloudError"
    assert "refers to another file" in error.message
    assert str(image) in error.message


def test_a_disk_beyond_the_limit_is_refused(
    machine: Machine, maker: Maker, clean: None, tmp_path: Path
) -> None:
    config = machine.host.write_config("limit.json", stemcell_limit=100)
    for variant in ("aws_raw", "bare_qcow2"):
        image = str(maker.image(variant))
        error = failing(lambda i=image: machine.call("create_stemcell", i, {}, config=config))  # type: ignore[misc]
        assert "stemcell_limit" in error.message
        assert image in error.message
    assert not list((machine.host.state / "imports").iterdir())


def test_a_disk_without_a_root_file_system_is_refused(
    machine: Machine, clean: None, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    image = disk(tmp_path / "empty", tmp_path, "gpt", size=64)
    error = failing(lambda: machine.call("create_stemcell", str(image), {}))
    assert error.type == "CloudError"
    assert "/etc/os-release" in error.message
