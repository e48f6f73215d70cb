"""The checks of `bosh-cpi doctor` for every host. A check is one function; see cpi.findings."""

import fcntl
import http.client
import os
import shutil
import socket
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cpi.config.config import Config
from cpi.disks import loop
from cpi.disks.disk_store import folders_of
from cpi.errors import CPIError
from cpi.findings import (
    Checks,
    Cure,
    Finding,
    bosh_cpi,
    commands,
    failure,
    ok,
    packages,
    warning,
)
from cpi.host import headroom, kernel, syscalls
from cpi.host.layout import Layout
from cpi.host.process import ENVIRONMENT
from cpi.service.ownership import records_by_client
from cpi.service.policy import Policies
from cpi.service.sockets import main_socket
from cpi.setup import units
from cpi.setup.preparation import of_kernel, preparation
from cpi.setup.steps import CONFIG, System
from cpi.version import VERSION

PYTHONS = ((3, 10), (3, 13))  # oldest and newest tested
_LOOP_KERNEL = (5, 8)  # the first with LOOP_CONFIGURE
_MIN_FREE, _SCARCE = 1 << 30, 5 << 30  # bytes
_HEALTH_SECONDS = 5

# Program, its Debian package, and what works without it ("": nothing).
TOOLS = (
    ("ip", "iproute2", ""),
    ("mke2fs", "e2fsprogs", ""),
    ("e2fsck", "e2fsprogs", ""),
    ("resize2fs", "e2fsprogs", ""),
    ("sfdisk", "fdisk", ""),
    ("tar", "tar", ""),
    ("mkfs.xfs", "xfsprogs", "disks with ext4"),
    ("xfs_repair", "xfsprogs", "disks with ext4"),
    ("qemu-img", "qemu-utils", "stemcells without a disk in them"),
)

FIRST = Checks["Host"]()  # which need no root
CHECKS = Checks["Host"]()


@dataclass(frozen=True)
class Host:
    """A configured host. path: of cpi.json, None for the defaults; problem: why it could not be
    read, so that `config` is the defaults."""

    config: Config
    path: str | None = None
    problem: str = ""

    @property
    def command(self) -> str:
        """Return the command that runs bosh-cpi with the same configuration."""
        return "bosh-cpi" if self.path in (None, CONFIG) else f"bosh-cpi --config {self.path}"

    def cure(self, *words: str) -> Cure:
        """Return a cure by a command of this program, with the same configuration."""
        options = ("--config", self.path) if self.path else ()
        return bosh_cpi(*options, *words, text=f"{self.command} {' '.join(words)}")

    def service(self, verb: str) -> Cure | str:
        """Return what starts or restarts the service, as this host runs it."""
        if units.is_installed(System()):
            return commands(("systemctl", verb, units.SERVICE.removesuffix(".service")))
        return f"{self.command} serve"


@FIRST.add("python")
def _python(_host: Host) -> Finding:
    version = sys.version_info[:2]
    running = f"bosh-containerd-cpi {VERSION} on Python {sys.version.split()[0]}"
    if version < PYTHONS[0]:
        return failure(f"{running} is older than 3.10", "apt-get install python3  # 3.10 or newer")
    if version > PYTHONS[1]:
        return warning(
            f"{running} is newer than 3.13, the newest that is tested", "python3.13 -m venv"
        )
    return ok(running)


@FIRST.add("configuration")
def _configuration(host: Host) -> Finding:
    if host.problem:
        return failure(
            f"{host.problem}; what follows is about the defaults",
            f"python3 -m json.tool {host.path}  # then docs/configuration.md",
        )
    if host.path is None:
        return ok(
            f"the defaults; no file was given (--config, $BOSH_CPI_CONFIG), nor is {CONFIG} there"
        )
    mode = os.stat(host.path).st_mode & 0o777
    if mode & 0o077 and host.config.text("agent.mbus"):
        return warning(
            f"{host.path} has passwords and others can read it ({mode:o})",
            commands(("chmod", "600", host.path)),
        )
    return ok(str(host.path))


@FIRST.add("root")
def _root(host: Host) -> Finding:
    if os.geteuid() != 0:
        return failure(
            f"user {os.geteuid()} can neither mount nor make networks, and nothing else is checked",
            f"sudo {host.command} doctor",
        )
    return ok("this is root")


@CHECKS.add("loop devices")
def _loop_devices(_host: Host) -> Finding:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if numbers < _LOOP_KERNEL:
        return failure(f"Linux {release} is older than 5.8", "apt-get install linux-image-amd64")
    try:
        control = os.open(loop.CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return failure(f"{loop.CONTROL} is not there", commands(("modprobe", "loop")))
    except OSError as error:
        fix = "run this on the host, or in a container with --privileged"
        return failure(f"{loop.CONTROL} cannot be opened: {error.strerror}", fix)
    try:
        number = fcntl.ioctl(control, kernel.LOOP_CTL_GET_FREE)
    except OSError as error:
        return failure(f"there is no free loop device: {error.strerror}", "losetup --list")
    finally:
        os.close(control)
    return ok(f"/dev/loop{number} is free")


@CHECKS.add("preparation")
def _preparation(host: Host) -> Finding:
    system, vms = System(), host.config.integer("max_vms")
    if host.path == CONFIG:
        steps = preparation(system, host.config, CONFIG)
    else:  # the units are those of the installed configuration
        steps = of_kernel(system, host.config)
    if steps:
        titles = "; ".join(step.title for step in steps[:3]) + "; …" * (len(steps) > 3)
        return warning(
            f"this host is not prepared for {vms} VMs: {titles}", host.cure("setup", "--yes")
        )
    return ok(f"limits, modules and units are there for {vms} VMs")


@CHECKS.add("kernel limits")
def _kernel_limits(host: Host) -> Finding:
    """Tell whether a limit that all VMs share leaves room for another VM, by trying."""
    reached = headroom.exhausted(systemd=True)
    if reached is not None:
        return failure(
            headroom.reason(reached), headroom.fix(reached, host.config.integer("max_vms"))
        )
    return ok("there is room for another VM")


@CHECKS.add("tools")
def _tools(_host: Host) -> Finding:
    missing = [tool for tool in TOOLS if shutil.which(tool[0], path=ENVIRONMENT["PATH"]) is None]
    if not missing:
        return ok(", ".join(program for program, _, _ in TOOLS))
    names = ", ".join(program for program, _, _ in missing)
    message = f"{names} cannot be found"
    fix = packages(*dict.fromkeys(package for _, package, _ in missing))
    without = dict.fromkeys(without for _, _, without in missing)
    if "" in without:
        return failure(message, fix)
    return warning(f"{message}; only {' and '.join(without)} work", fix)


@CHECKS.add("disk space")
def _disk_space(host: Host) -> Finding:
    folders = {"state_dir": Layout.of(host.config).state_dir}
    folders |= {f"disks ({name})": folder for name, folder in folders_of(host.config).items()}
    free = {}
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free[f"{name} {folder}"] = shutil.disk_usage(existing).free
    text = "; ".join(f"{name}: {size >> 20} MiB free" for name, size in free.items())
    if min(free.values()) < _SCARCE:
        return (failure if min(free.values()) < _MIN_FREE else warning)(text, "bosh clean-up --all")
    return ok(text)


@CHECKS.add("after a restart")
def _after_restart(host: Host) -> Finding:
    """Compare VMs' folders with their pinned network namespaces, which a restart removes."""
    folders = sorted(Layout.of(host.config).vms.glob("*-vm-*"))
    pins = Layout.of(host.config).namespaces
    vms = [folder.name for folder in folders if (folder / "network.json").exists()]
    lost = [name for name in vms if not syscalls.is_mount_point(pins / name)]
    if lost:
        return warning(
            f"{len(lost)} VMs have lost their network namespace, as in a restart of the host: "
            f"{', '.join(lost[:3])}{', …' * (len(lost) > 3)}",
            host.cure("restore"),
        )
    return ok(f"nothing is left over ({len(vms)} VMs have their networks)")


@CHECKS.add("service")
def _service(host: Host) -> Finding:
    path = main_socket(host.config)
    if not path.exists():
        return warning(
            f"nothing listens at {path}; only clients without root need the service",
            host.service("start"),
        )
    try:
        status = health(path)
    except (OSError, http.client.HTTPException) as error:
        return failure(f"{path} is there and does not answer: {error}", host.service("restart"))
    if status != http.HTTPStatus.OK:
        return failure(f"{path} answers /healthz with {status}", host.service("restart"))
    return ok(f"answers at {path}")


@CHECKS.add("clients")
def _clients(host: Host) -> Finding:
    """Check the rules for clients, and list the clients that own resources."""
    try:
        Policies.of(host.config)
    except CPIError as error:
        return failure(error.message, f"edit service.clients in {host.path or 'cpi.json'}")
    ruled = ", ".join(host.config.mapping("service.clients")) or "none, so the defaults hold"
    records = records_by_client(Layout.of(host.config).clients)
    owners = [f"{client}: {_count(paths)}" for client, paths in records.items()]
    return ok(f"rules for {ruled}; {'; '.join(owners) or 'none has anything here'}")


def _count(records: list[Path]) -> str:
    """Return how many resources of each type a client's records name."""
    counts = Counter(path.name.split("-")[1] for path in records if path.name.count("-") >= 2)
    return ", ".join(f"{counts[name]} {name}s" for name in sorted(counts)) or "nothing"


def health(path: Path) -> int:
    """Query a service's health; return the HTTP status. Raises OSError, HTTPException."""
    with closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(_HEALTH_SECONDS)
        connection.sock.connect(str(path))
        connection.request("GET", "/healthz")
        return connection.getresponse().status
