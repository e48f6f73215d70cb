"""Make a small stemcell for virtual machines, with our stand-in for BOSH's agent.

It is what BOSH's stemcells for OpenStack, vSphere or AWS are, as a CPI sees them: a disk that a
BIOS starts, with an agent that finds its settings where BOSH's agent does on that infrastructure.
It runs no jobs. It is small and starts within seconds even where no CPU is there to virtualize, for
tests of CPIs (testing/agent/stand_in_machine.py tells what its agent does):

    sudo python3 -m testing.stemcells.machine_stemcell --kind openstack --output stemcell.tgz

It needs root, mmdebstrap and qemu-img on an amd64 host. Packages come from the sources that apt has
on this host.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testing.repository import REPOSITORY
from testing.stemcells import (
    machine_disk,
    machine_rootfs,
    make_stemcell,
    stemcell_disks,
    stemcell_host,
)
from testing.stemcells.machine_infrastructures import (
    INFRASTRUCTURES,
    Infrastructure,
    manifest,
    ovf,
    stemcell_name,
)
from testing.stemcells.stemcell_rootfs import AGENT, BuildError, package_date
from testing.stemcells.stemcell_source import StemcellUnusable, kept

SUITE = "bookworm"
VMDK = "image-disk1.vmdk"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or make a stemcell for another program; return the exit status.

    A separate process does the work, with its own mounts.
    """
    parser = argparse.ArgumentParser(
        prog="python3 -m testing.stemcells.machine_stemcell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--kind", choices=sorted(INFRASTRUCTURES), default="openstack", help="infrastructure"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.tgz")
    args = parser.parse_args(argv)
    try:
        stemcell_host.check(args.output)
        if make_stemcell.architecture() != "x86_64":
            raise BuildError("makes machines of amd64 only, on such a host")
        if not stemcell_host.in_worker():
            words = list(sys.argv[1:] if argv is None else argv)
            return stemcell_host.run_worker(
                [sys.executable, "-m", "testing.stemcells.machine_stemcell", *words]
            )
        os.umask(0o022)
        with stemcell_host.work_folder() as folder:
            make(folder, INFRASTRUCTURES[args.kind], args.output)
    except BuildError as error:
        print(f"machine_stemcell: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def stand_in_machine(iaas: str = "openstack") -> Path:
    """Return a machine stemcell with our stand-in agent, making it unless it is cached.

    Its name holds a hash of what it is made from. Raises StemcellUnusable.
    """
    stemcells = Path(__file__).parent
    patterns = ("machine_*.py", "make_stemcell.py", "stemcell_disks.py", "stemcell_rootfs.py")
    sources = [path for pattern in patterns for path in stemcells.glob(pattern)]
    sources += (REPOSITORY / AGENT).glob("stand_in*.py")
    for layer in ("any", "machine*"):
        for folder in (stemcells / "stemcell_files").glob(layer):
            sources += [path for path in folder.rglob("*") if path.is_file()]

    def make_it(output: Path) -> None:
        if main(["--kind", iaas, "--output", str(output)]):
            raise StemcellUnusable(f"no {iaas} stemcell could be made")

    return kept(f"machine-{iaas}", sources, make_it)


def make(work: Path, iaas: Infrastructure, output: Path) -> None:
    """Build the stemcell below `work` and move it to `output`; raises BuildError."""
    start = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {message}", file=sys.stderr, flush=True)

    root, boot, stage, mounted = (work / name for name in ("root", "boot", "stage", "mounted"))
    for folder in (boot, stage, mounted):
        folder.mkdir()
    say(f"making a small {iaas.name} machine")
    options, mirrors = stemcell_host.apt_options(), stemcell_host.mirrors(SUITE)
    machine_rootfs.unpack(root, iaas, SUITE, mirrors, options, say)
    date = package_date(root)
    version = time.strftime("0.%Y%m%d", time.gmtime(date))
    say("adding the kernel and the agent")
    machine_rootfs.furnish(root, boot, iaas, version)
    machine_disk.configure(root)
    loader = machine_disk.BootLoader(root, work / "loader")
    machine_rootfs.trim(root)
    (stage / "packages.txt").write_text(packages(root))
    (stage / "dev_tools_file_list.txt").write_text("")
    say("making the disk")
    disk = work / "root.raw"
    machine_disk.make(root, disk)
    loader.install(boot, disk, mounted)
    say("packing the image")
    sha1 = pack(iaas, disk, stage / "image", date)
    name = stemcell_name(iaas, SUITE)
    content = manifest(iaas, name, version, sha1, suite=SUITE, disk_mib=machine_disk.SIZE_MIB)
    (stage / "stemcell.MF").write_text(make_stemcell.to_yaml(content))
    make_stemcell.publish(stage, output, date=date)
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {name}/{version}")


def packages(root: Path) -> str:
    """Return the names of the packages in a rootfs, by their licences, one a line."""
    return "".join(f"{path.name}\n" for path in sorted((root / "usr/share/doc").iterdir()))


def pack(iaas: Infrastructure, disk: Path, image: Path, date: int) -> str:
    """Write the stemcell's `image` and return its SHA-1 in hex; raises BuildError."""
    folder = disk.parent / "image"
    folder.mkdir()
    if iaas.disk_format == "ovf":
        vmdk = stemcell_disks.converted(disk, "vmdk", "subformat=streamOptimized")
        vmdk.rename(folder / VMDK)
        size = (folder / VMDK).stat().st_size
        text = ovf(VMDK, file_size=size, disk_mib=machine_disk.SIZE_MIB)
        (folder / "image.ovf").write_text(text)
        names = ["image.ovf", VMDK]
    else:
        if iaas.disk_format == "qcow2":
            disk = stemcell_disks.converted(disk, "qcow2", "compat=0.10", compress=True)
        disk.rename(folder / "root.img")
        names = ["root.img"]
    return make_stemcell.pack(folder, names, image, date=date, level=1)


if __name__ == "__main__":
    sys.exit(main())
