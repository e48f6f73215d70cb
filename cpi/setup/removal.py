"""What an installation leaves on a host, as steps that remove it: `bosh-cpi setup --undo`."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cpi import cid
from cpi.cni.firewall import Firewall
from cpi.config.config import Config
from cpi.disks.disk_store import DiskStore, folders_of
from cpi.disks.snapshots import Snapshots
from cpi.errors import CPIError
from cpi.host import iproute, locks, syscalls
from cpi.host.folders import entries
from cpi.host.layout import Layout
from cpi.host.process import run
from cpi.model import Garbage
from cpi.setup import firewall_chains, kernel_settings, units
from cpi.setup.installation import program_files
from cpi.setup.steps import ETC, Step, System
from cpi.upkeep.restore import vms_of
from runtimes import catalog


class Removal:
    """Removes what an installation has left on this host."""

    def __init__(self, system: System, runtimes: catalog.Runtimes) -> None:
        """problems: what could not be looked at, one sentence each."""
        self._system = system
        self._runtimes = runtimes
        self._config: Config = runtimes.config
        self._layout = Layout.of(self._config)
        self._store = DiskStore(folders_of(self._config))
        self.problems: list[str] = []

    def steps(self, *, vms: bool, disks: bool) -> list[Step]:
        """Return the steps, in their order; vms and disks: whether these are deleted as well.

        Raises CPIError when there are VMs that are not.
        """
        cids = list(vms_of(self._config))
        if cids and not vms:
            shown = ", ".join(cids[:3]) + ", …" * (len(cids) > 3)
            raise CPIError(
                f"this host has {len(cids)} VMs ({shown}); delete their deployments, or pass --vms "
                "to delete the VMs as well"
            )
        steps = [
            *units.remove(self._system),
            *(Step(f"delete the VM {name}", partial(self._delete_vm, name)) for name in cids),
            *(self._disks() if disks else ()),
            *self._of_runtimes(),
            *self._of_network(with_vms=bool(cids)),
            *self._state(disks=disks),
        ]
        run_dir = self._layout.run_dir  # has locks of the steps before
        if steps or self._system.path(run_dir).exists():
            steps.append(
                Step(f"remove {run_dir}", partial(_remove_tree, self._system.path(run_dir)))
            )
        return [
            *steps,
            *kernel_settings.undo(self._system),
            *self._folder(Path(ETC)),
            *program_files(self._system),
        ]

    def kept(self) -> list[str]:
        """Return the CIDs of persistent disks and their snapshots, which stay unless asked for."""
        snapshots = [snapshot.cid for snapshot in Snapshots(self._store).all()]
        return [*(disk.cid for disk in self._store.all()), *snapshots]

    def _delete_vm(self, vm_cid: str) -> None:
        with locks.hold(str(self._layout.run_dir), vm_cid, log=self._runtimes.log):
            self._runtimes.of_cid(vm_cid, cid.VM).delete_vm(vm_cid)

    def _of_runtimes(self) -> Iterator[Step]:
        for name in catalog.configured(self._config):
            try:
                remains = self._runtimes.get(name).remains()
            except CPIError as error:
                self.problems.append(f"{name}: {error.message}")
                continue
            for item in remains:
                yield Step(f"delete the {item.type} {item.name}", partial(self._remove, item))

    def _remove(self, item: Garbage) -> None:
        with locks.hold(str(self._layout.run_dir), item.lock, log=self._runtimes.log):
            item.remove()

    def _of_network(self, *, with_vms: bool) -> Iterator[Step]:
        """Yield steps for bridges that networks of VMs were on, and for the firewall."""
        if not self._system.is_ours:
            return
        if self._layout.bridges.is_dir():
            firewall = Firewall(self._layout, self._runtimes.log)
            yield Step(f"delete the tables {firewall.table} (nft)", firewall.remove_all)
        names = {self._config.text("network.bridge")}
        names |= {folder.name for folder in entries(self._layout.addresses)}
        links = iproute.links()
        for name in sorted(names & set(links)):
            if links[name].get("linkinfo", {}).get("info_kind") == "bridge":
                yield Step(f"delete the bridge {name}", partial(_delete_bridge, name))
        yield from firewall_chains.removal(with_vms=with_vms)

    def _disks(self) -> Iterator[Step]:
        snapshots = Snapshots(self._store)
        for snapshot in snapshots.all():
            remove = partial(snapshots.delete, snapshot.cid)
            yield Step(f"delete the snapshot {snapshot.cid} with its data", remove)
        for disk in self._store.all():
            remove = partial(self._store.delete, disk.cid)
            yield Step(f"delete the disk {disk.cid} with its data", remove)

    def _state(self, *, disks: bool) -> Iterator[Step]:
        state_dir = self._layout.state_dir
        if disks or not self.kept():
            yield from self._folder(state_dir)
            return
        stores = self._store.folders.values()
        for path in entries(self._system.path(state_dir)):
            if not any(store.is_relative_to(state_dir / path.name) for store in stores):
                yield from self._folder(state_dir / path.name)

    def _folder(self, folder: Path) -> Iterator[Step]:
        path = self._system.path(folder)
        if path.exists():
            yield Step(f"remove {folder}", partial(_remove_tree, path))


def _delete_bridge(name: str) -> None:
    """Delete a bridge, unless something of another's is on it. Raises CPIError."""
    on_it = [link for link, facts in iproute.links().items() if facts.get("master") == name]
    if on_it:
        raise CPIError(f"the bridge {name} stays: {', '.join(on_it)} are on it")
    run(["ip", "link", "delete", name], install_hint=iproute.INSTALL)


def _remove_tree(path: Path) -> None:
    """Remove a file, or a folder on which nothing is mounted. Raises CPIError."""
    mounted = [
        mount.target
        for mount in syscalls.mounts("self")
        if Path(mount.target) == path or path in Path(mount.target).parents
    ]
    if mounted:
        raise CPIError(f"{path} stays: {', '.join(mounted[:3])} is mounted there; umount it first")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
