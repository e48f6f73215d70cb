"""Enforces a client's policy, and restricts the client to its own resources.

Resources of another client, or made without the service, do not exist for a client.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpi import cid
from cpi.errors import (
    CloudError,
    CPIError,
    DiskNotFound,
    NoDiskSpace,
    NotSupported,
    VMCreationFailed,
)
from cpi.host.undo import Undo
from cpi.service import rules
from cpi.service.ownership import Ownership, OwnershipRecord
from cpi.service.policy import Policies, client_name
from cpi.text import shown
from runtimes import catalog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpi.config.config import Config
    from cpi.contract.methods import Call
    from cpi.model import DiskProperties, VMSpec

Go = Callable[[], object]

# The methods whose only rule is that the client owns these resources, which they begin with.
_OWNED = {
    "reboot_vm": (cid.VM,),
    "set_vm_metadata": (cid.VM,),
    "attach_disk": (cid.VM, cid.DISK),
    "detach_disk": (cid.VM, cid.DISK),
    "set_disk_metadata": (cid.DISK,),
}
# They change nothing on the host.
_HARMLESS = ("info", "calculate_vm_cloud_properties")


class Guard:
    """Guards one call of one client.

    client: its name, which may come from a certificate. config: the host's own, without overrides
    of the call; policies: its clients'. upload: the file with the client's stemcell, if it sent
    one. Raises CPIError for an invalid name.
    """

    def __init__(
        self, client: str, config: Config, policies: Policies, upload: Path | None = None
    ) -> None:
        self.client = client
        self._policy = policies.of_client(client_name(client))
        self._hosts_runtimes = catalog.configured(config)
        self._ownership = Ownership(Path(config.text("state_dir")), client)
        self._upload = upload

    def run(self, call: Call, arguments: Sequence[Any], go: Go) -> object:
        """Run a method, which is `go`, if the client may call it with these arguments.

        The arguments are those of cpi.contract.methods.parsed. Raises NotSupported, CloudError,
        VMCreationFailed or NoDiskSpace naming the rule, the NotFound errors, and what the method
        raises.
        """
        if call.method in _HARMLESS:
            return go()
        if call.method in _OWNED:
            for resource, own_cid in zip(_OWNED[call.method], arguments, strict=False):
                self._require(own_cid, resource)
            return go()
        method = _METHODS.get(call.method)
        if method is None:
            raise NotSupported(f"clients of the host's service cannot have {call.method} done")
        return method(self, call, go, *arguments)

    # Stemcells

    def _create_stemcell(self, call: Call, go: Go, image: str, *_: object) -> object:
        if self._upload is None or image != str(self._upload):
            raise CloudError(
                f"the stemcell's image {shown(image)} was not sent to the host's "
                "service, which reads no files of the host for its clients"
            )
        rules.require_runtime(self._policy, call.config.text("runtime"))
        runtimes = tuple(
            name for name in catalog.configured(call.config) if name in self._policy.runtimes
        )
        self._set(call, "runtimes", runtimes)
        if not self._policy.registry_credentials:
            self._set(call, "registry.docker_config", os.devnull)
            self._set(call, "registry.public_only", True)
        self._set(call, "registry.check_access", True)
        record = OwnershipRecord(cid.STEMCELL, runtimes=runtimes)
        with self._ownership.stemcells(deleting=False):
            return self._made(call, record, CloudError, go)

    def _delete_stemcell(self, call: Call, go: Go, stemcell: str) -> object:
        with self._ownership.stemcells(deleting=True):
            record = self._ownership.find(stemcell, cid.STEMCELL)
            if record is None:
                return None  # as for one that is gone
            holders = call.stemcell_holders()
            if any(other.client == self.client for other in holders.others(stemcell)):
                holders.drop(stemcell)
                call.log.info(f"{stemcell} stays, as another director of this client has it too")
                return None
            others = self._ownership.other_owners(stemcell, cid.STEMCELL)
            if others:
                holders.drop(stemcell)
                call.log.info(f"{stemcell} stays, as other clients have it too")
                self._ownership.hand_over(stemcell, others[0])
                return None
            self._set(call, "runtimes", (*self._hosts_runtimes, *record.runtimes))
            go()
            self._ownership.forget(stemcell)
        return None

    # VMs

    def _create_vm(self, call: Call, go: Go, spec: VMSpec) -> object:
        self._require(spec.stemcell_cid, cid.STEMCELL)
        for disk in spec.disk_cids:
            self._require(disk, cid.DISK)
        runtime = cid.runtime_of(spec.cid, cid.VM)
        rules.require_runtime(self._policy, runtime)
        rules.require_properties(self._policy, spec.properties)
        rules.require_networks(self._policy, spec.networks, call.config.text("network.bridge"))
        record = rules.vm_record(self._policy, runtime, spec.properties, call.config)
        containment_key = catalog.REGISTRY[runtime].containment_key
        if containment_key and not self._policy.uncontained:
            self._set(call, containment_key, "required")
        return self._made(call, record, VMCreationFailed, go)

    def _delete_vm(self, call: Call, go: Go, vm: str) -> object:
        if not self._has(vm, cid.VM):
            runtime = call.runtimes.of_cid(vm, cid.VM)
            if self._ownership.other_owners(vm, cid.VM) or runtime.has_vm(vm):
                raise _not_found(vm, cid.VM)
            return None  # as for one that is gone
        with self._changing(call, vm, cid.VM):
            go()
            self._ownership.forget(vm)
        return None

    def _has_vm(self, call: Call, go: Go, vm: str) -> object:
        return self._has(vm, cid.VM) and go()

    def _get_disks(self, call: Call, go: Go, vm: str) -> object:
        self._require(vm, cid.VM)
        result = go()
        disks = result if isinstance(result, list) else []
        return [disk for disk in disks if self._has(disk, cid.DISK)]

    # Persistent disks

    def _create_disk(
        self, call: Call, go: Go, size: int, properties: DiskProperties, vm: str | None
    ) -> object:
        if vm is None:
            rules.require_runtime(self._policy, call.config.text("runtime"))
        else:
            self._require(vm, cid.VM)
        rules.require_store(self._policy, properties.store)
        return self._made(call, OwnershipRecord(cid.DISK, disk=size), NoDiskSpace, go)

    def _delete_disk(self, call: Call, go: Go, disk: str) -> object:
        with self._changing(call, disk, cid.DISK):
            try:
                go()
            except DiskNotFound:  # deleted without the service
                self._ownership.forget(disk)
                raise
            self._ownership.forget(disk)
        return None

    def _has_disk(self, call: Call, go: Go, disk: str) -> object:
        return self._has(disk, cid.DISK) and go()

    def _resize_disk(self, call: Call, go: Go, disk: str, size: int) -> object:
        with self._changing(call, disk, cid.DISK) as record:
            self._grown(disk, record, size, go)
        return None

    def _update_disk(
        self, call: Call, go: Go, disk: str, size: int, properties: DiskProperties
    ) -> object:
        with self._changing(call, disk, cid.DISK) as record:
            rules.require_store(self._policy, properties.store)
            fresh = self._grown(disk, record, size, go)
            if isinstance(fresh, str) and fresh != disk:
                self._ownership.rename(disk, fresh)
        return fresh

    def _snapshot_disk(self, call: Call, go: Go, disk: str, _: object) -> object:
        with self._changing(call, disk, cid.DISK) as record:
            return self._made(call, replace(record, resource=cid.SNAPSHOT), NoDiskSpace, go)

    def _delete_snapshot(self, call: Call, go: Go, snapshot: str) -> object:
        if self._has(snapshot, cid.SNAPSHOT):  # else as for one that is gone
            with self._changing(call, snapshot, cid.SNAPSHOT):
                go()
                self._ownership.forget(snapshot)
        return None

    # Common parts

    def _has(self, any_cid: str, resource: str) -> bool:
        return self._ownership.find(any_cid, resource) is not None

    def _require(self, any_cid: str, resource: str) -> OwnershipRecord:
        record = self._ownership.find(any_cid, resource)
        if record is None:
            raise _not_found(any_cid, resource)
        return record

    def _set(self, call: Call, key: str, value: str | bool | tuple[str, ...]) -> None:
        """Change the call's configuration, before any runtime is loaded."""
        call.runtimes.config = call.config.replaced(key, value)

    def _made(self, call: Call, record: OwnershipRecord, error: type[CPIError], go: Go) -> object:
        """Run what creates a resource, which counts against quotas from before its creation.

        A resource that cannot be recorded is deleted again, so that none is orphaned.
        """
        allowed = rules.within_quotas(self._policy, error)
        with self._ownership.reserve(record, allowed) as name, Undo(call.log) as undo:
            result = go()
            made = str(result[0] if isinstance(result, list) else result)
            undo.push(lambda: self._unmade(call, made, record.resource))
            name(made)
            undo.keep()
        return result

    def _unmade(self, call: Call, made: str, resource: str) -> None:
        """Delete what was just created. A stemcell stays: the same upload finds it again."""
        if resource != cid.STEMCELL:
            runtime = call.runtimes.of_cid(made, resource)
            delete = {
                cid.VM: runtime.delete_vm,
                cid.DISK: runtime.delete_disk,
                cid.SNAPSHOT: runtime.delete_snapshot,
            }
            with call.hold(made):
                delete[resource](made)
            self._ownership.forget(made)

    @contextmanager
    def _changing(self, call: Call, own_cid: str, resource: str) -> Iterator[OwnershipRecord]:
        """Lock the record of a resource against other calls. Raises NotFound errors."""
        with call.hold(f"{own_cid}.record"):
            yield self._require(own_cid, resource)

    def _grown(self, disk: str, record: OwnershipRecord, size: int, go: Go) -> object:
        """Run what resizes a disk; if it is killed, the larger size counts."""
        larger = replace(record, disk=max(size, record.disk))
        self._ownership.change(disk, larger, rules.within_quotas(self._policy, NoDiskSpace))
        try:
            return go()
        except BaseException:
            self._ownership.change(disk, record)
            raise


# A director learns of these only when it needs the resource, from this sentence.
_NEXT_STEP = {
    cid.STEMCELL: " of this client on this host; upload it again (bosh upload-stemcell --fix FILE)",
    cid.DISK: " of this client on this host; was it made on another one (bosh cck)?",
}


def _not_found(any_cid: str, resource: str) -> CPIError:
    error = cid.NOT_FOUND.get(resource, CPIError)
    return error(f"there is no {resource} {shown(any_cid)}{_NEXT_STEP.get(resource, '')}")


_METHODS: dict[str, Callable[..., object]] = {
    "create_stemcell": Guard._create_stemcell,
    "delete_stemcell": Guard._delete_stemcell,
    "create_vm": Guard._create_vm,
    "delete_vm": Guard._delete_vm,
    "has_vm": Guard._has_vm,
    "get_disks": Guard._get_disks,
    "create_disk": Guard._create_disk,
    "delete_disk": Guard._delete_disk,
    "has_disk": Guard._has_disk,
    "resize_disk": Guard._resize_disk,
    "update_disk": Guard._update_disk,
    "snapshot_disk": Guard._snapshot_disk,
    "delete_snapshot": Guard._delete_snapshot,
}
