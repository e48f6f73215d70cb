"""`bosh-cpi disk …`: persistent disks and their snapshots, for people."""

import argparse
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpi import cid
from cpi.commands import output
from cpi.commands.declare import Verbs, add_command, add_noun, switch
from cpi.config.config import Config
from cpi.disks import loop, raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.disks.filesystems import FILE_SYSTEMS, mount_device, replay
from cpi.disks.snapshots import Snapshot, Snapshots
from cpi.errors import CloudError, CPIError
from cpi.host import linux, locks
from cpi.log import Log
from cpi.views import name_of

_EXAMPLES = """\
examples:
  bosh-cpi disk list
  bosh-cpi disk mount …-disk-1f0c… /mnt && ls /mnt && umount /mnt
  bosh-cpi disk fsck …-disk-1f0c… --repair
  bosh-cpi disk snapshots …-disk-1f0c…
  bosh-cpi disk restore …-snapshot-77ab…
"""


class Host:
    """The disks of this host, and their locks."""

    def __init__(self, config: Config) -> None:
        self.disks = DiskStore(folders_of(config))
        self.snapshots = Snapshots(self.disks)
        self._run_dir = config.text("run_dir")
        self._log = Log()

    def hold(self, *cids: str) -> AbstractContextManager[None]:
        """Hold locks, as the CPI's own calls do."""
        return locks.hold(self._run_dir, *cids, log=self._log)

    def snapshots_of(self, disk_cid: str) -> list[Snapshot]:
        """A disk's snapshots, the oldest first."""
        return [one for one in self.snapshots.all() if one.disk_cid == disk_cid]


def add_to(nouns: Any) -> None:
    """Add the commands to the command line."""
    add_noun(nouns, "disk", "persistent disks and their snapshots", _EXAMPLES, _verbs())
    run, _, arguments = _verbs()["list"]
    add_command(nouns, "disks", run, "list all disks (disk list)", _EXAMPLES, arguments)


def _verbs() -> Verbs:
    disk = {"metavar": "DISK", "help": "a disk's CID", "type": _disk_cid}
    snapshot = {"metavar": "SNAPSHOT", "help": "a snapshot's CID", "type": _snapshot_cid}
    folder = {"metavar": "FOLDER", "help": "an existing folder", "type": Path}

    json = {"--json": switch("print JSON")}
    return {
        "list": (_list, "List all disks, with their size and what they take on the host.", json),
        "show": (
            _show,
            "Show everything about a disk: facts, file, state and snapshots.",
            {"disk": disk, **json},
        ),
        "mount": (
            _mount,
            "Mount a disk read-only in a folder of this host, attached or not; `umount` ends it.",
            {"disk": disk, "folder": folder},
        ),
        "fsck": (
            _fsck,
            "Check the file system of a detached disk. Exit status 0: sound, 1: it is not.",
            {"disk": disk, "--repair": switch("mend what is wrong, not only look")},
        ),
        "snapshots": (
            _snapshots,
            "List snapshots, the oldest first.",
            {"disk": {**disk, "nargs": "?"}, **json},
        ),
        "restore": (
            _restore,
            "Put a snapshot's content back into its disk, which must be detached "
            "(bosh stop --hard); or into a new disk, whose CID is printed, for bosh attach-disk.",
            {
                "snapshot": snapshot,
                "--new": switch("create a new disk from it"),
                "--yes": switch("do not ask before overwriting the disk"),
            },
        ),
    }


def _disk_cid(text: str) -> str:
    return _checked(text, cid.DISK)


def _snapshot_cid(text: str) -> str:
    return _checked(text, cid.SNAPSHOT)


def _checked(text: str, kind: str) -> str:
    """Return a CID of this kind: nothing else may meet a path."""
    try:
        cid.runtime_of(text, kind)
    except CPIError as error:
        raise argparse.ArgumentTypeError(error.message) from None
    return text


def _document(host: Host, disk: Disk) -> dict[str, Any]:
    path = host.disks.image(disk)
    return {
        **asdict(disk),
        "path": str(path),
        "allocated_mib": path.stat().st_blocks * 512 // images.MIB if path.exists() else 0,
        "state": _state(host, disk),
    }


def _state(host: Host, disk: Disk) -> str:
    try:
        host.disks.check(disk)
    except CPIError as error:
        return f"damaged: {error.message}"
    return "attached" if disk.attached_to else "detached"


def _list(options: argparse.Namespace, config: Config) -> int:
    host = Host(config)
    found = [_document(host, disk) for disk in host.disks.all()]
    if options.json:
        output.show_json(found)
        return 0
    rows = [
        [
            disk["cid"],
            output.size(disk["size"]),
            output.size(disk["allocated_mib"]),
            disk["filesystem"],
            disk["store"],
            disk["state"],
            disk["attached_to"],
            disk["metadata"].get("deployment", ""),
            name_of(disk["metadata"]).instance,
        ]
        for disk in found
    ]
    headings = ["DISK", "SIZE", "TAKES", "FS", "STORE", "STATE", "VM", "DEPLOYMENT", "INSTANCE"]
    output.show_table(headings, rows, right="SIZE TAKES")
    return 0


def _show(options: argparse.Namespace, config: Config) -> int:
    host = Host(config)
    disk = host.disks.get(options.disk)
    document = _document(host, disk)
    document["snapshots"] = [asdict(one) for one in host.snapshots_of(disk.cid)]
    document["loop_devices"] = loop.over(host.disks.image(disk))
    if options.json:
        output.show_json(document)
        return 0
    document["size"] = output.size(disk.size)
    document["allocated_mib"] = output.size(document["allocated_mib"])
    document["snapshots"] = [f"{one['cid']} ({one['created_at']})" for one in document["snapshots"]]
    document["takes"] = document.pop("allocated_mib")
    output.show_facts(document)
    return 0


def _mount(options: argparse.Namespace, config: Config) -> int:
    host, folder = Host(config), options.folder.resolve()
    if not folder.is_dir():
        raise CloudError(f"{folder} is no folder")
    flags = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID | linux.MS_NOEXEC
    with host.hold(options.disk):
        disk = host.disks.get(options.disk)
        image = host.disks.image(disk)
        if loop.over(image):
            linux.mount(str(_mounted_at(disk, image)), folder, flags=linux.MS_BIND)
            linux.mount("none", folder, flags=flags | linux.MS_BIND | linux.MS_REMOUNT)
        else:
            host.disks.check(disk)
            part, kind = images.part_of(image), FILE_SYSTEMS[disk.filesystem]
            with loop.attached(part, read_only=True) as device:
                mount_device(device, folder, kind.name, flags, (kind.no_replay,))
    print(f"{disk.cid} is at {folder}, read-only; `umount {folder}` ends it, and until then")
    print("it cannot be attached to a VM" if not disk.attached_to else "it cannot be detached")
    return 0


def _mounted_at(disk: Disk, image: Path) -> str:
    devices = {loop.device_number(name) for name in loop.over(image)}
    for mounted in linux.mounts("self"):
        if mounted.device in devices and mounted.root == "/":
            return mounted.target
    raise CloudError(f"the disk {disk.cid} is in use where this process cannot look into it")


def _fsck(options: argparse.Namespace, config: Config) -> int:
    host = Host(config)
    with host.hold(options.disk):
        disk = host.disks.get_free(options.disk, "check")
        part, kind = images.part_of(host.disks.image(disk)), FILE_SYSTEMS[disk.filesystem]
        if options.repair:
            with suppress(CPIError):  # what cannot be mounted can still be mended
                replay(part, kind)
        only_look = not options.repair
        with loop.attached(part, read_only=only_look) as device:
            sound, text = kind.check(device, repair=options.repair)
    print(text)
    if not sound and only_look:
        print(
            f"{disk.cid} is not sound. A VM that died leaves a journal which the next attach "
            "replays;\n`--repair` replays it, then mends what is still wrong."
        )
    return 0 if sound else 1


def _snapshots(options: argparse.Namespace, config: Config) -> int:
    host = Host(config)
    wanted = host.snapshots_of(options.disk) if options.disk else list(host.snapshots.all())
    if options.json:
        output.show_json([asdict(one) for one in wanted])
        return 0
    rows = [
        [
            one.cid,
            one.disk_cid,
            output.size(one.size),
            one.filesystem,
            one.created_at,
            one.metadata.get("deployment", ""),
        ]
        for one in wanted
    ]
    headings = ["SNAPSHOT", "DISK", "SIZE", "FS", "CREATED", "DEPLOYMENT"]
    output.show_table(headings, rows, right="SIZE")
    return 0


def _restore(options: argparse.Namespace, config: Config) -> int:
    host = Host(config)
    snapshot = host.snapshots.get(options.snapshot)
    if options.new:
        return _restore_to_new(host, snapshot)
    with host.hold(snapshot.disk_cid, snapshot.cid):
        disk = host.disks.get_free(snapshot.disk_cid, "restore")
        question = f"Replace all data of {disk.cid} by what it had at {snapshot.created_at}?"
        if not output.confirmed(question, options.yes):
            return 1
        with output.progress(f"restoring {disk.cid}") as progress:
            host.snapshots.restore(snapshot, disk, progress)
    print(disk.cid)
    return 0


def _restore_to_new(host: Host, snapshot: Snapshot) -> int:
    runtime = cid.runtime_of(snapshot.cid, cid.SNAPSHOT)
    disk = Disk(
        cid.new(runtime, cid.DISK),
        snapshot.size,
        filesystem=snapshot.filesystem,
        metadata={"restored_from": snapshot.cid},
    )
    told = f"restoring {snapshot.cid}"
    with host.hold(disk.cid, snapshot.cid), output.progress(told) as progress:
        host.snapshots.restore_to_new(snapshot, disk, progress)
    print(disk.cid)
    return 0
