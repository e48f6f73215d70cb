"""Hardware acceleration of a hypervisor, or emulation."""

from cpi.errors import CloudError
from cpi.log import Log
from runtimes.libvirt.client import Connection
from runtimes.libvirt.profiles import Profile


def domain_type(connection: Connection, profile: Profile, wanted: str, log: Log) -> str:
    """Return libvirt's type of a domain. Raises CloudError for one that is not available.

    wanted: one of the profile's types, or "auto" for the best available, with a warning when that
    is not the first.
    """
    if len(profile.domain_types) == 1:
        return profile.domain_types[0]
    if wanted != "auto":
        if not connection.can_run(wanted):
            raise CloudError(
                f"{profile.name}.accelerator is {wanted}, which libvirt at {connection.uri} cannot "
                f"use; is /dev/{wanted} there, and open to it? `auto` does without it"
            )
        return wanted
    best, *others = profile.domain_types
    if connection.can_run(best):
        return best
    for other in others:
        if connection.can_run(other):
            log.warn(
                f"/dev/{best} is missing or unusable on libvirt's machine, so VMs run in plain "
                "emulation, ten times slower: enable virtualization in the firmware, or nested "
                f"virtualization, or set {profile.name}.accelerator to {other} to be quiet"
            )
            return other
    raise CloudError(
        f"libvirt at {connection.uri} can run none of {', '.join(profile.domain_types)}; "
        "apt-get install qemu-system-x86 on its machine, and restart libvirtd"
    )
