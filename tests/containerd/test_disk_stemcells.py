"""Stemcells that are disks, in every format that BOSH publishes, become containers."""

import bz2
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containerd.disk_stemcells import CAPABILITY, machine_root
from tests.containerd.disks import attach_and_mount
from tests.containerd.machine import VM, Machine, failing
from tools.stemcell_disks import archive, converted, disk

OVF = b"<?xml version='1.0'?><Envelope/>"


class Maker:
    """Makes the `image` file of each kind of stemcell, once."""

    def __init__(self, warden: Path, folder: Path) -> None:
        self.folder = folder
        self.root = machine_root(warden, folder)
        self._raw: dict[str, Path] = {}

    def raw(self, layout: str) -> Path:
        if layout not in self._raw:
            self._raw[layout] = disk(self.root, self.folder, layout)
        return self._raw[layout]

    def image(self, kind: str) -> Path:
        path = self.folder / f"image-{kind}"
        make: Callable[[Path], Path] = getattr(self, f"_{kind}")
        return path if path.exists() else make(path)

    def _openstack_qcow2(self, path: Path) -> Path:
        return archive(path, "w:gz", {"root.img": converted(self.raw("mbr"), "qcow2")})

    def _aws_raw(self, path: Path) -> Path:
        return archive(path, "w:gz", {"root.img": self.raw("mbr")})

    def _google_rawdisk(self, path: Path) -> Path:
        return archive(path, "w:gz", {"disk.raw": self.raw("mbr+esp")})

    def _vsphere_ova(self, path: Path) -> Path:
        vmdk = converted(self.raw("mbr+esp"), "vmdk", "subformat=streamOptimized")
        checksums = b"SHA1(image.ovf)= 0\n"
        members: dict[str, Path | bytes] = {"image.ovf": OVF, "image.mf": checksums}
        return archive(path, "w:gz", {**members, "image-disk1.vmdk": vmdk})

    def _plain_ova(self, path: Path) -> Path:
        vmdk = converted(self.raw("mbr"), "vmdk", "subformat=streamOptimized")
        return archive(path, "w:", {"image.ovf": OVF, "image-disk1.vmdk": vmdk})

    def _azure_vhd(self, path: Path) -> Path:
        vhd = converted(self.raw("gpt"), "vpc", "subformat=fixed,force_size=on")
        return archive(path, "w:gz", {"root.vhd": vhd})

    def _cloudstack_vhd(self, path: Path) -> Path:
        vhd = converted(self.raw("mbr"), "vpc", "subformat=dynamic,force_size=on")
        path.write_bytes(bz2.compress(vhd.read_bytes(), 1))
        return path

    def _cloudstack_vhdx(self, path: Path) -> Path:
        path.write_bytes(bz2.compress(converted(self.raw("mbr"), "vhdx").read_bytes(), 1))
        return path

    def _bare_qcow2(self, path: Path) -> Path:
        return converted(self.raw("gpt"), "qcow2").rename(path)


KINDS = [name[1:] for name in vars(Maker) if name.startswith("_") and "__" not in name]


@pytest.fixture(scope="module")
def maker(runit_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(runit_image, tmp_path_factory.mktemp("disks"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_boots(machine: Machine, maker: Maker, clean: None, kind: str) -> None:
    image = maker.image(kind)
    stemcell = machine.call("create_stemcell", str(image), {"name": kind, "version": "1"})
    assert machine.call("create_stemcell", str(image), {}) == stemcell
    assert not list((machine.host.state / "imports").iterdir())
    vm = machine.create_vm(stemcell, agent_id="the-agent")
    vm.wait_for_agent()
    assert '"the-agent"' in vm.sh("cat /var/vcap/bosh/warden-cpi-agent-env.json")
    assert vm.sh("ls -A /boot; cat /etc/fstab") == ""
    vm.sh("/var/vcap/bosh/bin/bosh-start-logging-and-auditing")
    vm.delete()
    machine.call("delete_stemcell", stemcell)


def test_the_same_disk_gives_the_same_layer_in_every_format(
    machine: Machine, maker: Maker, clean: None
) -> None:
    layers = set()
    for kind in ("aws_raw", "openstack_qcow2", "cloudstack_vhd"):
        stemcell = machine.call("create_stemcell", str(maker.image(kind)), {})
        name = f"bosh.local/stemcell/{stemcell.rsplit('-', 1)[1]}:latest"
        row = machine.ctr("images", "ls", f"name=={name}").splitlines()[1]
        digest = next(word for word in row.split() if word.startswith("sha256:"))
        manifest = json.loads(machine.ctr("content", "get", digest))
        layers.add(manifest["layers"][0]["digest"])
        machine.call("delete_stemcell", stemcell)
    assert len(layers) == 1


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
    for kind in ("aws_raw", "bare_qcow2"):
        image = str(maker.image(kind))
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
