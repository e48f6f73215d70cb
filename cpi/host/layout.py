"""The CPI's paths on the host, below the configuration's state_dir and run_dir."""

from __future__ import annotations

from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpi.config.config import Config

CLIENTS, LOCKS = "clients", "locks"


class Layout:
    """The paths of one CPI. They need not exist; nothing is created here."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        # Survives a restart of the host.
        self.state_dir = state_dir
        self.vms = state_dir / "vms"  # a folder for each VM here, of every runtime, while it lives
        self.disks = state_dir / "disks"  # the default store, unless disk_dir names another
        self.addresses = state_dir / "addresses"  # by network; each names its VM
        self.ports = state_dir / "ports"  # published ones; each names its VM
        self.ids = state_dir / "ids"  # ranges of user ids, by their first; each names its VM
        self.clients = state_dir / CLIENTS  # ownership records of the service's clients
        self.stemcells = state_dir / "stemcells"  # who holds them, by CID
        self.imports = state_dir / "imports"  # of stemcells, while they run
        self.uploads = state_dir / "uploads"  # files that clients send with their calls
        self.scratch = state_dir / "scratch"  # disks made here for a libvirt that is elsewhere
        # Lost in a restart of the host.
        self.run_dir = run_dir
        self.locks = run_dir / LOCKS  # by CID
        self.namespaces = run_dir / "netns"  # pinned network namespaces, by VM CID
        self.layers = run_dir / "layers"  # of VMs in user namespaces, by VM CID
        self.user_namespaces = run_dir / "userns"  # pinned, by VM CID
        self.bridges = run_dir / "bridges"  # those that the host's firewalls were told of
        self.rootfs = run_dir / "rootfs"  # mount point, in private mount namespaces only
        self.execs = run_dir / "exec"  # FIFOs of commands that run in VMs
        self.accelerator = run_dir / "accelerator.json"  # whether a hypervisor can use it
        self.guest = run_dir / "guest"  # the socket that VMs with host_service get

    @classmethod
    def of(cls, config: Config) -> Layout:
        """Return the paths that the configuration asks for."""
        return cls(Path(config.text("state_dir")), Path(config.text("run_dir")))

    def vm(self, vm_cid: str) -> Path:
        """Return the folder of a VM."""
        return self.vms / vm_cid

    def pool(self, runtime: str) -> Path:
        """Return the default folder of a libvirt runtime's volumes."""
        return self.state_dir / runtime
