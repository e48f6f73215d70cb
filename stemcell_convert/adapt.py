"""What a stemcell needs to run in a container, as a second, small OCI layer.

The first layer is the stemcell's own bytes. This one depends only on the facts, so the same
stemcell gives the same digests everywhere. Each entry has its reason.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stemcell_convert import mount_programs
from stemcell_convert.facts import AGENT_CONFIG, SYSTEMD, WARDEN_SETTINGS, RootfsFacts

# Raise this when the content below changes, so that stemcells are imported again.
VERSION = "5"

_FOR_DISKS = "the agent takes bind-mounted disks for devices"

_GRUB_FOLDER = "/boot/grub"
_NOTHING = b"#!/bin/sh\nexit 0\n"
_AUDITING = f"{mount_programs.FOLDER}/bosh-start-logging-and-auditing"
_MANAGER = "/etc/systemd/system.conf.d/bosh-container.conf"
# The default is 15 % of pids.max: with `pids: 200` the agent and all jobs below it would have 30.
_TASKS_MAX = b"[Manager]\nDefaultTasksMax=100%\n"
_START_LIMIT = b"DefaultStartLimitBurst=500\n"  # as newer warden stemcells have

# Units that cannot work, or would touch the host, in a container without its own kernel.
MASKED_UNITS = {
    "dev-hugepages.mount": "the host's huge pages",
    "dev-mqueue.mount": "mounted already",
    "getty@tty1.service": "no terminal",
    "console-getty.service": "no console",
    "getty.target": "no terminal",
    "kmod-static-nodes.service": "no kernel modules",
    "proc-sys-fs-binfmt_misc.automount": "one table for the whole host",
    "proc-sys-fs-binfmt_misc.mount": "one table for the whole host",
    "sys-fs-fuse-connections.mount": "/sys is read-only",
    "sys-kernel-config.mount": "the host's kernel objects",
    "sys-kernel-debug.mount": "the host's kernel",
    "sys-kernel-tracing.mount": "the host's kernel",
    "systemd-binfmt.service": "one table for the whole host",
    "systemd-modules-load.service": "no kernel modules",
    "systemd-remount-fs.service": "the root file system is the container's",
    "systemd-sysctl.service": "/proc/sys is read-only",
    "systemd-udev-settle.service": "no devices",
    "systemd-udev-trigger.service": "would replay the host's devices",
    "systemd-udevd-control.socket": "no devices",
    "systemd-udevd-kernel.socket": "no devices",
    "systemd-udevd.service": "no devices",
    "systemd-firstboot.service": "asks questions",
    "auditd.service": "the kernel's audit belongs to the host",
    "systemd-networkd-wait-online.service": "the network is there before the first process",
    "systemd-networkd.service": "the network is there before the first process",
    "systemd-networkd.socket": "the network is there before the first process",
    "networking.service": "the network is there before the first process",
    "systemd-timesyncd.service": "the clock is the host's",
    "chrony.service": "the clock is the host's",
    "ntp.service": "the clock is the host's",
    "multipathd.service": "no block devices",
    "multipathd.socket": "no block devices",
    "iscsid.service": "no block devices",
    "iscsid.socket": "no block devices",
    "open-iscsi.service": "no block devices",
    "lvm2-monitor.service": "no block devices",
    "blk-availability.service": "no block devices",
    "apparmor.service": "the host's profiles",
}

# What differs in a container's agent.json, as of base_warden (stemcell builder).
_CONTAINERS = {
    "UseDefaultTmpDir": True,
    "UsePreformattedPersistentDisk": True,
    "BindMountPersistentDisk": True,
    "SkipDiskSetup": True,
}
# How a machine finds its devices: the agent would look for disks that are folders here.
_MACHINES = ("DevicePathResolutionType", "VirtioDevicePrefix", "LunDeviceSymlinkPath")
_SOURCES = [{"Type": "File", "SettingsPath": WARDEN_SETTINGS}]


@dataclass(frozen=True)
class Entry:
    """An entry of the layer: a folder, a link (`target`) or a file (`data`)."""

    path: str
    reason: str
    target: str = ""
    data: bytes | None = None
    mode: int = 0o644


def adaptations(facts: RootfsFacts) -> list[Entry]:
    """Return what the second layer of a stemcell holds, in the order of its paths."""
    entries = [
        Entry(mount_programs.DISK_FOLDER, "persistent disks appear below it"),
        Entry("/var/vcap/data", "the ephemeral disk is mounted here"),
        Entry(f"{mount_programs.FOLDER}/mount", _FOR_DISKS, data=mount_programs.MOUNT, mode=0o755),
        Entry(
            f"{mount_programs.FOLDER}/umount", _FOR_DISKS, data=mount_programs.UMOUNT, mode=0o755
        ),
        # The agent does not start when this fails, as starting a masked unit does.
        Entry(_AUDITING, "the kernel's audit belongs to the host", data=_NOTHING, mode=0o755),
        # With env.bosh.ipv6.enable it reads this, and reboots if IPv6 is disabled by it.
        Entry(_GRUB_FOLDER, "the agent's IPv6 setting needs it"),
        Entry(f"{_GRUB_FOLDER}/grub.cfg", "the agent's IPv6 setting needs it", data=b""),
    ]
    if not facts.for_containers:
        entries += _for_machines(facts)
    if facts.init == SYSTEMD:
        manager = _TASKS_MAX if facts.for_containers else _TASKS_MAX + _START_LIMIT
        entries.append(Entry(_MANAGER, "what a service may take of the VM", data=manager))
        entries += [
            Entry(f"/etc/systemd/system/{unit}", f"masked: {reason}", target="/dev/null")
            for unit, reason in MASKED_UNITS.items()
        ]
    return sorted(entries, key=lambda entry: entry.path)


def _for_machines(facts: RootfsFacts) -> list[Entry]:
    """Return what changes in a root file system that was made for a machine."""
    document = json.dumps(agent_config(facts), indent=2).encode()
    return [
        Entry(AGENT_CONFIG, "the agent's configuration was not a container's", data=document),
        # OCI's word for "nothing of the layers below" (image-spec, opaque whiteout).
        Entry("/boot/.wh..wh..opq", "kernel and boot loader: the host has its own", data=b""),
        Entry("/etc/fstab", "its file systems are the disk's", data=b""),
        Entry(
            f"{mount_programs.FOLDER}/restart_networking",
            "the network is there before the first process",
            data=_NOTHING,
            mode=0o755,
        ),
    ]


def agent_config(facts: RootfsFacts) -> dict[str, Any]:
    """Return a machine's agent.json as a container needs it, with all else that it says.

    The service manager is systemd only where runit is not there: monit is one of its services.
    """
    config = dict(facts.agent)
    platform, infrastructure = _section(config, "Platform"), _section(config, "Infrastructure")
    linux = {
        **{key: item for key, item in _section(platform, "Linux").items() if key not in _MACHINES},
        **_CONTAINERS,
    }
    if facts.init == SYSTEMD and not facts.runit:
        linux.setdefault("ServiceManager", "systemd")
    settings = {**_section(infrastructure, "Settings"), "Sources": _SOURCES}
    settings.pop("UseRegistry", None)  # BOSH's registry of old, which no CPI of version 2 has
    return {
        **config,
        "Platform": {**platform, "Linux": linux},
        "Infrastructure": {**infrastructure, "Settings": settings},
    }


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name)
    return dict(section) if isinstance(section, dict) else {}


def layer(entries: list[Entry]) -> bytes:
    """Return the entries as an uncompressed tar, the same bytes on every machine."""
    import tarfile  # only for this, and every create_vm loads this module

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path.lstrip("/"))
            info.mode = 0o755
            if entry.data is not None:
                info.mode, info.size = entry.mode, len(entry.data)
                tar.addfile(info, io.BytesIO(entry.data))
                continue
            info.type = tarfile.SYMTYPE if entry.target else tarfile.DIRTYPE
            info.linkname = entry.target
            tar.addfile(info)
    return buffer.getvalue()
