"""The initramfs of a small machine: busybox, the modules for disks, and one script."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from testing.stemcells.stemcell_rootfs import FILES, BuildError, in_root, remove

SCRIPT = FILES / "machine-initramfs/init"
# What finds the root disk, tried in this order.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "virtio": ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic"),
    "scsi": ("virtio_scsi", "sd_mod"),
    "ata": ("ata_piix", "sd_mod"),
}
# What else the machine needs, loaded after it has mounted its root file system.
LATER = ("virtio_net", "button", "evdev", "isofs", "virtio_scsi", "sd_mod", "ata_piix", "sr_mod")
FOLDERS = ("bin", "dev", "modules", "proc", "root", "sys")


class Modules:
    """The kernel modules of a rootfs: what depends on what. Raises BuildError."""

    def __init__(self, root: Path) -> None:
        folders = sorted((root / "usr/lib/modules").iterdir())
        if len(folders) != 1:
            raise BuildError(f"expected one kernel, found {[path.name for path in folders]}")
        self.root, self.folder, self.version = root, folders[0], folders[0].name
        self.index()

    def index(self) -> None:
        """Read the dependencies again after modules were added or removed."""
        in_root(self.root, "depmod", self.version)
        lines = (self.folder / "modules.dep").read_text().splitlines()
        pairs = (line.partition(":") for line in lines)
        self.needs = {name: rest.split() for name, _, rest in pairs}
        self.paths = {module_name(path): path for path in self.needs}
        builtin = (self.folder / "modules.builtin").read_text().splitlines()
        self.builtin = {module_name(path) for path in builtin}

    def closure(self, names: Iterable[str]) -> list[str]:
        """Return the files of modules and all they need, in an order to load them in."""
        wanted: list[str] = []
        for name in names:
            if name in self.paths:
                path = self.paths[name]
                # depmod lists what is needed, the most needed last.
                wanted += [*reversed(self.needs[path]), path]
            elif name not in self.builtin:
                raise BuildError(f"kernel {self.version} has no module {name}")
        return list(dict.fromkeys(wanted))

    def keep(self, names: Iterable[str]) -> None:
        """Remove all other modules."""
        kept = set(self.closure(names))
        for path in list(self.folder.rglob("*.ko*")):
            if str(path.relative_to(self.folder)) not in kept:
                remove(path)
        self.index()


def module_name(path: str) -> str:
    """Return the name of a module by the path of its file."""
    return re.sub(r"\.ko(\.\w+)?$", "", Path(path).name).replace("-", "_")


def write(root: Path, modules: Modules, drivers: Sequence[str], output: Path) -> None:
    """Write the initramfs of a rootfs; raises BuildError.

    drivers: what the machine's disks need in addition to the default; tried last.
    """
    groups = {**GROUPS, "ata": (*GROUPS["ata"], *drivers)}
    with output.open("wb") as file:
        for block in archive(root, modules, groups):
            file.write(block)


def archive(root: Path, modules: Modules, groups: Mapping[str, Sequence[str]]) -> Iterator[bytes]:
    """Yield the initramfs, not compressed: unpacking takes longer than reading it does."""
    for name in FOLDERS:
        yield entry(name, stat.S_IFDIR | 0o755)
    yield entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield entry("bin/busybox", stat.S_IFREG | 0o755, (root / "usr/bin/busybox").read_bytes())
    yield entry("init", stat.S_IFREG | 0o755, SCRIPT.read_bytes())
    done: set[str] = set()
    for group, names in groups.items():
        files = [path for path in modules.closure(names) if path not in done]
        done.update(files)
        lines = "".join(f"{Path(path).name}\n" for path in files)
        yield entry(f"modules/{group}", stat.S_IFREG | 0o644, lines.encode())
        for path in files:
            content = (modules.folder / path).read_bytes()
            yield entry(f"modules/{Path(path).name}", stat.S_IFREG | 0o644, content)
    yield entry("TRAILER!!!", 0)


def entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """Return one file of a cpio archive in the format newc; the kernel needs no inodes."""
    word = os.fsencode(name) + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(word), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return padded(header + word) + padded(content)


def padded(block: bytes) -> bytes:
    """Return a block padded to the 4 bytes of cpio."""
    return block + b"\0" * (-len(block) % 4)
