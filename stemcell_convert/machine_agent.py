"""The settings source and device names that a machine stemcell's agent expects.

They are in /var/vcap/bosh/agent.json (stemcell builder, stages bosh_*_agent_settings), which is
read and written with debugfs, so that no mount and no root is needed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemcell_convert.partitions import FileSystem
from stemcell_convert.programs import run
from stemcell_convert.stemcell_errors import StemcellError
from stemcell_convert.stemcell_manifest import Manifest

CONFIG_DRIVE, CDROM = "config-drive", "cdrom"
VIRTIO, SCSI = "virtio", "scsi"

_PATH = "/var/vcap/bosh/agent.json"
_HINT = "apt-get install e2fsprogs"
_LIMIT = 1 << 20  # bytes
# Of the stemcell builder's openstack stage.
_CONFIG_DRIVE_SOURCE = {
    "Type": "ConfigDrive",
    "DiskPaths": ["/dev/disk/by-label/CONFIG-2", "/dev/disk/by-label/config-2"],
    "MetaDataPath": "ec2/latest/meta-data.json",
    "UserDataPath": "ec2/latest/user-data",
}


@dataclass(frozen=True)
class Expectations:
    """An agent's settings source and disk resolution; adapted: its agent.json was changed."""

    settings: str
    resolution: str
    adapted: bool = False


def prepare(raw: Path, systems: list[FileSystem], manifest: Manifest, folder: Path) -> Expectations:
    """Return what a raw disk's agent expects; change it to a config drive if it is unsupported.

    folder: for small files. Raises StemcellError when the disk has no agent.
    """
    for system in systems:
        if system.fstype != "ext4":
            continue
        config = _read(raw, system)
        if config is None:
            continue
        expected = expectations(config)
        if expected is None:
            expected = Expectations(CONFIG_DRIVE, VIRTIO, adapted=True)
            _write(raw, system, with_config_drive(config), folder)
        return expected
    if any(system.fstype != "ext4" for system in systems):
        return of_infrastructure(manifest)
    raise StemcellError(f"no file system of the disk has {_PATH}: is this a BOSH stemcell?")


def expectations(config: Mapping[str, Any]) -> Expectations | None:
    """Return what an agent.json says, or None when no hypervisor can serve its sources."""
    sources = _section(config, "Infrastructure", "Settings").get("Sources") or []
    source_types = [source.get("Type") for source in sources if isinstance(source, dict)]
    linux = _section(config, "Platform", "Linux")
    resolution = SCSI if linux.get("DevicePathResolutionType") == "scsi" else VIRTIO
    if "ConfigDrive" in source_types:
        return Expectations(CONFIG_DRIVE, resolution)
    if "CDROM" in source_types:
        return Expectations(CDROM, resolution)
    return None


def with_config_drive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an agent.json with settings from a config drive, and virtio disks."""
    linux = dict(_section(config, "Platform", "Linux"))
    linux.pop("VirtioDevicePrefix", None)
    linux["DevicePathResolutionType"] = "virtio"
    platform = {**_section(config, "Platform"), "Linux": linux}
    settings = {"Sources": [_CONFIG_DRIVE_SOURCE], "UseServerName": False, "UseRegistry": False}
    infrastructure = {**_section(config, "Infrastructure"), "Settings": settings}
    return {**config, "Platform": platform, "Infrastructure": infrastructure}


def of_infrastructure(manifest: Manifest) -> Expectations:
    """Return what stemcells of an infrastructure expect, if their agent.json is unreadable."""
    if manifest.cloud_properties.get("infrastructure") in ("vsphere", "vcloud"):
        return Expectations(CDROM, SCSI)
    return Expectations(CONFIG_DRIVE, VIRTIO)


def _section(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    section: Any = config
    for name in path:
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}


def _read(raw: Path, system: FileSystem) -> dict[str, Any] | None:
    text = run(["debugfs", "-R", f"cat {_PATH}", _device(raw, system)], _HINT)
    if not text.strip():
        return None
    try:
        if len(text) > _LIMIT:
            raise ValueError("too long")
        config = json.loads(text)
    except ValueError:
        raise StemcellError(f"{_PATH} in the stemcell is not JSON") from None
    return config if isinstance(config, dict) else None


def _write(raw: Path, system: FileSystem, config: Mapping[str, Any], folder: Path) -> None:
    content, script = folder / "agent.json", folder / "debugfs"
    content.write_text(json.dumps(config, indent=2))
    name = re.fullmatch(r"[A-Za-z0-9._/@:+-]+", str(content))
    if name is None:  # debugfs splits its words by itself
        raise StemcellError(f"{content} cannot be named to debugfs; choose another state_dir")
    script.write_text(f"rm {_PATH}\nwrite {content} {_PATH}\nsif {_PATH} mode 0100644\n")
    run(["debugfs", "-w", "-f", str(script), _device(raw, system)], _HINT)
    if _read(raw, system) != config:
        raise StemcellError(f"{_PATH} could not be written into the stemcell's disk")


def _device(raw: Path, system: FileSystem) -> str:
    return f"{raw}?offset={system.offset}"
