"""What the contract and the runtimes hand each other: plain, frozen, already validated.

Sizes are MiB, as in BOSH. Source of the shapes: bosh-director's cloud calls (api versions 1 to 3)
and bosh-agent's settings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any
JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """One entry of create_vm's networks; addresses are validated and canonical.

    `ip`, `gateway` and `prefix` are None for a dynamic network until the runtime fills them in.
    preconfigured: whether the runtime configures the interface, so that the agent must not. alias:
    the interface's name where the agent configures a dynamic network by its address, without DHCP.
    """

    name: str
    type: str = "manual"
    ip: str | None = None
    prefix: int | None = None
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    default: tuple[str, ...] = ()
    cloud_properties: JsonObject = field(default_factory=dict)
    mac: str | None = None
    preconfigured: bool = True
    alias: str | None = None


@dataclass(frozen=True)
class PortForward:
    """A port of the host that leads to the VM."""

    host: int
    container: int
    protocol: str = "tcp"
    host_ip: str | None = None


@dataclass(frozen=True)
class HostMount:
    """A folder of the host that appears in the VM; both paths are absolute and plain."""

    host: str
    vm: str
    read_only: bool = True


@dataclass(frozen=True)
class VMProperties:
    """VM cloud_properties. None means no limit.

    cpu: CPUs (fractions allowed); memory, ephemeral_disk, root_disk: MiB; pids: processes and
    threads. root_disk, firmware (bios or uefi), machine and cpu_model are for full VMs only.
    host_service: the VM gets the socket for guests of the host's service (cpi.host.guest_socket).
    """

    cpu: float | None = None
    memory: int | None = None
    ephemeral_disk: int | None = None
    pids: int | None = None
    privileged: bool = False
    ports: tuple[PortForward, ...] = ()
    host_service: bool = False
    mounts: tuple[HostMount, ...] = ()
    root_disk: int | None = None
    firmware: str | None = None
    machine: str | None = None
    cpu_model: str | None = None


@dataclass(frozen=True)
class DiskProperties:
    """Disk cloud_properties. filesystem None: what the VM's env asks for, else the
    default. given: all of them as they came.
    """

    filesystem: str | None = None
    store: str = "default"
    preallocate: bool = False
    given: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class DiskWishes:
    """What a VM's env says of its persistent disks: file system, and mount options."""

    filesystem: str | None = None
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentConfig:
    """What the CPI's configuration tells every agent; `env.bosh` overrides it in the agent."""

    mbus: str = ""
    ntp: tuple[str, ...] = ()
    blobstore: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class VMSpec:
    """A VM to create."""

    cid: str
    agent_id: str
    stemcell_cid: str
    properties: VMProperties
    networks: tuple[Network, ...]
    env: JsonObject
    agent: AgentConfig
    api_version: int = 2
    disk_cids: tuple[str, ...] = ()
    disk_wishes: DiskWishes = field(default_factory=DiskWishes)


@dataclass(frozen=True)
class Garbage:
    """An orphaned resource, as a killed call leaves it.

    type, name, why: shown to the operator. lock: held during `remove`, mostly a CID. certain: may
    be removed without confirmation. size: bytes on the host's disk.
    """

    type: str
    name: str
    why: str
    lock: str
    remove: Callable[[], object] = field(repr=False)
    certain: bool = True
    size: int = 0
