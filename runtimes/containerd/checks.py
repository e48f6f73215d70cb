"""The checks of `bosh-cpi doctor` for this runtime; see cpi.findings."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf.empty_pb2 import Empty  # noqa: TID253 - loaded with the client only

from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.findings import Checks, Cure, Finding, commands, failure, ok, packages, run, warning
from cpi.host.layout import Layout
from cpi.host.process import CommandFailed, run as run_program
from runtimes.containerd import cgroups, host_facts, user_namespaces
from runtimes.containerd.api import types_pb2, version_pb2
from runtimes.containerd.containers import Containers
from runtimes.containerd.image_store import ImageStore
from runtimes.containerd.oci_spec import CAPABILITIES

SUPPORTED = ((1, 6), (2, 99))  # containerd's minor versions, first and last
_SNAPSHOTTERS = ("overlayfs", "native", "btrfs", "zfs", "fuse-overlayfs")
_CONTROLLERS = ("cpu", "memory", "pids")
_MIN_FREE, _SCARCE = 1 << 30, 5 << 30  # bytes

CHECKS = Checks["Subject"]()


@dataclass
class Subject:
    """containerd as it is configured."""

    runtime: str
    config: Config
    store: ImageStore
    containers: Containers

    @property
    def address(self) -> str:
        return self.config.text("containerd.address")

    @cached_property
    def version(self) -> str:
        """containerd's version. Raises CloudError when it does not answer."""
        return self.store.client.call(
            "version.v1.Version/Version",
            Empty(),
            version_pb2.VersionResponse,
            doing="asking containerd for its version",
        ).version


def all_of(subject: Subject) -> list[Finding]:
    """Run the checks; those of containerd only when it answers."""
    first = run("containerd", lambda: _containerd(subject))
    if first.status == "failure":
        return [first, *HOST_CHECKS.run(subject)]
    return [first, *CHECKS.run(subject), *HOST_CHECKS.run(subject)]


HOST_CHECKS = Checks[Subject]()  # which need no answer from containerd


def _containerd(subject: Subject) -> Finding:
    try:
        version = subject.version
    except CPIError as error:
        return failure(error.message, _start_hint(subject.address))
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    minor = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if not SUPPORTED[0] <= minor <= SUPPORTED[1]:
        return failure(
            f"containerd {version} at {subject.address} is none of 1.6, 1.7 and 2.x, which are "
            "supported",
            packages("containerd"),
        )
    return ok(f"{version} answers at {subject.address}")


def _start_hint(address: str) -> str | Cure:
    if not Path("/usr/bin/containerd").exists() and not Path("/usr/local/bin/containerd").exists():
        return packages("containerd", "runc")
    if address != "/run/containerd/containerd.sock":
        return f"containerd --address {address}  # or set containerd.address to where it listens"
    return commands(("systemctl", "start", "containerd"))


@CHECKS.add("snapshotter")
def _snapshotter(subject: Subject) -> Finding:
    name = subject.store.snapshotter
    try:
        with _snapshot(subject.store):
            return ok(f"{name} makes and removes snapshots")
    except CPIError as error:
        working = next((other for other in _SNAPSHOTTERS if _works(subject, other)), "")
        fix = f'set in cpi.json: {{"containerd": {{"snapshotter": "{working}"}}}}'
        return failure(
            f"{name} does not work: {error.message}",
            fix if working else f"ctr --address {subject.address} plugins ls type~=snapshotter",
        )


@contextmanager
def _snapshot(store: ImageStore) -> Iterator[types_pb2.Mount]:
    """Make a snapshot and give its first mount."""
    with store.lease() as lease:
        key = f"{lease}-doctor"
        try:
            yield store.prepare(key, "", lease=lease)[0]
        finally:
            store.remove_snapshot(key)


def _works(subject: Subject, name: str) -> bool:
    try:
        with _snapshot(subject.store.with_snapshotter(name)):
            return True
    except CPIError:
        return False


@CHECKS.add("user namespaces")
def _user_namespaces(subject: Subject) -> Finding:
    mode = subject.config.text("containerd.user_namespaces")
    if mode == "off":
        return warning(
            "off, so root in a VM can become root on this host (containerd.user_namespaces)",
            "remove containerd.user_namespaces from the configuration",
        )
    problem = user_namespaces.problem(Layout.of(subject.config), subject.store)
    if problem:
        return (failure if mode == "required" else warning)(
            f"VMs get none, so root in a VM can become root on this host: {problem}",
            "use a kernel from 5.19 on, with user.max_user_namespaces above 0, and containerd's "
            "overlayfs on ext4, xfs or btrfs",
        )
    return ok("root in a VM that is not privileged has no rights on this host")


@CHECKS.add("containerd's disk")
def _room(subject: Subject) -> Finding:
    with _snapshot(subject.store) as mount:
        options = [option.partition("=") for option in mount.options]
        folders = [value for key, _, value in options if key == "upperdir"]
        room = os.statvfs(folders[-1] if folders else mount.source)
    free = room.f_bavail * room.f_frsize
    message = f"{free >> 20} MiB are free where containerd keeps root file systems"
    if free < _SCARCE:
        return (failure if free < _MIN_FREE else warning)(message, "bosh clean-up --all")
    return ok(message)


@CHECKS.add("VMs that do not run")
def _stopped(subject: Subject) -> Finding:
    from runtimes.containerd.listing import vms

    views = vms(subject.containers, subject.runtime)
    stopped = [vm for vm in views if vm.state != "running"]
    if not stopped:
        return ok(f"all VMs run ({len(views)})")
    message = (
        f"{len(stopped)} of {len(views)} VMs do not run: "
        f"{', '.join(vm.name.instance or vm.cid for vm in stopped[:5])}"
    )
    ended = subject.containers.tasks()
    if any(vm.cid not in ended for vm in stopped):
        return warning(f"{message}, as after a restart of the host", "bosh-cpi restore")
    deployments = sorted({vm.name.deployment for vm in stopped if vm.name.deployment})
    return warning(
        f"{message}; they ended by themselves",
        f"bosh -d {(deployments or ['DEPLOYMENT'])[0]} cloud-check --resolution=reboot_vm",
    )


@CHECKS.add("capabilities")
def _capabilities(subject: Subject) -> Finding:
    missing = sorted(set(CAPABILITIES) - host_facts.ceiling_of_server(subject.address).capabilities)
    if missing:
        return warning(
            f"containerd itself lacks {', '.join(missing)}, so VMs do as well",
            "run containerd on the host, or in a container with --privileged",
        )
    return ok("containerd has all that VMs are given")


@HOST_CHECKS.add("runc")
def _runc(_subject: Subject) -> Finding:
    try:
        first = run_program(["runc", "--version"]).decode().splitlines()[0]
    except CommandFailed as error:
        return failure(error.message, packages("runc"))
    return ok(first)


@HOST_CHECKS.add("cgroups")
def _cgroups(subject: Subject) -> Finding:
    root = cgroups.folder_of("")
    systemd = ", systemd manages them" if Path("/run/systemd/system").is_dir() else ""
    if cgroups.is_v2():
        have = (root / "cgroup.controllers").read_text().split()
        missing = [name for name in _CONTROLLERS if name not in have]
        if missing:
            return failure(
                f"cgroup v2 has no controller {', '.join(missing)} here",
                f"echo +{' +'.join(missing)} > /sys/fs/cgroup/cgroup.subtree_control"
                "  # in the parent, when this is a container",
            )
        return ok(f"v2{systemd}")
    missing = [name for name in (*_CONTROLLERS, "devices") if not cgroups.folder_of(name).is_dir()]
    if missing:
        return failure(
            f"no cgroup is mounted for {', '.join(missing)}",
            " && ".join(
                f"mkdir -p {root}/{name} && mount -t cgroup -o {name} cgroup {root}/{name}"
                for name in missing
            ),
        )
    mode = "hybrid (v1, with v2 beside it)" if (root / "unified").is_dir() else "v1"
    return ok(f"{mode}{systemd}")
