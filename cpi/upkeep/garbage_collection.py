"""What nobody owns on this host, of every runtime and beside them; and taking it away.

Things are recognised by having no owner, since there is no list of what was made. What a call is at
work on has its lock held, and is never touched; nor is a disk that has facts.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from cpi import cid
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.host import locks, unfinished
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
    """What was found; of that, what is gone now; and what went wrong, by name."""

    found: list[Garbage] = field(default_factory=list)
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
    """Find garbage and, with `yes`, remove it. Calls of the CPI may come meanwhile.

    only_certain: leave out what somebody could still want; so a service may do it unasked.
    bosh_vms: the CIDs of all VMs that any director or manifest knows; others are garbage too.
    """
    done = Collected()
    with catalog.Runtimes(config, log) as runtimes:
        for title, find in _finders(runtimes, bosh_vms):
            try:
                _add(done.found, [one for one in find() if one.certain or not only_certain])
            except Exception as error:  # one that does not answer is no reason to keep the rest
                done.failed[title] = _told(error)
                log.error(f"garbage of {title}: {done.failed[title]}")
        for one in done.found if yes else ():
            try:
                if _remove(one, config, log):
                    done.removed.append(one)
            except Exception as error:
                done.failed[one.name] = _told(error)
                log.error(f"{one.type} {one.name} cannot be removed: {done.failed[one.name]}")
    return done


def _add(found: list[Garbage], more: Iterable[Garbage]) -> None:
    """Add what is not there for another reason already."""
    known = {(one.type, one.name) for one in found}
    found += [one for one in more if (one.type, one.name) not in known]


def read_cids(text: str) -> set[str]:
    """Return the CIDs of VMs in a text, whatever is around them.

    Raises CPIError when there are none: then everything would be garbage.
    """
    found = set(_VM_CID.findall(text))
    if not found:
        raise CPIError("the list of VMs that BOSH knows has no CID; make it with: bosh vms --json")
    return found


def _finders(
    runtimes: catalog.Runtimes, bosh_vms: Iterable[str] | None
) -> Iterator[tuple[str, Callable[[], Iterable[Garbage]]]]:
    """Yield what looks for garbage, with what it is called in errors."""
    config = runtimes.config
    used = [cid.runtime_of(vm_cid, cid.VM) for vm_cid in vms_of(config)]
    for name in dict.fromkeys([*catalog.configured(config), *used]):
        yield f"the runtime {name}", partial(_of_runtime, name, runtimes)
    yield "this host", partial(host_garbage.find, config)
    yield "clients of the service", partial(_records, runtimes)
    if bosh_vms is not None:
        yield "VMs that BOSH does not know", partial(_unknown, set(bosh_vms), runtimes)


def _of_runtime(name: str, runtimes: catalog.Runtimes) -> list[Garbage]:
    return runtimes.get(name).garbage()


def _records(runtimes: catalog.Runtimes) -> Iterator[Garbage]:
    """What the service counts for a client that is gone: a person deleted it, or a killed call."""
    for client, paths in records_by_client(Layout.of(runtimes.config).clients).items():
        for path in paths:
            if kind := _kind_of_missing(path.name, runtimes):
                why, remove = f"there is no such {kind}", partial(path.unlink, missing_ok=True)
                name = f"{client}/{path.name}"
                # Not certain: without its record, a thing that is there after all is nobody's.
                yield Garbage("record", name, why, path.name, remove, certain=False)


def _kind_of_missing(name: str, runtimes: catalog.Runtimes) -> str:
    """Return the kind of a VM or disk that is gone, "" for others and during a call on it."""
    kind = next((kind for kind in (cid.VM, cid.DISK) if catalog.is_ours(name, kind)), "")
    if not kind or locks.is_held(runtimes.config.text("run_dir"), name):
        return ""
    runtime = runtimes.of_cid(name, kind)
    has = runtime.has_vm if kind == cid.VM else runtime.has_disk
    return "" if has(name) else kind


def _unknown(bosh_vms: set[str], runtimes: catalog.Runtimes) -> Iterator[Garbage]:
    """VMs that are whole and that BOSH has not, since the answer to its create_vm was lost."""
    config = runtimes.config
    for vm_cid in vms_of(config):
        folder = Layout.of(config).vm(vm_cid)
        if vm_cid in bosh_vms or unfinished.is_marked(folder):
            continue
        if not locks.is_held(config.text("run_dir"), vm_cid):
            why, remove = "BOSH does not know it", partial(_delete_vm, vm_cid, runtimes)
            yield Garbage("VM", vm_cid, why, vm_cid, remove, certain=False, size=size_of(folder))


def _delete_vm(vm_cid: str, runtimes: catalog.Runtimes) -> None:
    runtimes.of_cid(vm_cid, cid.VM).delete_vm(vm_cid)


def _told(error: Exception) -> str:
    return error.message if isinstance(error, CPIError) else f"{type(error).__name__}: {error}"


def _remove(one: Garbage, config: Config, log: Log) -> bool:
    """Remove one thing, unless a call is at work on it; tell whether it was."""
    run_dir = config.text("run_dir")
    if locks.is_held(run_dir, one.lock):
        log.info(f"{one.type} {one.name}: a call is at work on {one.lock}")
        return False
    with locks.hold(run_dir, one.lock, log=log):
        one.remove()
    log.info(f"removed {one.type} {one.name}: {one.why}")
    return True
