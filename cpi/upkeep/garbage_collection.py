"""Find orphaned resources on this host, of every runtime and of the CPI itself, and remove them.

Resources are recognised by having no owner: there is no list of what was created. What a running
call has locked is never touched; nor is a disk that has facts.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from cpi import cid
from cpi.config.config import Config
from cpi.errors import CPIError, message_of
from cpi.host import locks, vm_creation
from cpi.host.folders import size_of
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.model import Garbage
from cpi.service.ownership import records_by_client
from cpi.upkeep import host_garbage
from cpi.upkeep.restore import vms_of
from runtimes import catalog

_VM_CID = re.compile(r"\b[a-z][a-z0-9]{0,15}-vm-[a-z0-9]{1,48}\b")


@dataclass
class Collected:
    """All garbage; what was removed of it; and errors, by name."""

    garbage: list[Garbage] = field(default_factory=list)
    removed: list[Garbage] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def collect_garbage(
    config: Config,
    log: Log,
    *,
    yes: bool,
    only_certain: bool = True,
    bosh_vms: Iterable[str] | None = None,
) -> Collected:
    """Find garbage and, with `yes`, remove it. Calls of the CPI may run meanwhile.

    only_certain: leave out what may still be wanted, so that the service can collect unasked.
    bosh_vms: the CIDs of all VMs that any director or manifest knows; others are garbage too.
    """
    collected = Collected()
    with catalog.Runtimes(config, log) as runtimes:
        for title, find in _finders(runtimes, bosh_vms):
            try:
                items = [item for item in find() if item.certain or not only_certain]
            except Exception as error:  # one that fails does not block the others
                collected.failed[title] = message_of(error)
                log.error(f"garbage of {title}: {collected.failed[title]}")
                continue
            known = {(item.type, item.name) for item in collected.garbage}
            collected.garbage += [item for item in items if (item.type, item.name) not in known]
        for item in collected.garbage if yes else ():
            try:
                if _remove(item, config, log):
                    collected.removed.append(item)
            except Exception as error:
                message = collected.failed[item.name] = message_of(error)
                log.error(f"{item.type} {item.name} cannot be removed: {message}")
    return collected


def read_cids(text: str) -> set[str]:
    """Return the VM CIDs in a text of any form.

    Raises CPIError when there are none: then all VMs would be garbage.
    """
    cids = set(_VM_CID.findall(text))
    if not cids:
        raise CPIError("the list of VMs that BOSH knows has no CID; make it with: bosh vms --json")
    return cids


def _finders(
    runtimes: catalog.Runtimes, bosh_vms: Iterable[str] | None
) -> Iterator[tuple[str, Callable[[], Iterable[Garbage]]]]:
    """Yield functions that find garbage, with their titles in errors."""
    config = runtimes.config
    used = [cid.runtime_of(vm_cid, cid.VM) for vm_cid in vms_of(config)]
    for name in dict.fromkeys([*catalog.configured(config), *used]):
        yield f"the runtime {name}", partial(_of_runtime, name, runtimes)
    yield "this host", partial(host_garbage.find, config, runtimes.log)
    yield "clients of the service", partial(_records, runtimes)
    if bosh_vms is not None:
        yield "VMs that BOSH does not know", partial(_unknown, set(bosh_vms), runtimes)


def _of_runtime(name: str, runtimes: catalog.Runtimes) -> list[Garbage]:
    return runtimes.get(name).garbage()


def _records(runtimes: catalog.Runtimes) -> Iterator[Garbage]:
    """Yield records of resources that are gone: deleted by an operator, or by a killed call."""
    for client, paths in records_by_client(Layout.of(runtimes.config).clients).items():
        for path in paths:
            if resource := _missing_resource(path.name, runtimes):
                why, remove = f"there is no such {resource}", partial(path.unlink, missing_ok=True)
                name = f"{client}/{path.name}"
                # Not certain: if the resource exists after all, it has no owner without its record.
                yield Garbage("record", name, why, path.name, remove, certain=False)


def _missing_resource(name: str, runtimes: catalog.Runtimes) -> str:
    """Return "vm" or "disk" for a CID of one that is gone, "" for others and during a call."""
    resource = next((word for word in (cid.VM, cid.DISK) if catalog.is_ours(name, word)), "")
    if not resource or locks.is_held(runtimes.config.text("run_dir"), name):
        return ""
    runtime = runtimes.of_cid(name, resource)
    has = runtime.has_vm if resource == cid.VM else runtime.has_disk
    return "" if has(name) else resource


def _unknown(bosh_vms: set[str], runtimes: catalog.Runtimes) -> Iterator[Garbage]:
    """Yield complete VMs that BOSH does not know, since its create_vm got no answer."""
    config = runtimes.config
    for vm_cid in vms_of(config):
        folder = Layout.of(config).vm(vm_cid)
        if vm_cid in bosh_vms or vm_creation.is_marked(folder):
            continue
        if not locks.is_held(config.text("run_dir"), vm_cid):
            why, remove = "BOSH does not know it", partial(_delete_vm, vm_cid, runtimes)
            yield Garbage("VM", vm_cid, why, vm_cid, remove, certain=False, size=size_of(folder))


def _delete_vm(vm_cid: str, runtimes: catalog.Runtimes) -> None:
    runtimes.of_cid(vm_cid, cid.VM).delete_vm(vm_cid)


def _remove(item: Garbage, config: Config, log: Log) -> bool:
    """Remove an item unless a call holds its lock; tell whether it was removed."""
    run_dir = config.text("run_dir")
    if locks.is_held(run_dir, item.lock):
        log.info(f"{item.type} {item.name}: a call is at work on {item.lock}")
        return False
    with locks.hold(run_dir, item.lock, log=log):
        item.remove()
    log.info(f"removed {item.type} {item.name}: {item.why}")
    return True
