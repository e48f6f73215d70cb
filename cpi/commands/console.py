"""`bosh-cpi console VM`: what a full VM printed on its console."""

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

Kernel, boot loader and init write there; so it tells why a VM's agent does not answer. Containers
have no console.
"""
_TAIL = 4096  # bytes by which the place is found again
_EVERY = 0.5  # seconds; nothing tells when a console file grows


def _show(options: argparse.Namespace, config: Config) -> int:
    with Fleet(config) as fleet:
        vm = fleet.vm(options.vm)
        return show(fleet.get(vm.runtime), vm.cid, options.lines, follow=options.follow)


def show(runtime: Runtime, vm_cid: str, lines: int | None, *, follow: bool) -> int:
    """Print the last lines (None: all) of what is kept, and what comes."""
    told = runtime.console(vm_cid)
    _write(told if lines is None else last_lines(told, lines))
    if follow:
        _follow(runtime, vm_cid, told)
    return 0


def last_lines(told: bytes, lines: int) -> bytes:
    """The end of what was read."""
    return b"".join(told.splitlines(keepends=True)[-lines:]) if lines > 0 else b""


def _follow(runtime: Runtime, vm_cid: str, told: bytes) -> None:
    """Print what comes, until the reader goes or the VM does. Raises VMNotFound."""
    while True:
        now = runtime.console(vm_cid)
        _write(added(told, now))
        told = now
        time.sleep(_EVERY)


def added(before: bytes, now: bytes) -> bytes:
    """What is new in a console's log, of which the oldest may have been dropped meanwhile."""
    if now.startswith(before):
        return now[len(before) :]
    end = before[-_TAIL:]
    at = now.rfind(end)
    return now if at < 0 else now[at + len(end) :]


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


COMMANDS = (
    Command(
        "console",
        _show,
        "show what a full VM printed on its console",
        VM,
        argument("--lines", type=int, metavar="N", help="the last N lines alone"),
        switch("--follow", "go on as the VM prints more"),
        examples=_EXAMPLES,
    ),
)
