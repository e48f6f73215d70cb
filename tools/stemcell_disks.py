"""Makes stemcells' disks, laid out as BOSH does, for tests and benchmarks."""

import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20
SECTOR = 512
ESP_MIB = 4

# sfdisk's words for each layout of the stemcell builder, the root partition last.
LAYOUTS = {
    "mbr": "label: dos\nstart=63, type=83, bootable\n",
    "mbr+esp": f"label: dos\nstart=2048, size={ESP_MIB}MiB, type=ef\ntype=83, bootable\n",
    "gpt": (
        "label: gpt\nstart=2048, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n"
        f"size={ESP_MIB}MiB, type=uefi\ntype=linux\n"
    ),
}


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


def converted(raw: Path, kind: str, *options: str, compress: bool = False) -> Path:
    """The disk in another format, by qemu-img."""
    path = raw.with_suffix(f".{kind}")
    words = [word for option in options for word in ("-o", option)]
    if compress:
        words += ["-c", "-W", "-m", "16"]  # by as many threads as are of use, in any order
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
