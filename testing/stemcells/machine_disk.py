"""The disk of a small machine: one ext4 partition that a BIOS can start, by extlinux."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from testing.stemcells.stemcell_rootfs import BuildError, inside, run

MIB = 1 << 20
START = MIB  # of the partition, in bytes
SIZE_MIB = 320
LABEL = "bosh-root"
CODE_SIZE = 440  # bytes of an MBR before the partition table
LOADER = "boot/extlinux"
# quiet: every line on a serial port costs time. mitigations=off: so does every change of page
# tables where a CPU is emulated. The rest leaves out what nothing here needs.
OPTIONS = (
    *("console=tty0", "console=ttyS0", "quiet", "loglevel=4", "net.ifnames=0", "biosdevname=0"),
    *("mitigations=off", "audit=0", "apparmor=0", "nowatchdog", "cryptomgr.notests"),
    *("random.trust_cpu=on", "tsc=reliable", "no_timer_check", "8250.nr_uarts=1"),
    *("scsi_mod.scan=sync", "panic=-1"),
)
CONFIG = f"""\
DEFAULT machine
PROMPT 0
TIMEOUT 0
LABEL machine
  LINUX ../vmlinuz
  INITRD ../initramfs
  APPEND {" ".join(OPTIONS)}
"""


class BootLoader:
    """extlinux of a rootfs, kept for use after the rootfs has been trimmed."""

    def __init__(self, root: Path, folder: Path) -> None:
        """Keep the programs below a folder."""
        self.folder = folder
        folder.mkdir()
        for name in ("usr/bin/extlinux", "usr/lib/EXTLINUX/mbr.bin"):
            shutil.copy2(root / name, folder)
        # With its own libc, since the host's may be older.
        shutil.copy2(root / "usr/lib64/ld-linux-x86-64.so.2", folder)
        self.libraries = root / "usr/lib/x86_64-linux-gnu"

    def install(self, boot: Path, disk: Path, mounted: Path) -> None:
        """Make a disk bootable by a BIOS; raises BuildError.

        boot: the kernel and its initramfs; mounted: an empty folder.
        """
        with disk.open("r+b") as file:
            file.write((self.folder / "mbr.bin").read_bytes()[:CODE_SIZE])
        run(["mount", "-t", "ext4", "-o", f"loop,offset={START}", str(disk), str(mounted)])
        try:
            # Now, since mke2fs makes holes of zeros in files, which extlinux cannot read.
            for path in boot.iterdir():
                shutil.copyfile(path, mounted / "boot" / path.name)
            start = [str(self.folder / "ld-linux-x86-64.so.2"), "--library-path"]
            start += [str(self.libraries), str(self.folder / "extlinux")]
            run([*start, "--install", str(mounted / LOADER)])
        finally:
            run(["umount", str(mounted)])


def configure(root: Path) -> None:
    """Write the loader's configuration into a rootfs."""
    inside(root, f"{LOADER}/extlinux.conf").write_text(CONFIG)


def make(root: Path, disk: Path) -> None:
    """Make a raw disk with the files of a rootfs; raises BuildError."""
    with disk.open("wb") as file:
        file.truncate(SIZE_MIB * MIB)
    table = f"label: dos\nstart={START // 512}, type=83, bootable\n"
    done = subprocess.run(
        ["sfdisk", "--quiet", str(disk)], input=table, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise BuildError(f"sfdisk failed: {done.stderr.strip()}")
    run(mke2fs_argv(root, disk))


def mke2fs_argv(root: Path, disk: Path) -> Sequence[str]:
    """Return the command that makes the file system, without what extlinux cannot read."""
    options = f"offset={START},lazy_itable_init=0,root_owner=0:0"
    features = "^64bit,^metadata_csum,^orphan_file"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=4"]
    argv += ["-O", features, "-E", options, "-L", LABEL, "-d", str(root), str(disk)]
    return [*argv, f"{(SIZE_MIB * MIB - START) // 1024}k"]
