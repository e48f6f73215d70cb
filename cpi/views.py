"""What commands show of VMs and stemcells: plain data without secrets.

None and "" mean that a runtime does not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

RUNNING, STOPPED, OTHER = "running", "stopped", "unknown"


@dataclass(frozen=True)
class VMView:
    """A VM.

    isolation: "user namespace" (root in the VM is nobody on the host), "none" (root is the host's,
    with fewer rights), "privileged", "virtual machine". first_id: in a user namespace, the user id
    on the host of the VM's root. cpu: CPUs; memory: MiB; pids: processes and threads; None: no
    limit. created_at: seconds since the epoch. metadata: BOSH's own, see `Name`.
    """

    cid: str
    runtime: str
    state: str
    isolation: str = ""
    first_id: int | None = None
    agent_id: str = ""
    stemcell: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    cpu: float | None = None
    memory: int | None = None
    pids: int | None = None
    created_at: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> "Name":
        """What BOSH calls it."""
        return name_of(self.metadata)


@dataclass(frozen=True)
class Name:
    """BOSH's name of a VM, "" for what it does not give.

    Source: bosh-director, MetadataUpdater and VmCreator (deployment, instance_group, job, id,
    index); bosh-cli, deployment/vm (deployment, job, index).
    """

    deployment: str = ""
    group: str = ""
    id: str = ""
    index: str = ""
    job: str = ""

    @property
    def instance(self) -> str:
        """As `bosh vms` shows it: group/id, group/index where there is no id."""
        identifier = self.id or self.index
        return f"{self.group}/{identifier}" if identifier else self.group


def name_of(metadata: Mapping[str, str]) -> Name:
    """Read BOSH's metadata of a VM or disk."""
    job = metadata.get("job", "")
    return Name(
        deployment=metadata.get("deployment", ""),
        group=metadata.get("instance_group", "") or job,
        id=metadata.get("id", "") or metadata.get("instance_id", ""),
        index=metadata.get("index", "") or metadata.get("instance_index", ""),
        job=job,
    )


@dataclass(frozen=True)
class StemcellView:
    """A stemcell as one runtime has it. created_at: seconds since the epoch."""

    cid: str
    runtime: str
    name: str = ""
    version: str = ""
    operating_system: str = ""
    image: str = ""
    created_at: float | None = None


@dataclass(frozen=True)
class Usage:
    """What a running VM has used so far, or uses now.

    cpu: seconds of CPU time; cpus: how many it may use, None: all of the host's. memory: bytes
    without what the kernel can drop at once (file cache that is not in use); disk: bytes on the
    host of its root and ephemeral disks; read, written: bytes from and to disks.
    """

    cid: str
    cpu: float = 0.0
    memory: int | None = None
    memory_limit: int | None = None
    pids: int | None = None
    disk: int | None = None
    read: int | None = None
    written: int | None = None


@dataclass(frozen=True)
class LogPlaces:
    """Where the logs of a VM are: files in it, and the command that prints its log if it runs."""

    files: tuple[str, ...]
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogPart:
    """A part of a file: the bytes, where they end, and which file it was (device, inode)."""

    data: bytes
    end: int
    file: tuple[int, int]
