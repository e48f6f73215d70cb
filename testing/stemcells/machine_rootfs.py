"""The root file system of a small machine, made from Debian's packages (see machine_stemcell).

Its packages are unpacked and not configured: no maintainer script runs and there is no package
database, since nothing is ever installed there.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from testing.repository import REPOSITORY
from testing.stemcells import machine_initramfs
from testing.stemcells.machine_infrastructures import Infrastructure
from testing.stemcells.stemcell_rootfs import (
    AGENT,
    DIRECTORIES,
    FILES,
    MERGED_USR_HOOK,
    STAND_IN,
    bootstrap,
    in_root,
    inside,
    put,
    remove,
)

PACKAGES = (
    *("base-files", "busybox-static", "dash", "e2fsprogs", "extlinux", "fdisk", "iproute2"),
    *("kmod", "libpython3-stdlib", "libssl3", "mount", "parted", "python3-minimal", "udev"),
    "util-linux",
)
TRIMMED = (
    *("dev/*", "run/*", "tmp/*", "var/cache/apt/*", "var/lib/apt/lists/*"),
    *("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/bug", "usr/share/lintian"),
    *("usr/share/bash-completion", "usr/share/zsh", "usr/share/perl5", "usr/share/debconf"),
    *("usr/share/initramfs-tools", "usr/share/common-licenses", "usr/lib/klibc*", "usr/lib/linux*"),
    *("usr/lib/EXTLINUX", "usr/lib/*/gconv", "usr/lib/udev/hwdb.d", "usr/lib/locale"),
    *(f"usr/lib/python3.*/{name}" for name in ("lib2to3", "pydoc_data", "distutils", "unittest")),
    *(f"usr/lib/python3.*/{name}" for name in ("idlelib", "ensurepip", "tkinter", "test")),
    *("usr/lib/python3.*/turtle*", "usr/lib/python3.*/sqlite3", "usr/lib/*/libsqlite3*"),
    *("usr/bin/dpkg*", "usr/bin/perl*", "usr/lib/*/perl*", "usr/lib/*/libdb-*"),
    "usr/lib/*/libsepol*",
)
# The rules that name disks; the others are for devices that such a machine lacks.
UDEV_RULES = re.compile(
    r"(50-udev-default|60-block|60-cdrom_id|60-persistent-storage|80-drivers)\.rules"
)
# Run in the rootfs: compiles all modules that the agent loads, and no other.
COMPILE = """
import sys
sys.path[0] = "/var/vcap/bosh/stand_in"
import py_compile
from testing.agent import stand_in_machine, stand_in_machine_entropy
import http.client, importlib._bootstrap, socketserver, ssl, urllib.request, uuid
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for module in list(sys.modules.values()):
    if (name := getattr(module, "__file__", None) or "").endswith(".py"):
        py_compile.compile(name, doraise=True, invalidation_mode=mode)
"""


def unpack(
    root: Path, iaas: Infrastructure, suite: str, mirrors: Sequence[str], options: Sequence[str],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Fetch the packages and unpack them; raises BuildError.

    options: lines for apt's configuration; say: called with progress.
    """
    argv = ["mmdebstrap", "--mode=root", "--variant=extract", "--format=directory"]
    argv += [f"--include={','.join((*PACKAGES, iaas.kernel))}"]
    argv += [f"--aptopt={option}" for option in options]
    if MERGED_USR_HOOK.is_dir():
        argv.append(f"--hook-dir={MERGED_USR_HOOK}")
    bootstrap([*argv, suite, str(root), *mirrors], say)


def furnish(root: Path, boot: Path, iaas: Infrastructure, version: str) -> None:
    """Turn the unpacked packages into a machine; the kernel goes to `boot`. Raises BuildError."""
    for name, mode in DIRECTORIES.items():
        inside(root, f"{name}/x")
        (root / name).chmod(mode)
    put_kernel(root, boot, iaas)
    for layer in ("any", "machine", f"machine-{iaas.name}"):
        for source in sorted((FILES / layer).rglob("*")):
            if source.is_file():
                put(root, str(source.relative_to(FILES / layer)), source)
    put_agent(root)
    link_applets(root)
    facts = {
        "var/vcap/bosh/etc/infrastructure": iaas.name,
        "var/vcap/bosh/etc/operating_system": "ubuntu",
        "var/vcap/bosh/etc/stemcell_version": version,
        "etc/hostname": "bosh-stemcell\n",
        "etc/resolv.conf": "",
    }
    for name, content in facts.items():
        inside(root, name).write_text(content)


def put_kernel(root: Path, boot: Path, iaas: Infrastructure) -> None:
    """Put kernel and initramfs in a folder, and list modules to load; raises BuildError."""
    modules = machine_initramfs.Modules(root)
    shutil.copyfile(root / f"boot/vmlinuz-{modules.version}", boot / "vmlinuz")
    later = (*machine_initramfs.LATER, *iaas.disk_drivers, *iaas.card_drivers)
    first = [name for names in machine_initramfs.GROUPS.values() for name in names]
    modules.keep([*first, *later])
    for path in (root / "boot").iterdir():
        remove(path)
    machine_initramfs.write(root, modules, iaas.disk_drivers, boot / "initramfs")
    names = "".join(f"{name}\n" for name in later)
    inside(root, "usr/lib/machine/modules").write_text(names)


def put_agent(root: Path) -> None:
    """Install the stand-in agent, with the bytecode of everything that it loads."""
    machine = sorted((REPOSITORY / AGENT).glob("stand_in_machine*.py"))
    names = [*STAND_IN, *(f"{AGENT}/{path.name}" for path in machine)]
    for name in names:
        put(root, f"var/vcap/bosh/stand_in/{name}", REPOSITORY / name)
    in_root(root, "python3", "-S", "-E", "-c", COMPILE)


def link_applets(root: Path) -> None:
    """Link to busybox every applet that the rootfs has no program for."""
    for name in in_root(root, "busybox", "--list").split():
        places = [root / "usr/bin" / name, root / "usr/sbin" / name]
        if not any(os.path.lexists(place) for place in places):
            places[0].symlink_to("busybox")
    (root / "usr/sbin/init").unlink(missing_ok=True)
    (root / "usr/sbin/init").symlink_to("/usr/bin/busybox")


def trim(root: Path) -> None:
    """Remove what no machine needs."""
    for pattern in TRIMMED:
        for path in list(root.glob(pattern)):
            remove(path)
    for path in (root / "usr/lib/udev/rules.d").iterdir():
        if not UDEV_RULES.fullmatch(path.name):
            path.unlink()
    for path in list((root / "usr/share/doc").rglob("*")):
        # The licences have to stay with the programs.
        if (path.is_file() or path.is_symlink()) and path.name != "copyright":
            path.unlink()
