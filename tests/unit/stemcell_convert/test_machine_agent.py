"""What a machine stemcell's agent expects, read from agent.json and written into a disk."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stemcell_convert import machine_agent
from stemcell_convert.machine_agent import Expectations
from stemcell_convert.partitions import FileSystem
from stemcell_convert.stemcell_errors import StemcellError
from stemcell_convert.stemcell_manifest import Manifest

OPENSTACK = {"Type": "ConfigDrive", "DiskPaths": ["/dev/disk/by-label/config-2"]}
HTTP = {"Type": "HTTP", "URI": "http://169.254.169.254"}


def agent(*sources: object, resolution: str = "virtio") -> dict[str, Any]:
    linux = {"DevicePathResolutionType": resolution, "CreatePartitionIfNoEphemeralDisk": True}
    return {
        "Platform": {"Linux": linux},
        "Infrastructure": {"Settings": {"Sources": list(sources), "UseRegistry": True}},
    }


def test_what_agent_json_says() -> None:
    assert machine_agent.expectations(agent(HTTP, OPENSTACK)) == Expectations(
        "config-drive", "virtio"
    )
    cdrom = agent({"Type": "CDROM", "FileName": "env"}, resolution="scsi")
    assert machine_agent.expectations(cdrom) == Expectations("cdrom", "scsi")
    assert machine_agent.expectations(agent(HTTP)) is None
    odds: list[dict[str, Any]] = [{}, {"Infrastructure": []}, agent(1)]
    for odd in odds:
        assert machine_agent.expectations(odd) is None


def test_one_without_a_usable_source_gets_a_config_drive() -> None:
    google = agent({"Type": "InstanceMetadata"}, resolution="scsi")
    google["Platform"]["Linux"]["VirtioDevicePrefix"] = "google"
    changed = machine_agent.with_config_drive(google)
    assert machine_agent.expectations(changed) == Expectations("config-drive", "virtio")
    assert changed["Platform"]["Linux"] == agent()["Platform"]["Linux"]
    assert google["Platform"]["Linux"]["VirtioDevicePrefix"] == "google"


def test_what_cannot_be_read_is_told_by_the_infrastructure() -> None:
    expected = {"vsphere": ("cdrom", "scsi"), "openstack": ("config-drive", "virtio"), "": None}
    for name, wanted in expected.items():
        expectations = machine_agent.of_infrastructure(
            Manifest(cloud_properties={"infrastructure": name})
        )
        assert (expectations.settings, expectations.resolution) == (
            wanted or ("config-drive", "virtio")
        )


@pytest.fixture
def disk(tmp_path: Path) -> tuple[Path, list[FileSystem]]:
    """Return a disk with an ext4 at 1 MiB, whose agent.json the test writes."""
    return tmp_path / "raw", [FileSystem("ext4", 1 << 20, 15 << 20)]


def make(disk: tuple[Path, list[FileSystem]], content: bytes | None) -> None:
    raw, _ = disk
    root = raw.parent / "root"
    folder = root / "var/vcap/bosh"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "agent.json").write_bytes(content)
    raw.touch()
    subprocess.run(["truncate", "--size", "16M", raw], check=True)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-E", "offset=1048576"]
    subprocess.run([*words, str(raw), "15M"], check=True, capture_output=True)


def test_a_disk_is_changed_where_it_has_to_be(
    disk: tuple[Path, list[FileSystem]], tmp_path: Path
) -> None:
    make(disk, json.dumps(agent(HTTP)).encode())
    assert machine_agent.prepare(*disk, Manifest(), tmp_path).adapted
    before = disk[0].read_bytes()
    assert machine_agent.prepare(*disk, Manifest(), tmp_path) == Expectations(
        "config-drive", "virtio"
    )
    assert disk[0].read_bytes() == before
    check = ["e2fsck", "-f", "-n", f"{disk[0]}?offset=1048576"]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_a_disk_without_one_is_refused(
    disk: tuple[Path, list[FileSystem]], tmp_path: Path, content: bytes | None
) -> None:
    make(disk, content)
    with pytest.raises(StemcellError, match=r"agent\.json"):
        machine_agent.prepare(*disk, Manifest(), tmp_path)


def test_a_root_that_debugfs_does_not_read_is_told_by_the_manifest(tmp_path: Path) -> None:
    xfs = [FileSystem("xfs", 0, 1)]
    manifest = Manifest(cloud_properties={"infrastructure": "vsphere"})
    assert machine_agent.prepare(tmp_path, xfs, manifest, tmp_path) == Expectations("cdrom", "scsi")
