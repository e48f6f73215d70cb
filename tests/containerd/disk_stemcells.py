"""Makes stemcells that are disks, laid out as BOSH does, of a warden stemcell's files."""

import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20
SECTOR = 512
ESP_MIB = 4
# cap_net_bind_service, effective and permitted, as the kernel keeps it (capability.h, version 2).
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")

# sfdisk's words for each layout of the stemcell builder, the root partition last.
LAYOUTS = {
    "mbr": "label: dos\nstart=63, type=83, bootable\n",
    "mbr+esp": f"label: dos\nstart=2048, size={ESP_MIB}MiB, type=ef\ntype=83, bootable\n",
    "gpt": (
        "label: gpt\nstart=2048, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n"
        f"size={ESP_MIB}MiB, type=uefi\ntype=linux\n"
    ),
}


def machine_root(image: Path, folder: Path) -> Path:
    """A root file system made for a machine, from a warden stemcell's `image`."""
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
    # What the agent runs when it starts, and what fails in a container.
    auditing = root / "var/vcap/bosh/bin/bosh-start-logging-and-auditing"
    auditing.write_text("#!/bin/sh\nservice auditd start\n")
    auditing.chmod(0o755)
    _add_odd_files(root / "opt/odd")
    return root


def _add_odd_files(folder: Path) -> None:
    """What a careless copy loses."""
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


def disk(root: Path, folder: Path, layout: str, kind: str = "ext4", size: int = 512) -> Path:
    """A raw disk of `size` MiB with this layout, the root file system on its last partition."""
    path = folder / f"{layout}-{kind}.raw"
    with path.open("wb") as file:
        file.truncate(size * MIB)
    subprocess.run(["sfdisk", "--quiet", path], input=LAYOUTS[layout], text=True, check=True)
    listed = subprocess.run(["sfdisk", "--json", path], check=True, capture_output=True, text=True)
    parts = json.loads(listed.stdout)["partitiontable"]["partitions"]
    for part in parts[:-1]:
        with path.open("r+b") as file:  # what firmware reads; nothing here does
            file.seek(part["start"] * SECTOR)
            file.write(b"\xeb\x3c\x90mkfs.fat")
    start, count = parts[-1]["start"] * SECTOR, parts[-1]["size"] * SECTOR
    if kind == "ext4":
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(root)]
        subprocess.run(
            [*words, "-E", f"offset={start}", path, f"{count // 1024}k"],
            check=True, capture_output=True,
        )  # fmt: skip
    return path


def converted(raw: Path, kind: str, *options: str) -> Path:
    """The disk in another format, by qemu-img."""
    path = raw.with_suffix(f".{kind}")
    words = [word for option in options for word in ("-o", option)]
    subprocess.run(["qemu-img", "convert", "-O", kind, *words, raw, path], check=True)
    return path


def archive(path: Path, mode: str, members: Mapping[str, Path | bytes]) -> Path:
    """A tar with these members, in this order."""
    holder = path.parent / "member"
    quick = {"compresslevel": 1} if mode == "w:gz" else {}
    with tarfile.open(path, mode, **quick) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, bytes):
                holder.write_bytes(content)
                content = holder
            tar.add(content, name)
    return path
