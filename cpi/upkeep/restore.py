"""What a restart of the host takes away, brought back: all VMs of this host, of every runtime.

Each runtime has a folder `<state_dir>/vms/<vm cid>` for each of its VMs here, as long as it lives.
Those are what there is to bring back; the CID names the runtime, which knows whether it is needed.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cpi import cid
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.host import locks
from cpi.host.folders import entries
from cpi.host.layout import Layout
from cpi.log import Log
from runtimes import catalog

_AT_ONCE = 4  # VMs; a start is mostly waiting for programs


@dataclass
class Restored:
    """CIDs of VMs that were brought back, were as they should be, and failed (with the reason)."""

    back: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line for people."""
        text = f"{len(self.back)} VMs brought back, {len(self.untouched)} needed nothing"
        return f"{text}, {len(self.failed)} failed" if self.failed else text


def restore_all(config: Config, log: Log) -> Restored:
    """Bring back every VM that a restart of the host took away; one's failure keeps no other.

    Twice is once, and calls of the CPI may come meanwhile: each VM's lock is held. For the start of
    a service, and for people. Errors are in the log and in what is returned; raises none of a VM.
    """
    done = Restored()

    def one(vm_cid: str) -> None:
        try:
            (done.back if _restore(vm_cid, config, log) else done.untouched).append(vm_cid)
        except Exception as error:  # whatever it is, the others are still to be brought back
            told = (
                error.message if isinstance(error, CPIError) else f"{type(error).__name__}: {error}"
            )
            log.error(f"{vm_cid} cannot be brought back: {told}")
            done.failed[vm_cid] = told

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(one, vms_of(config)))
    done.back.sort()
    done.untouched.sort()
    log.info(f"host restart: {done.summary}")
    return done


def vms_of(config: Config) -> Iterator[str]:
    """Yield the CIDs of this host's VMs, whole or not, of the runtimes that this CPI has."""
    for path in entries(Layout.of(config).vms):
        if catalog.is_ours(path.name, cid.VM):
            yield path.name


def _restore(vm_cid: str, config: Config, log: Log) -> bool:
    """Bring one VM back if that is needed; tell whether it was."""
    folder = Layout.of(config).vm(vm_cid)
    with locks.hold(config.text("run_dir"), vm_cid, log=log):
        if not folder.is_dir():  # deleted meanwhile
            return False
        # One for each: not every runtime's connection may be used by several threads.
        with catalog.Runtimes(config, log) as runtimes:
            restored = runtimes.of_cid(vm_cid, cid.VM).restore(vm_cid)
    if restored:
        log.info(f"{vm_cid} is back")
    return restored
