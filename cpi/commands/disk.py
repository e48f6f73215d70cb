"""`bosh-cpi disk …`: persistent disks and their snapshots."""

import argparse
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpi import cid
from cpi.commands import output
from cpi.commands.declare import JSON, Argument, Command, Group, argument, switch
from cpi.config.config import Config
from cpi.disks import loop, raw_image as images
from cpi.disks.disk import Disk
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.disks.filesystems import FILE_SYSTEMS, mount_device, replay
from cpi.disks.snapshots import Snapshot, Snapshots
from cpi.errors import CloudError, CPIError
from cpi.host import kernel, locks, syscalls
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


class DiskContext:
    """The disks of this host, their snapshots and their locks."""

    def __init__(self, config: Config) -> None:
        self.store = DiskStore(folders_of(config))
        self.snapshots = Snapshots(self.store)
        self._run_dir = config.text("run_dir")
        self._log = Log()

    def hold(self, *cids: str) -> AbstractContextManager[None]:
        """Hold the locks of CIDs, as the CPI's calls do."""
        return locks.hold(self._run_dir, *cids, log=self._log)

    def snapshots_of(self, disk_cid: str) -> list[Snapshot]:
        """Return a disk's snapshots, the oldest first."""
        return [snapshot for snapshot in self.snapshots.all() if snapshot.disk_cid == disk_cid]


def _cid_argument(what: str, **options: Any) -> Argument:
    """Declare an argument that must be a disk's or snapshot's CID: it becomes part of a path."""

    def checked(text: str) -> str:
        try:
            cid.runtime_of(text, what)
        except CPIError as error:
            raise argparse.ArgumentTypeError(error.message) from None
        return text

    return argument(what, metavar=what.upper(), help=f"a {what}'s CID", type=checked, **options)


def _document(context: DiskContext, disk: Disk) -> dict[str, Any]:
    path = context.store.image(disk)
    return {
        **asdict(disk),
        "path": str(path),
        "allocated_mib": path.stat().st_blocks * 512 // images.MIB if path.exists() else 0,
        "state": _state(context, disk),
    }


def _state(context: DiskContext, disk: Disk) -> str:
    try:
        context.store.check(disk)
    except CPIError as error:
        return f"damaged: {error.message}"
    return "attached" if disk.attached_to else "detached"


def _list(options: argparse.Namespace, config: Config) -> int:
    context = DiskContext(config)
    disks = [_document(context, disk) for disk in context.store.all()]
    if options.json:
        output.show_json(disks)
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
        for disk in disks
    ]
    headings = ["DISK", "SIZE", "ALLOCATED", "FS", "STORE", "STATE", "VM", "DEPLOYMENT", "INSTANCE"]
    output.show_table(headings, rows, right="SIZE ALLOCATED")
    return 0


def _show(options: argparse.Namespace, config: Config) -> int:
    context = DiskContext(config)
    disk = context.store.get(options.disk)
    document = _document(context, disk)
    snapshots = context.snapshots_of(disk.cid)
    document["snapshots"] = [asdict(snapshot) for snapshot in snapshots]
    document["loop_devices"] = loop.over(context.store.image(disk))
    if options.json:
        output.show_json(document)
        return 0
    document["size"] = output.size(disk.size)
    document["snapshots"] = [f"{snapshot.cid} ({snapshot.created_at})" for snapshot in snapshots]
    document["allocated"] = output.size(document.pop("allocated_mib"))
    output.show_facts(document)
    return 0


def _mount(options: argparse.Namespace, config: Config) -> int:
    context, folder = DiskContext(config), options.folder.resolve()
    if not folder.is_dir():
        raise CloudError(f"{folder} is no folder")
    flags = kernel.MS_RDONLY | kernel.MS_NODEV | kernel.MS_NOSUID | kernel.MS_NOEXEC
    with context.hold(options.disk):
        disk = context.store.get(options.disk)
        image = context.store.image(disk)
        if loop.over(image):
            syscalls.mount(str(_mount_point(disk, image)), folder, flags=kernel.MS_BIND)
            syscalls.mount("none", folder, flags=flags | kernel.MS_BIND | kernel.MS_REMOUNT)
        else:
            context.store.check(disk)
            part, filesystem = images.part_of(image), FILE_SYSTEMS[disk.filesystem]
            with loop.attached(part, read_only=True) as device:
                mount_device(device, folder, filesystem.name, flags, (filesystem.no_replay,))
    print(f"{disk.cid} is at {folder}, read-only; `umount {folder}` ends it, and until then")
    print("it cannot be attached to a VM" if not disk.attached_to else "it cannot be detached")
    return 0


def _mount_point(disk: Disk, image: Path) -> str:
    devices = {loop.device_number(name) for name in loop.over(image)}
    for mounted in syscalls.mounts("self"):
        if mounted.device in devices and mounted.root == "/":
            return mounted.target
    raise CloudError(f"the disk {disk.cid} is in use where this process cannot look into it")


def _fsck(options: argparse.Namespace, config: Config) -> int:
    context = DiskContext(config)
    with context.hold(options.disk):
        disk = context.store.get_free(options.disk, "check")
        part, filesystem = images.part_of(context.store.image(disk)), FILE_SYSTEMS[disk.filesystem]
        if options.repair:
            with suppress(CPIError):  # a disk that cannot be mounted can still be repaired
                replay(part, filesystem)
        with loop.attached(part, read_only=not options.repair) as device:
            sound, text = filesystem.check(device, repair=options.repair)
    print(text)
    if not sound and not options.repair:
        print(
            f"{disk.cid} is not sound. A VM that died leaves a journal which the next attach "
            "replays;\n`--repair` replays it, then mends what is still wrong."
        )
    return 0 if sound else 1


def _snapshots(options: argparse.Namespace, config: Config) -> int:
    context = DiskContext(config)
    wanted = context.snapshots_of(options.disk) if options.disk else list(context.snapshots.all())
    if options.json:
        output.show_json([asdict(snapshot) for snapshot in wanted])
        return 0
    rows = [
        [
            snapshot.cid,
            snapshot.disk_cid,
            output.size(snapshot.size),
            snapshot.filesystem,
            snapshot.created_at,
            snapshot.metadata.get("deployment", ""),
        ]
        for snapshot in wanted
    ]
    headings = ["SNAPSHOT", "DISK", "SIZE", "FS", "CREATED", "DEPLOYMENT"]
    output.show_table(headings, rows, right="SIZE")
    return 0


def _restore(options: argparse.Namespace, config: Config) -> int:
    context = DiskContext(config)
    snapshot = context.snapshots.get(options.snapshot)
    if options.new:
        return _restore_to_new(context, snapshot)
    with context.hold(snapshot.disk_cid, snapshot.cid):
        disk = context.store.get_free(snapshot.disk_cid, "restore")
        question = f"Replace all data of {disk.cid} by what it had at {snapshot.created_at}?"
        if not output.confirmed(question, options.yes):
            return 1
        with output.progress(f"restoring {disk.cid}") as progress:
            context.snapshots.restore(snapshot, disk, progress)
    print(disk.cid)
    return 0


def _restore_to_new(context: DiskContext, snapshot: Snapshot) -> int:
    runtime = cid.runtime_of(snapshot.cid, cid.SNAPSHOT)
    disk = Disk(
        cid.new(runtime, cid.DISK),
        snapshot.size,
        filesystem=snapshot.filesystem,
        metadata={"restored_from": snapshot.cid},
        table=snapshot.table,
    )
    title = f"restoring {snapshot.cid}"
    with context.hold(disk.cid, snapshot.cid), output.progress(title) as progress:
        context.snapshots.restore_to_new(snapshot, disk, progress)
    print(disk.cid)
    return 0


COMMANDS = (
    Group(
        "disk",
        "persistent disks and their snapshots",
        Command(
            "list", _list, "list all disks, with their size and what they take on the host", JSON
        ),
        Command(
            "show",
            _show,
            "show everything about a disk: facts, file, state and snapshots",
            _cid_argument(cid.DISK),
            JSON,
        ),
        Command(
            "mount",
            _mount,
            "mount a disk read-only in a folder of this host, attached or not; `umount` ends it",
            _cid_argument(cid.DISK),
            argument("folder", metavar="FOLDER", help="an existing folder", type=Path),
        ),
        Command(
            "fsck",
            _fsck,
            "check the file system of a detached disk. Exit status 0: sound, 1: it is not",
            _cid_argument(cid.DISK),
            switch("--repair", "mend what is wrong, not only look"),
        ),
        Command(
            "snapshots",
            _snapshots,
            "list snapshots, the oldest first",
            _cid_argument(cid.DISK, nargs="?"),
            JSON,
        ),
        Command(
            "restore",
            _restore,
            "put a snapshot's content back into its disk, which must be detached "
            "(bosh stop --hard); or into a new disk, whose CID is printed, for bosh attach-disk",
            _cid_argument(cid.SNAPSHOT),
            switch("--new", "create a new disk from it"),
            switch("--yes", "do not ask before overwriting the disk"),
        ),
        examples=_EXAMPLES,
    ),
    Command("disks", _list, "list all disks (disk list)", JSON, examples=_EXAMPLES),
)
