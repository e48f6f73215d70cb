"""Whether QEMU can use this host's /dev/kvm: tried as QEMU's user, and remembered.

libvirt looks at the device as root, so it offers KVM to a QEMU that may not open it; and it runs no
VM, so it offers a KVM that crashes or hangs. Here QEMU boots a floppy disk with KVM.
"""

import os
import pwd
import shutil
import stat
import struct
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from grp import getgrgid
from pathlib import Path
from typing import Any

from cpi.errors import CloudError
from cpi.host import locks
from cpi.host.facts_file import read_facts, write_facts
from cpi.host.layout import Layout
from cpi.host.process import ENVIRONMENT
from cpi.log import Log
from runtimes.libvirt.client import Connection, translated_errors
from runtimes.libvirt.xml import capabilities_xml

DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
_SECONDS = 15.0  # booting the floppy disk takes 0.1 to 0.5 s
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_QEMU_CONF = Path("/etc/libvirt/qemu.conf")

# A boot sector: mov al, 21; mov dx, 0xf4; out dx, al. isa-debug-exit ends QEMU then.
_SECTOR = struct.pack("<510s2s", b"\xb0\x15\xba\xf4\x00\xee\xf4", b"\x55\xaa")
_FLOPPY = _SECTOR.ljust(64 << 10, b"\0")
_BOOTED = 21 << 1 | 1
_ARGUMENTS = (
    *("-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-accel", "kvm"),
    *("-m", "16", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
)

_ENABLE = (
    "modprobe kvm_intel || modprobe kvm_amd  # after enabling virtualization in the firmware, or "
    "nested virtualization of the machine that this one runs on"
)


@dataclass(frozen=True)
class Verdict:
    """reason: why KVM is of no use, "" if it works; fix: a command."""

    reason: str = ""
    fix: str = ""


def verdict(
    connection: Connection, layout: Layout, cpu_model: str, log: Log, *, again: bool = False
) -> Verdict:
    """Return whether QEMU can use the device with a CPU model.

    Tried once for each boot, QEMU and user, or `again`. Raises CloudError when libvirt does not
    answer.
    """
    with locks.hold(str(layout.run_dir), "kvm", log=log):
        remembered = None if again else _remembered(layout, cpu_model)
        if remembered is not None:
            return remembered
        user = _qemu_user(connection) if DEVICE.exists() and os.geteuid() == 0 else None
        reason = _reason(user, cpu_model)
        result = Verdict(reason, _fix(reason, user)) if reason else Verdict()
        circumstances = _circumstances(user, cpu_model)
        write_facts(layout.accelerator, {**asdict(result), "user": user, "of": circumstances})
        return result


def _remembered(layout: Layout, cpu_model: str) -> Verdict | None:
    try:
        noted = read_facts(layout.accelerator) or {}
    except CloudError:
        return None  # damaged, so it is tried again
    if noted.get("of") != _circumstances(noted.get("user"), cpu_model):
        return None
    return Verdict(noted["reason"], noted["fix"])


def _circumstances(user: list[int] | None, cpu_model: str) -> list[Any]:
    """Return what a verdict depends on, as in JSON."""
    paths = (DEVICE, _QEMU_CONF, Path(_qemu() or "/nowhere"))
    statuses = [path.stat() if path.exists() else None for path in paths]
    changes = [status and [status.st_mode, status.st_ctime_ns] for status in statuses]
    return [_BOOT_ID.read_text().strip(), changes, _groups_of(user) if user else [], cpu_model]


def _qemu() -> str | None:
    return shutil.which(QEMU, path=ENVIRONMENT["PATH"])


def _qemu_user(connection: Connection) -> list[int] | None:
    """Return user and group of QEMU, or None where it is the user that libvirt runs as."""
    with translated_errors("asking libvirt for QEMU's user"):
        capabilities = connection.raw.getCapabilities()
    return capabilities_xml.qemu_user(capabilities)


def _groups_of(user: list[int]) -> list[int]:
    """Return all groups that libvirt starts QEMU with (libvirt, virGetGroupList)."""
    uid, gid = user
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return [gid]
    return sorted({gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)})


def _reason(user: list[int] | None, cpu_model: str) -> str:
    """Boot with KVM as QEMU's user; return why that does not work, "" if it does."""
    program = _qemu()
    if not DEVICE.exists():
        return f"{DEVICE} is not there"
    if program is None:
        return ""  # libvirt has another, or says that there is none
    try:
        status, errors = _boot([program, *_ARGUMENTS, "-cpu", cpu_model], user)
    except subprocess.TimeoutExpired:
        return f"{DEVICE} hangs: a VM does not boot within {_SECONDS:g} s"
    lines = [line for line in errors.splitlines() if status < 0 or "kvm" in line.lower()]
    if status == _BOOTED or (status >= 0 and not lines):
        return ""  # with another status, this QEMU has not what the try needs
    why = lines[0] if lines else f"signal {-status}"
    if "denied" in why:
        name = _name_of(user[0]) if user else "of the CPI"
        return f"{DEVICE} cannot be opened by QEMU's user {name}"
    return f"QEMU fails with {DEVICE} ({why.removeprefix(f'{QEMU}: ')})"


def _boot(argv: list[str], user: list[int] | None) -> tuple[int, str]:
    """Run QEMU with the floppy disk; return its status and stderr. Raises TimeoutExpired."""
    floppy = os.memfd_create("floppy")
    try:
        os.write(floppy, _FLOPPY)
        drive = f"file=/proc/self/fd/{floppy},format=raw,if=floppy,readonly=on"
        process = subprocess.Popen(
            [*argv, "-drive", drive],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=ENVIRONMENT,
            pass_fds=(floppy,),
            user=user[0] if user else None,
            group=user[1] if user else None,
            extra_groups=_groups_of(user) if user else None,
        )
    finally:
        os.close(floppy)
    try:
        _, errors = process.communicate(timeout=_SECONDS)
    except BaseException:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # what hangs in the kernel does not end
            process.communicate(timeout=1)
        raise
    return process.returncode, errors


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _fix(reason: str, user: list[int] | None) -> str:
    """Return a command that lets QEMU use the device, or lets libvirt forget it."""
    if "is not there" in reason:
        return _ENABLE
    if user is None or "opened" not in reason:
        return f"modprobe --remove kvm_intel kvm_amd kvm || rm {DEVICE}  # it is of no use"
    status, name = DEVICE.stat(), _name_of(user[0])
    if status.st_gid and stat.S_IMODE(status.st_mode) & 0o060 == 0o060:
        return f"usermod --append --groups {getgrgid(status.st_gid).gr_name} {name}"
    group = "kvm" if "kvm" in _group_names(user) else str(user[1])
    rule = f'KERNEL=="kvm", GROUP="{group}", MODE="0660"'
    return (
        f"echo '{rule}' > /etc/udev/rules.d/99-kvm.rules; chgrp {group} {DEVICE}; "
        f"chmod 660 {DEVICE}"
    )


def _group_names(user: list[int]) -> list[str]:
    names = []
    for gid in _groups_of(user):
        try:
            names.append(getgrgid(gid).gr_name)
        except KeyError:
            continue
    return names
