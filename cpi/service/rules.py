"""Checks of what a client asks for against its policy: a function for each rule.

A refusal names the rule, so that the host's administrator knows what to change.
"""

from __future__ import annotations

import ipaddress

from cpi import cid
from cpi.errors import CloudError, CPIError, NotSupported, VMCreationFailed
from cpi.host import iproute
from cpi.service.ownership import Allowed, OwnershipRecord, QuotaUsage
from cpi.service.policy import PRIVATE
from cpi.text import shown

_UNITS = {"cpu": " CPUs", "memory": " MiB", "disk": " MiB"}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpi.config.config import Config
    from cpi.host.iproute import Subnet
    from cpi.model import Network, VMProperties
    from cpi.service.policy import Policy


def require_runtime(policy: Policy, name: str) -> None:
    """Raise NotSupported for a runtime that the client may not use."""
    if name not in policy.runtimes:
        raise NotSupported(_refused(policy, "runtimes", f"the runtime {shown(name, 60)}"))


def require_store(policy: Policy, store: str) -> None:
    """Raise CloudError for a disk store that the client may not use.

    Not NotSupported, after which the director would copy the disk and then fail.
    """
    if store not in policy.stores:
        raise CloudError(_refused(policy, "stores", f"the disk store {shown(store, 60)}"))


def require_properties(policy: Policy, wanted: VMProperties) -> None:
    """Raise NotSupported or CloudError for cloud_properties that the client may not ask for."""
    for name in ("privileged", "host_service"):
        if getattr(wanted, name) and not getattr(policy, name):
            raise NotSupported(_refused(policy, name, f"cloud_properties.{name}: true"))
    for mount in wanted.mounts:
        if not any(_is_within(mount.host, root) for root in policy.mounts):
            what = f"the mount of the host's {shown(mount.host)}"
            raise CloudError(_refused(policy, "mounts", what))
    for port in wanted.ports:
        if not any(port.host in allowed for allowed in policy.ports):
            raise CloudError(_refused(policy, "ports", f"the port {port.host} of the host"))


def require_networks(policy: Policy, networks: Sequence[Network], default: str) -> None:
    """Raise CloudError for a network that the client may not join.

    default: the bridge of networks that name neither a bridge nor a network of the host.
    """
    for network in networks:
        given = [network.cloud_properties.get(key) for key in ("name", "bridge")]
        names = [str(name) for name in given if name is not None] or [default]
        for name in names:
            if name not in policy.networks:
                what = f"the network {shown(network.name, 60)} on the host's {shown(name, 60)}"
                raise CloudError(_refused(policy, "networks", what))
        if network.cloud_properties.get("spoofing") and not policy.spoofing:
            what = f"cloud_properties.spoofing: true of the network {shown(network.name, 60)}"
            raise CloudError(_refused(policy, "spoofing", what))
        for address in (network.ip, network.gateway):
            if address is not None:
                subnet = ipaddress.ip_interface(f"{address}/{network.prefix}").network
                _require_subnet(policy, network, subnet, names[0])


def _require_subnet(policy: Policy, network: Network, subnet: Subnet, bridge: str) -> None:
    """Raise CloudError for a subnet that the client may not use.

    The bridge gets the gateway, and so the host a route: it could redirect the host's traffic.
    """
    what = f"the subnet {subnet} of the network {shown(network.name, 60)}"
    allowed = PRIVATE if policy.subnets is None else policy.subnets
    same = [other for other in allowed if other.version == subnet.version]
    if not any(subnet.subnet_of(other) for other in same):  # type: ignore[arg-type]
        raise CloudError(_refused(policy, "subnets", what))
    # A network by name has its own plugins, which the host's administrator configured.
    if policy.subnets is None and network.cloud_properties.get("name") is None:
        for other, device in iproute.routes():
            same_family = other.version == subnet.version
            if device != bridge and same_family and other.overlaps(subnet):
                what += f", as the host reaches {other} by {shown(device, 20)}"
                raise CloudError(_refused(policy, "subnets", what))


def _is_within(path: str, root: str) -> bool:
    """Tell whether a plain path is in a folder; runtimes refuse to mount symbolic links."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def vm_record(
    policy: Policy, runtime: str, wanted: VMProperties, config: Config
) -> OwnershipRecord:
    """Return a VM's record. Raises VMCreationFailed for one without a limit to what has a quota.

    Runtimes of full VMs have defaults for what the cloud_properties leave out.
    """
    sizes: dict[str, float] = {}
    for name in ("cpu", "memory", "ephemeral_disk"):
        size = getattr(wanted, name)
        if size is None and config.knows(f"{runtime}.{name}"):
            size = config.integer(f"{runtime}.{name}")
        quota = "disk" if name == "ephemeral_disk" else name
        if size is None and quota in policy.quotas:
            raise _unlimited(policy, quota, name)
        sizes[name] = size or 0
    full = config.knows(f"{runtime}.ephemeral_disk")
    if full and wanted.root_disk is None and "disk" in policy.quotas:
        raise _unlimited(policy, "disk", "root_disk")
    disk = int(sizes["ephemeral_disk"]) + (wanted.root_disk or 0)
    return OwnershipRecord(cid.VM, cpu=sizes["cpu"], memory=int(sizes["memory"]), disk=disk)


def _unlimited(policy: Policy, quota: str, name: str) -> CPIError:
    return VMCreationFailed(
        f"the host's rule {policy.rule}.quotas.{quota} needs to know what the VM takes; "
        f"set cloud_properties.{name}"
    )


def within_quotas(policy: Policy, error: type[CPIError]) -> Allowed:
    """Return what raises `error` when a quota would be exceeded."""

    def check(used: QuotaUsage, wanted: OwnershipRecord) -> None:
        total = used.plus(wanted)
        for name, maximum in policy.quotas.items():
            before, after = (round(getattr(usage, name), 3) for usage in (used, total))
            if after > maximum and after > before:
                raise error(
                    f"the host's rule {policy.rule}.quotas.{name} does not allow this: "
                    f"{before:g} of {maximum:g}{_UNITS.get(name, '')} are in use, and this takes "
                    f"{after - before:g} more"
                )

    return check


def _refused(policy: Policy, name: str, what: str) -> str:
    return f"the host's rule {policy.rule}.{name} does not allow {what}"
