"""Shut down all VMs of this host, before it stops; `restore_all` brings them back."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cpi import cid
from cpi.config.config import Config
from cpi.errors import message_of
from cpi.host import locks
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.upkeep.restore import vms_of
from runtimes import catalog

_AT_ONCE = 64  # VMs; a thread only waits for its VM


@dataclass
class ShutDown:
    """CIDs of VMs that do not run any more, and of those that failed, with the reason."""

    ended: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Return a summary of one line."""
        text = f"{len(self.ended)} VMs shut down"
        return f"{text}, {len(self.failed)} failed" if self.failed else text


def shut_down_all(config: Config, log: Log, seconds: float) -> ShutDown:
    """Shut down every VM, all at the same time; one's failure does not block the others.

    A VM that has not ended by itself after `seconds` is killed. A call that is at work on a VM is
    waited for: its lock is held. Errors are logged and returned, not raised.
    """
    done = ShutDown()

    def shut_down(vm_cid: str) -> None:
        try:
            _shut_down(vm_cid, config, log, seconds)
            done.ended.append(vm_cid)
        except Exception as error:  # whatever it is, the other VMs must still be shut down
            message = done.failed[vm_cid] = message_of(error)
            log.error(f"{vm_cid} cannot be shut down: {message}")

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(shut_down, vms_of(config)))
    done.ended.sort()
    log.info(done.summary)
    return done


def _shut_down(vm_cid: str, config: Config, log: Log, seconds: float) -> None:
    with locks.hold(config.text("run_dir"), vm_cid, log=log):
        if not Layout.of(config).vm(vm_cid).is_dir():  # deleted meanwhile
            return
        # One for each: not all runtimes' connections can be shared by threads.
        with catalog.Runtimes(config, log) as runtimes:
            runtimes.of_cid(vm_cid, cid.VM).shut_down(vm_cid, seconds)
