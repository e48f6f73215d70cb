"""Make stemcells' disks, laid out as BOSH does, for tests and benchmarks."""

import json
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip

MIB = 1 << 20
SECTOR = 512
ESP_MIB = 4

NO_TABLE = "none"
# sfdisk's words for each layout of the stemcell builder, the root partition last.
LAYOUTS = {
    "mbr": "label: dos\nstart=63, type=83, bootable\n",
    "mbr+esp": f"label: dos\nstart=2048, size={ESP_MIB}MiB, type=ef\ntype=83, bootable\n",
    "mbr+boot": f"label: dos\nstart=63, size={ESP_MIB}MiB, type=83, bootable\ntype=83\n",
    "gpt": (
        "label: gpt\nstart=2048, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n"
        f"size={ESP_MIB}MiB, type=uefi\ntype=linux\n"
    ),
}


def disk(root: Path, folder: Path, layout: str, filesystem: str = "ext4", size: int = 320) -> Path:
    """Make a raw disk of `size` MiB with the root file system on the layout's last partition.

    Without a partition table (NO_TABLE) the file system is all of the disk.
    """
    path = folder / f"{layout}-{filesystem}.raw"
    with path.open("wb") as file:
        file.truncate(size * MIB)
    start, count = (0, size * MIB) if layout == NO_TABLE else _partitioned(path, LAYOUTS[layout])
    if filesystem == "xfs":
        _put_xfs(root, path, start, count)
        return path
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(root)]
    subprocess.run(
        [*words, "-E", f"offset={start}", path, f"{count // 1024}k"],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def _partitioned(path: Path, layout: str) -> tuple[int, int]:
    """Write a partition table; return where the last partition begins, and its bytes."""
    subprocess.run(["sfdisk", "--quiet", path], input=layout, text=True, check=True)
    listed = subprocess.run(["sfdisk", "--json", path], check=True, capture_output=True, text=True)
    parts = json.loads(listed.stdout)["partitiontable"]["partitions"]
    for part in parts[:-1]:
        with path.open("r+b") as file:  # what firmware reads; nothing here does
            file.seek(part["start"] * SECTOR)
            file.write(b"\xeb\x3c\x90mkfs.fat")
    return parts[-1]["start"] * SECTOR, parts[-1]["size"] * SECTOR


def _put_xfs(root: Path, path: Path, start: int, count: int) -> None:
    """Make an xfs of a folder's files at a place of a disk; needs root to mount it."""
    system = path.with_suffix(".xfs")
    with system.open("wb") as file:
        file.truncate(count)
    subprocess.run(["mkfs.xfs", "-q", system], check=True)
    mounted = path.with_suffix(".mounted")
    mounted.mkdir()
    # Only the shell sees the mount, which ends with it.
    script = 'mount -o loop "$0" "$1" && cp --archive "$2/." "$1"'
    subprocess.run(["unshare", "--mount", "sh", "-c", script, system, mounted, root], check=True)
    mounted.rmdir()
    words = ["dd", f"if={system}", f"of={path}", f"seek={start}", "oflag=seek_bytes", "bs=64K"]
    subprocess.run([*words, "conv=notrunc,sparse", "status=none"], check=True)
    system.unlink()


def converted(raw: Path, disk_format: str, *options: str, compress: bool = False) -> Path:
    """Convert a raw disk to another format with qemu-img."""
    path = raw.with_suffix(f".{disk_format}")
    words = [word for option in options for word in ("-o", option)]
    if compress:
        words += ["-c", "-W", "-m", "16"]  # by as many threads as are of use, in any order
    subprocess.run(["qemu-img", "convert", "-O", disk_format, *words, raw, path], check=True)
    return path


def archive(path: Path, mode: str, members: Mapping[str, Path | bytes]) -> Path:
    """Make a tar, or a tar.gz (mode "w:gz"), of these members, in this order."""
    holder = path.parent / "member"
    with ExitStack() as stack:
        stream = cast(BinaryIO, stack.enter_context(path.open("wb")))
        if mode == "w:gz":
            # As small as gzip's own fastest, in a fraction of the time.
            zipped = igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=stream)
            stream = cast(BinaryIO, stack.enter_context(zipped))
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="w|", bufsize=MIB))
        for name, content in members.items():
            if isinstance(content, bytes):
                holder.write_bytes(content)
                content = holder
            tar.add(content, name)
    return path
