"""Restore this host's VMs, of every runtime, after a restart of the host.

Each VM has a folder `<state_dir>/vms/<vm cid>` until it is deleted. The CID names the runtime,
which decides whether the VM needs to be restored.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cpi import cid
from cpi.cni.attachments import STATE, attachments_in
from cpi.cni.firewall import Firewall
from cpi.config.config import Config
from cpi.errors import message_of
from cpi.host import locks
from cpi.host.folders import entries
from cpi.host.layout import Layout
from cpi.log import Log
from runtimes import catalog

_AT_ONCE = 4  # VMs; starting one mostly waits for programs


@dataclass
class Restored:
    """CIDs of VMs that were restored, needed nothing, or failed (with the reason)."""

    back: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Return a summary of one line."""
        text = f"{len(self.back)} VMs brought back, {len(self.untouched)} needed nothing"
        return f"{text}, {len(self.failed)} failed" if self.failed else text


def restore_all(config: Config, log: Log) -> Restored:
    """Restore every VM that needs it; one's failure does not block the others.

    Idempotent, and calls of the CPI may run meanwhile: each VM's lock is held. Errors of VMs are
    logged and returned, not raised.
    """
    done = Restored()
    without_rules = _without_rules(config, log)

    def restore(vm_cid: str) -> None:
        try:
            restored = _restore(vm_cid, config, log, rules=vm_cid in without_rules)
            (done.back if restored else done.untouched).append(vm_cid)
        except Exception as error:  # whatever it is, the other VMs must still be restored
            message = done.failed[vm_cid] = message_of(error)
            log.error(f"{vm_cid} cannot be brought back: {message}")

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(restore, vms_of(config)))
    done.back.sort()
    done.untouched.sort()
    log.info(f"host restart: {done.summary}")
    return done


def vms_of(config: Config) -> Iterator[str]:
    """Yield the CIDs of this host's VMs, complete or not, of all runtimes of this CPI."""
    for path in entries(Layout.of(config).vms):
        if catalog.is_ours(path.name, cid.VM):
            yield path.name


def _without_rules(config: Config, log: Log) -> set[str]:
    """Return the VMs that lack rules of the firewall; if there are any, admit their bridges."""
    firewall = Firewall.of(config, log)
    try:
        firewall.renew()
        missing = firewall.missing()
    except Exception as error:  # VMs must still be restored
        log.error(f"the firewall's rules cannot be renewed: {message_of(error)}")
        return set()
    if missing:
        firewall.admit_bridges()
    return missing


def _restore(vm_cid: str, config: Config, log: Log, *, rules: bool) -> bool:
    """Restore a VM if it needs it; tell whether it did. rules: whether it lacks the firewall's."""
    folder = Layout.of(config).vm(vm_cid)
    with locks.hold(config.text("run_dir"), vm_cid, log=log):
        if not folder.is_dir():  # deleted meanwhile
            return False
        # One for each: not all runtimes' connections can be shared by threads.
        with catalog.Runtimes(config, log) as runtimes:
            restored = runtimes.of_cid(vm_cid, cid.VM).restore(vm_cid)
        if rules and not restored:
            firewall = Firewall.of(config, log)
            firewall.admit(vm_cid, attachments_in(folder / STATE))
            restored = True
    if restored:
        log.info(f"{vm_cid} is back")
    return restored
