"""What nobody owns on this host, of every runtime and beside them; and taking it away.

Things are recognised by having no owner, since there is no list of what was made. What a call is at
work on has its lock held, and is never touched; nor is a disk that has facts.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
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
from cpi.runtime import Runtime
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
    with ExitStack() as opened:  # what is found is removed by the runtime that found it
        for title, find in _finders(config, log, opened, bosh_vms):
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
                log.error(f"{one.kind} {one.name} cannot be removed: {done.failed[one.name]}")
    return done


def _add(found: list[Garbage], more: Iterable[Garbage]) -> None:
    """Add what is not there for another reason already."""
    known = {(one.kind, one.name) for one in found}
    found += [one for one in more if (one.kind, one.name) not in known]


def read_cids(text: str) -> set[str]:
    """Return the CIDs of VMs in a text, whatever is around them.

    Raises CPIError when there are none: then everything would be garbage.
    """
    found = set(_VM_CID.findall(text))
    if not found:
        raise CPIError("the list of VMs that BOSH knows has no CID; make it with: bosh vms --json")
    return found


def _finders(
    config: Config, log: Log, opened: ExitStack, bosh_vms: Iterable[str] | None
) -> Iterator[tuple[str, Callable[[], Iterable[Garbage]]]]:
    """Yield what looks for garbage, with what it is called in errors."""
    names = [config.text("runtime"), *config.strings("runtimes")]
    names += [cid.runtime_of(vm_cid, cid.VM) for vm_cid in vms_of(config)]
    for name in dict.fromkeys(names):
        yield f"the runtime {name}", partial(_of_runtime, name, config, log, opened)
    yield "this host", partial(host_garbage.find, config)
    yield "clients of the service", partial(_records, config, log, opened)
    if bosh_vms is not None:
        yield "VMs that BOSH does not know", partial(_unknown, set(bosh_vms), config, log)


def _of_runtime(name: str, config: Config, log: Log, opened: ExitStack) -> list[Garbage]:
    runtime = catalog.load(name)(config, log)
    opened.callback(runtime.close)
    return runtime.garbage()


def _records(config: Config, log: Log, opened: ExitStack) -> Iterator[Garbage]:
    """What the service counts for a client that is gone: a person deleted it, or a killed call."""
    runtimes: dict[str, Runtime] = {}
    for path in sorted(Layout.of(config).clients.glob("*/*")):
        kind = next((one for one in (cid.VM, cid.DISK) if f"-{one}-" in path.name), "")
        try:
            name = cid.runtime_of(path.name, kind)
        except CPIError:
            continue  # of a call that is at work, or of what cannot be asked for
        if name not in catalog.REGISTRY or locks.is_held(config.text("run_dir"), path.name):
            continue
        if name not in runtimes:
            runtimes[name] = catalog.load(name)(config, log)
            opened.callback(runtimes[name].close)
        has = runtimes[name].has_vm if kind == cid.VM else runtimes[name].has_disk
        if not has(path.name):
            why, remove = f"there is no such {kind}", partial(path.unlink, missing_ok=True)
            # Not certain: without its record, a thing that is there after all is nobody's.
            told = f"{path.parent.name}/{path.name}"
            yield Garbage("record", told, why, path.name, remove, certain=False)


def _unknown(bosh_vms: set[str], config: Config, log: Log) -> Iterator[Garbage]:
    """VMs that are whole and that BOSH has not, since the answer to its create_vm was lost."""
    for vm_cid in vms_of(config):
        folder = Layout.of(config).vm(vm_cid)
        if vm_cid in bosh_vms or unfinished.is_marked(folder):
            continue
        if not locks.is_held(config.text("run_dir"), vm_cid):
            why, remove = "BOSH does not know it", partial(_delete_vm, vm_cid, config, log)
            yield Garbage("VM", vm_cid, why, vm_cid, remove, certain=False, size=size_of(folder))


def _delete_vm(vm_cid: str, config: Config, log: Log) -> None:
    runtime = catalog.load(cid.runtime_of(vm_cid, cid.VM))(config, log)
    try:
        runtime.delete_vm(vm_cid)
    finally:
        runtime.close()


def _told(error: Exception) -> str:
    return error.message if isinstance(error, CPIError) else f"{type(error).__name__}: {error}"


def _remove(one: Garbage, config: Config, log: Log) -> bool:
    """Remove one thing, unless a call is at work on it; tell whether it was."""
    run_dir = config.text("run_dir")
    if locks.is_held(run_dir, one.lock):
        log.info(f"{one.kind} {one.name}: a call is at work on {one.lock}")
        return False
    with locks.hold(run_dir, one.lock, log=log):
        one.remove()
    log.info(f"removed {one.kind} {one.name}: {one.why}")
    return True
