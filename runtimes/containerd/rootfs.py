"""A VM's root file system: its snapshot as the host sees it, and what the CPI writes into it."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cpi.agent_settings import render as render_settings
from cpi.cni import nameservers
from cpi.host import id_maps, kernel, syscalls
from cpi.model import Network, VMSpec
from stemcell_convert import mount_programs
from stemcell_convert.facts import SYSTEMD
from stemcell_convert.inroot import Root

if TYPE_CHECKING:
    from runtimes.containerd.api import types_pb2
    from runtimes.containerd.stemcells import Stemcell

Result = TypeVar("Result")

_MOUNTED_LAST = "/var/vcap/bosh/managed_disk_settings.json"
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@contextmanager
def mounted(mounts: "Sequence[types_pb2.Mount]", mount_point: Path) -> Iterator[Path]:
    """Mount a snapshot, for use inside syscalls.in_private_mounts.

    The mount point is made when missing. Concurrent calls may share it: each has its own mounts.
    """
    mount_point.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        for mount in mounts:
            syscalls.mount_words(mount.source, mount_point, mount.type, list(mount.options))
            stack.callback(syscalls.umount, mount_point, kernel.MNT_DETACH)
        yield mount_point


def enter(
    mounts: "Sequence[types_pb2.Mount]",
    mount_point: Path,
    work: Callable[[Root], Result],
    owner: int = 0,
) -> Result:
    """Return what `work` makes of a snapshot, mounted where no other process sees it.

    owner: of what `work` writes.
    """

    def in_mounts() -> Result:
        with mounted(mounts, mount_point) as folder, Root(folder, owner) as root:
            return work(root)

    return syscalls.in_private_mounts(in_mounts)


def id_mapped(
    mounts: "Sequence[types_pb2.Mount]", target: Path, user: Path
) -> "Sequence[types_pb2.Mount]":
    """Return a snapshot's overlay with its lower layers under the ids of a user namespace.

    target: where the layers are mounted with these ids, if they are not yet; read-only, so that
    whatever deletes folders here deletes no layer. The upper layer is not mapped, since overlayfs
    cannot write into one that is: what the VM changes is stored under the host's ids.
    Raises OSError.
    """
    [original] = mounts
    mount = type(original)()
    mount.CopyFrom(original)
    for index, option in enumerate(mount.options):
        name, _, value = option.partition("=")
        if name == "lowerdir":
            layers = value.split(":")
            folder = os.path.commonpath(layers)
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not syscalls.is_mount_point(target):
                id_maps.mount_read_only(Path(folder), target, user)
            below = (os.path.relpath(layer, folder) for layer in layers)
            mount.options[index] = "lowerdir=" + ":".join(str(target / path) for path in below)
    return [mount]


def hostname(spec: VMSpec) -> str:
    """Return the agent's id, if it can be a host name, else the CID's last part."""
    if _HOSTNAME.fullmatch(spec.agent_id):
        return spec.agent_id
    return f"vm-{spec.cid.rsplit('-', 1)[1]}"


def files(
    spec: VMSpec, networks: Sequence[Network], stemcell: "Stemcell"
) -> list[tuple[str, bytes, int]]:
    """Return the files to write into a VM's root file system: path, content, mode.

    They are plain files, not binds: the agent renames /etc/hosts and replaces /etc/resolv.conf.
    """
    name = hostname(spec)
    hosts = f"127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n"
    servers = "".join(f"nameserver {server}\n" for server in nameservers.of_networks(networks))
    settings = json.dumps(render_settings(spec, networks))
    written = [
        (stemcell.settings, settings.encode(), 0o600),
        ("/etc/hostname", f"{name}\n".encode(), 0o644),
        ("/etc/hosts", hosts.encode(), 0o644),
        ("/etc/resolv.conf", servers.encode(), 0o644),
    ]
    if stemcell.init == SYSTEMD:
        # A stemcell may come with one, which all VMs would share.
        written.append(("/etc/machine-id", f"{spec.cid.rsplit('-', 1)[1]}\n".encode(), 0o444))
    return written


def mount_program(root: Root) -> Iterator[tuple[str, bytes, int]]:
    """Yield the agent's `mount` as it must be in a user namespace, if the stemcell has one.

    A stemcell that was imported by an earlier version has one that cannot remount there.
    """
    path = f"{mount_programs.FOLDER}/mount"
    if root.exists(path):
        yield path, mount_programs.MOUNT, 0o755


def write(root: Root, written: Sequence[tuple[str, bytes, int]]) -> None:
    """Write `files` into a root file system."""
    root.own()
    programs = mount_program(root) if root.owner else ()
    for path, data, mode in (*written, *programs):
        # A stemcell with systemd-resolved points there, and the agent configures it.
        if path == "/etc/resolv.conf" and "systemd" in (root.link_target(path) or ""):
            continue
        root.write(path, data, mode)


def mounted_last(root: Root, attached: Sequence[str]) -> str:
    """Return the disk that the agent mounted last, if the VM still has it, or "".

    An agent that remembers a detached disk does not start (bosh-agent,
    bootstrap.mountLastMountedDisk), so its record of that is emptied.
    """
    try:
        disk_cid = root.read(_MOUNTED_LAST, 256).decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    if disk_cid and disk_cid not in attached:
        root.write(_MOUNTED_LAST, b"", 0o600)
        return ""
    return disk_cid
