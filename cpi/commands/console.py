"""`bosh-cpi console VM`: show a VM's console."""

import argparse
import sys
import time

from cpi.commands.declare import Command, argument, switch
from cpi.commands.fleet import Fleet
from cpi.commands.vm_names import VM
from cpi.config.config import Config
from cpi.runtime import Runtime

_EXAMPLES = """\
examples:
  bosh-cpi console …-vm-1f0c…              all that is kept
  bosh-cpi console …-vm-1f0c… --lines 50   the end of it
  bosh-cpi console …-vm-1f0c… --follow     and what comes, until Ctrl-C

Init writes there, in a full VM boot loader and kernel too; so it tells why a VM's agent does not
answer.
"""
_TAIL = 4096  # bytes at its end by which an earlier log is found in a later one
_EVERY = 0.5  # seconds; a growing console file causes no event


def _show(options: argparse.Namespace, config: Config) -> int:
    with Fleet(config) as fleet:
        vm = fleet.vm(options.vm)
        return show(fleet.get(vm.runtime), vm.cid, options.lines, follow=options.follow)


def show(runtime: Runtime, vm_cid: str, lines: int | None, *, follow: bool) -> int:
    """Print the last lines (None: all) of a console's log, then what is added to it.

    Follows until the reader or the VM is gone. Raises VMNotFound.
    """
    log = runtime.console(vm_cid)
    write(log if lines is None else last_lines(log, lines))
    while follow:
        time.sleep(_EVERY)
        before, log = log, runtime.console(vm_cid)
        write(added(before, log))
    return 0


def last_lines(log: bytes, lines: int) -> bytes:
    """Return the last lines of a log."""
    return b"".join(log.splitlines(keepends=True)[-lines:]) if lines > 0 else b""


def added(before: bytes, now: bytes) -> bytes:
    """Return what was added to a console's log, whose beginning may have been dropped."""
    if now.startswith(before):
        return now[len(before) :]
    _, tail, new = now.rpartition(before[-_TAIL:])
    return new if tail else now


def write(data: bytes) -> None:
    """Write bytes to stdout."""
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


COMMANDS = (
    Command(
        "console",
        _show,
        "show what a VM printed on its console",
        VM,
        argument("--lines", type=int, metavar="N", help="the last N lines alone"),
        switch("--follow", "go on as the VM prints more"),
        examples=_EXAMPLES,
    ),
)
