"""The checks of `bosh-cpi doctor` for runtimes through libvirt."""

import shlex
from dataclasses import dataclass

from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.findings import FAILURE, Checks, Finding, failure, ok, run, warning
from cpi.host.process import CommandFailed, run as run_program
from cpi.log import Log
from runtimes.libvirt import client
from runtimes.libvirt.accelerators import kvm_verdict
from runtimes.libvirt.client import Connection, translated_errors
from runtimes.libvirt.profiles import Profile
from runtimes.libvirt.virtualbox import vboxmanage
from runtimes.libvirt.volumes import StoragePool


@dataclass(frozen=True)
class Subject:
    """A libvirt, as one runtime uses it. pool: None where the driver has none."""

    connection: Connection
    profile: Profile
    config: Config
    pool: StoragePool | None = None


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
    connection, profile, config = subject.connection, subject.profile, subject.config
    verdict = kvm_verdict(connection, profile, config, Log("error"), again=True)
    if not verdict.reason:
        return ok("QEMU can use it")
    accelerator = profile.setting(config, "accelerator")
    if accelerator == "kvm":
        return failure(f"kvm.accelerator insists on it, and {verdict.reason}", verdict.fix)
    if accelerator == "qemu":
        return ok(f"{verdict.reason}, and kvm.accelerator does without")
    message = f"{verdict.reason}, so VMs run in plain emulation, about ten times slower"
    return warning(message, verdict.fix)


@CHECKS.add("storage pool")
def _storage_pool(subject: Subject) -> Finding:
    if subject.pool is None:
        return ok("not needed")
    path = subject.pool.misplaced()
    if path:
        return failure(*subject.pool.refusal(path))
    return ok(f"{subject.pool.name} is where the configuration says, or will be made there")


@CHECKS.add("qemu-img")
def _qemu_img(_subject: Subject) -> Finding:
    try:
        first = run_program(["qemu-img", "--version"]).decode().splitlines()[0]
    except CommandFailed as error:
        return failure(error.message, "apt-get install qemu-utils")
    return ok(first)


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
