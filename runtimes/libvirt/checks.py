"""The checks of `bosh-cpi doctor` for runtimes through libvirt."""

import fcntl
import os
import shlex
from dataclasses import dataclass

from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.findings import FAILURE, Checks, Finding, failure, ok, run, warning
from cpi.host.process import CommandFailed, run as run_program
from runtimes.libvirt import client
from runtimes.libvirt.client import Connection, translated_errors
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.virtualbox import vboxmanage

KVM_GET_API_VERSION, KVM_CREATE_VM = 0xAE00, 0xAE01  # linux/kvm.h
KVM_API_VERSION = 12  # the only one there is


@dataclass(frozen=True)
class Subject:
    """A libvirt, as one runtime uses it."""

    connection: Connection
    profile: Profile
    config: Config


CHECKS = Checks[Subject]()  # which need an answer from libvirt


def all_of(subject: Subject) -> list[Finding]:
    """Run the checks; the others only when libvirt answers."""
    first = run("libvirt", lambda: _libvirt(subject))
    rest = [] if first.status == FAILURE else CHECKS.run(subject)
    return [first, *rest]


def _libvirt(subject: Subject) -> Finding:
    uri = subject.connection.shown
    try:
        connection = subject.connection.raw
        with translated_errors("asking libvirt for its version"):
            mine, theirs = _dotted(connection.getLibVersion()), _dotted(connection.getVersion())
            hypervisor = connection.getType()
    except CPIError as error:
        reason = error.message.partition("; is libvirt's daemon")[0]  # the fix says it
        return failure(reason, _fix(subject, error.message))
    return ok(f"{mine} with {hypervisor} {theirs} answers at {uri}")


def _fix(subject: Subject, message: str) -> str:
    if not subject.connection.is_local:
        return f"virsh --connect {shlex.quote(subject.connection.shown)} version"
    if "connect socket" in message:  # libvirt's daemon does not run
        drivers = " ".join(subject.profile.packages)
        return f"apt-get install libvirt-daemon-system {drivers} && systemctl start libvirtd"
    if not subject.profile.starts:  # it is VirtualBox' own command that starts VMs
        words = vboxmanage.supported(client.version_of_library())
        return f"apt-get install virtualbox && systemctl restart libvirtd  # {words} is taken"
    return "systemctl restart libvirtd && journalctl --unit libvirtd --lines 20"


@CHECKS.add("hypervisor")
def _hypervisor(subject: Subject) -> Finding:
    types = subject.profile.domain_types
    if len(types) == 1:
        return ok(f"libvirt's driver for {subject.profile.name} is there")
    usable = [type_ for type_ in types if subject.connection.can_run(type_)]
    if not usable:
        return failure(
            f"libvirt can run none of {', '.join(types)}",
            "apt-get install qemu-system-x86 && systemctl restart libvirtd",
        )
    return ok(f"libvirt can run {', '.join(usable)}")


@CHECKS.add("/dev/kvm")
def _dev_kvm(subject: Subject) -> Finding:
    if "kvm" not in subject.profile.domain_types:
        return ok("not needed")
    if not subject.connection.is_local:
        return ok("is libvirt's machine's")
    reason = unusable("/dev/kvm")
    if not reason:
        return ok("VMs can be made with it")
    accelerator = subject.profile.setting(subject.config, "accelerator")
    if accelerator == "kvm":
        return failure(f"kvm.accelerator insists on it, and {reason}", _KVM_HINT)
    if accelerator == "qemu":
        return ok(f"{reason}, and kvm.accelerator does without")
    return warning(f"{reason}, so VMs run in plain emulation, ten times slower", _KVM_HINT)


_KVM_HINT = (
    "modprobe kvm_intel || modprobe kvm_amd  # after enabling virtualization in the firmware, or "
    "nested virtualization of the machine that this one runs on"
)


def unusable(path: str) -> str:
    """Return why a KVM device cannot create a VM, "" when it can."""
    try:
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"{path} is not there"
    except OSError as error:
        return f"{path} cannot be opened ({error.strerror})"
    try:
        if fcntl.ioctl(device, KVM_GET_API_VERSION) != KVM_API_VERSION:
            return f"{path} speaks another version than {KVM_API_VERSION}"
        os.close(fcntl.ioctl(device, KVM_CREATE_VM))
    except OSError as error:
        return f"{path} makes no VM ({error.strerror})"
    finally:
        os.close(device)
    return ""


@CHECKS.add("qemu-img")
def _qemu_img(_subject: Subject) -> Finding:
    try:
        first = run_program(["qemu-img", "--version"]).decode().splitlines()[0]
    except CommandFailed as error:
        return failure(error.message, "apt-get install qemu-utils")
    return ok(first)


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
