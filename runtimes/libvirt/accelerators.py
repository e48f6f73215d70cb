"""Hardware acceleration of a hypervisor, or emulation."""

from cpi.config.config import Config
from cpi.errors import CloudError
from cpi.host.layout import Layout
from cpi.log import Log
from runtimes.libvirt import kvm_device
from runtimes.libvirt.client import Connection
from runtimes.libvirt.kvm_device import Verdict
from runtimes.libvirt.profiles import Profile


def domain_type(connection: Connection, profile: Profile, config: Config, log: Log) -> str:
    """Return libvirt's type of a domain. Raises CloudError for one that is not available.

    `accelerator` of the configuration is one of the profile's types, or "auto" for the best
    available, with a warning when that is not the first.
    """
    best, *others = profile.domain_types
    if not others:
        return best
    wanted = profile.setting(config, "accelerator")
    if wanted != "auto":
        verdict = _verdict(connection, wanted, profile, config, log)
        if verdict.reason:
            raise CloudError(
                f"{profile.name}.accelerator is {wanted}, which libvirt at {connection.shown} "
                f"cannot use: {verdict.reason}; `auto` does without it. To use it: {verdict.fix}"
            )
        return wanted
    verdict = _verdict(connection, best, profile, config, log)
    if not verdict.reason:
        return best
    for other in others:
        if connection.can_run(other):
            log.warn(
                f"VMs run in plain emulation, about ten times slower: {verdict.reason}; set "
                f"{profile.name}.accelerator to {other} to be quiet, or: {verdict.fix}"
            )
            return other
    raise CloudError(
        f"libvirt at {connection.shown} can run none of {', '.join(profile.domain_types)}; "
        "apt-get install qemu-system-x86 on its machine, and restart libvirtd"
    )


def _verdict(
    connection: Connection, domain_type: str, profile: Profile, config: Config, log: Log
) -> Verdict:
    """Return whether domains of a type can run; a device of this machine is tried first."""
    if domain_type == "kvm" and connection.is_local:
        verdict = kvm_verdict(connection, profile, config, log)
        if verdict.reason:
            return verdict
    if connection.can_run(domain_type):
        return Verdict()
    return Verdict(
        f"libvirt there can run no domains of type {domain_type}",
        f"virsh domcapabilities --virttype {domain_type}  # says why, on libvirt's machine",
    )


def kvm_verdict(
    connection: Connection, profile: Profile, config: Config, log: Log, *, again: bool = False
) -> Verdict:
    """Return whether QEMU can use this machine's KVM, with the configured CPU model."""
    cpu_model = profile.setting(config, "cpu_model") or "host"
    return kvm_device.verdict(connection, Layout.of(config), cpu_model, log, again=again)
