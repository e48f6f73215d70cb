"""Root file systems of stemcells for virtual machines."""

import json
import os
import stat
import subprocess
from pathlib import Path

MIB = 1 << 20
# cap_net_bind_service, effective and permitted, as the kernel keeps it (capability.h, version 2).
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def machine_root(image: Path, folder: Path) -> Path:
    """Make a machine's root file system from a warden stemcell's `image`; return its folder."""
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", str(image), "-C", str(root)], check=True)
    agent = {
        "Platform": {"Linux": {"DevicePathResolutionType": "virtio"}},
        "Infrastructure": {
            "Settings": {
                "Sources": [
                    {"Type": "File", "SettingsPath": "/var/vcap/bosh/agent-bootstrap-env.json"},
                    {"Type": "ConfigDrive", "DiskPaths": ["/dev/disk/by-label/config-2"]},
                ]
            }
        },
    }
    (root / "var/vcap/bosh/agent.json").write_text(json.dumps(agent))
    (root / "boot/grub").mkdir(parents=True)
    (root / "boot/grub/grub.cfg").write_text("menuentry\n")
    (root / "boot/vmlinuz-6.1").write_bytes(b"kernel")
    (root / "etc/fstab").write_text("UUID=1 / ext4 defaults 1 1\n")
    # The agent runs it when it starts, and it fails in a container.
    auditing = root / "var/vcap/bosh/bin/bosh-start-logging-and-auditing"
    auditing.write_text("#!/bin/sh\nservice auditd start\n")
    auditing.chmod(0o755)
    _add_odd_files(root / "opt/odd")
    return root


def _add_odd_files(folder: Path) -> None:
    """Add files with attributes that a careless copy loses."""
    folder.mkdir()
    folder.chmod(0o2755)
    plain = folder / "plain"
    plain.write_text("content")
    os.chown(plain, 1234, 56789)
    plain.chmod(0o4711)  # after the owner, which takes the setuid bit away
    os.setxattr(plain, "user.note", b"kept")
    os.setxattr(plain, "security.capability", CAPABILITY)
    os.utime(plain, ns=(0, 1234567890_123456789))
    os.link(plain, folder / "linked")
    (folder / "symbolic").symlink_to("/nowhere/at all")
    with (folder / "sparse").open("wb") as file:
        file.seek(64 * MIB)
        file.write(b"end")
    with open(os.fsencode(folder) + b"/\xff\xfe name", "wb"):
        pass
    os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(folder / "fifo")
