"""Shutting a VM down by signals, which its init understands.

systemd takes SIGRTMIN+3 for a halt; in a container SIGTERM only makes it load itself again. runit's
runsvdir does not wait for anything: by SIGTERM it ends, and the kernel kills the rest. So it is
stopped, lest it start again what ends, and all other processes are asked directly.
"""

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from runtimes.containerd import mount_namespaces

_HALT = signal.SIGRTMIN + 3  # systemd(1)


def end(vm_cid: str, init: int, seconds: float, *, systemd: bool) -> bool:
    """Ask a VM's processes to end; tell whether they did within `seconds`.

    Without systemd, init itself still exists then.
    """
    if systemd:
        return _ended([init], _HALT, seconds)
    with suppress(ProcessLookupError):
        os.kill(init, signal.SIGSTOP)
    others = [pid for pid in mount_namespaces.pids_of(vm_cid) if pid != init]
    return _ended(others, signal.SIGTERM, seconds)


def _ended(pids: Iterable[int], number: int, seconds: float) -> bool:
    """Send a signal to processes; tell whether all have ended within `seconds`."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    with ExitStack() as stack:
        waiting = set()
        for pid in pids:
            with suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                stack.callback(os.close, process)
                signal.pidfd_send_signal(process, number)
                poll.register(process, select.POLLIN)
                waiting.add(process)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for process, _ in poll.poll(left * 1000):
                poll.unregister(process)
                waiting.discard(process)
        return not waiting
