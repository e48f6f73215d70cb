"""Finds VMs and stemcells that killed calls orphaned."""

import json
from collections.abc import Callable, Iterator
from functools import partial

from cpi import cid
from cpi.host import locks, vm_creation
from cpi.host.folders import entries, size_of
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.model import Garbage
from runtimes.containerd import cgroups, mount_namespaces
from runtimes.containerd.api import containers_pb2
from runtimes.containerd.daemon import Containerd
from runtimes.stemcell_imports import killed_imports


class Finder:
    """Finds all orphaned resources of one containerd."""

    def __init__(
        self,
        runtime: str,
        layout: Layout,
        cgroup_parent: str,
        containerd: Containerd,
        delete_vm: Callable[[str], None],
        log: Log,
    ) -> None:
        """delete_vm: deletes all parts of a VM."""
        self._runtime = runtime
        self._layout = layout
        self._cgroup_parent = cgroup_parent
        self._containers = containerd.containers
        self._store = containerd.store
        self._delete_vm = delete_vm
        self._log = log

    def all(self) -> list[Garbage]:
        """Return orphaned resources. Raises CloudError when containerd does not answer."""
        # Locks come last: what is not locked then was not being created before either.
        records = {record.id: record for record in self._containers.all() if self._is_vm(record.id)}
        garbage = [
            *self._vms(records),
            *self._named_by_vms(
                "snapshot", self._store.snapshots(), self._store.remove_snapshot, records
            ),
            *self._named_by_vms("cgroup", self._cgroups(), self._remove_cgroup, records),
            *self._leases(),
            *killed_imports(self._layout, self._runtime, unprefixed=True),
        ]
        run_dir = str(self._layout.run_dir)
        return [item for item in garbage if not locks.is_held(run_dir, item.lock)]

    def _vms(self, records: dict[str, containers_pb2.Container]) -> Iterator[Garbage]:
        for path in entries(self._layout.vms):
            if not self._is_vm(path.name):
                continue
            if vm_creation.is_marked(path):
                why = "a call that made or deleted it was killed"
                yield self._vm(path.name, why, partial(vm_creation.is_marked, path), certain=True)
            elif path.name not in records:
                if mount_namespaces.pids_of(path.name):
                    self._log.warn(f"{path.name} runs, and this containerd knows nothing of it")
                    continue
                why = "containerd has no container for it"
                yield self._vm(path.name, why, partial(self._has_no_container, path.name))
        for name, record in records.items():
            folder = self._layout.vm(name)
            # Another CPI may use this containerd; its VMs have their folders elsewhere.
            if not folder.exists() and str(folder / "data") in _sources(record):
                why = f"its folder {folder} is gone"
                yield self._vm(name, why, partial(self._has_no_folder, name))

    def _vm(
        self, name: str, why: str, is_still: Callable[[], bool], *, certain: bool = False
    ) -> Garbage:
        """is_still: asked again under the lock: the call that made the VM may have ended."""

        def remove() -> None:
            if is_still():
                self._delete_vm(name)

        return Garbage("VM", name, why, name, remove, certain, size_of(self._layout.vm(name)))

    def _has_no_container(self, name: str) -> bool:
        return self._containers.find(name) is None

    def _has_no_folder(self, name: str) -> bool:
        return not self._layout.vm(name).exists()

    def _named_by_vms(
        self,
        noun: str,
        names: list[str],
        remove: Callable[[str], None],
        records: dict[str, containers_pb2.Container],
    ) -> Iterator[Garbage]:
        """Yield what is named by a VM that is gone, or by another CPI's that is being created."""

        def remove_still(name: str) -> None:
            if self._has_no_folder(name) and self._has_no_container(name):
                remove(name)

        for name in names:
            if self._is_vm(name) and name not in records and self._has_no_folder(name):
                why = "there is no VM of this name"
                yield Garbage(noun, name, why, name, partial(remove_still, name), certain=False)

    def _cgroups(self) -> list[str]:
        return cgroups.empty_children(self._cgroup_parent)

    def _remove_cgroup(self, name: str) -> None:
        cgroups.remove(cgroups.path_of(self._cgroup_parent, name))

    def _leases(self) -> Iterator[Garbage]:
        for name in self._store.leases():
            why = "the call that held it was killed; what it had stored goes with it"
            remove = partial(self._store.delete_lease, name, sync=True)
            yield Garbage("lease", name, why, name, remove)

    def _is_vm(self, name: str) -> bool:
        return cid.named_runtime(name, cid.VM) == self._runtime


def _sources(record: containers_pb2.Container) -> set[str]:
    """Return the folders of the host that a container has."""
    return {mount["source"] for mount in json.loads(record.spec.value).get("mounts", [])}
