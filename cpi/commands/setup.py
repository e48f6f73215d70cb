"""`bosh-cpi setup`: prepare this host for VMs, or remove all that an installation leaves."""

import argparse
import os
import sys
from collections.abc import Sequence

from cpi.commands.declare import Command, argument, switch
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.log import Log
from cpi.setup.preparation import preparation
from cpi.setup.removal import Removal
from cpi.setup.steps import Step, System
from runtimes import catalog

_EXAMPLES = """\
examples:
  bosh-cpi setup --dry-run              what would be done, and nothing else
  bosh-cpi setup                        shows it, and asks
  bosh-cpi setup --yes                  shows it, and does it, as `make install` does
  bosh-cpi setup --undo --dry-run
  bosh-cpi setup --undo --yes           not while there are VMs; persistent disks stay

It raises the kernel's limits to what max_vms VMs need (/etc/sysctl.d), never lowering one, loads
modules (/etc/modules-load.d), and installs the units of systemd, where that runs: the service, its
sockets, and one that restores VMs when the host starts and shuts them down when it stops. Doing it
again changes nothing. Exit status 1 when something could not be done, or was not confirmed.
"""


def _setup(options: argparse.Namespace, config: Config) -> int:
    if (options.vms or options.disks) and not options.undo:
        raise CPIError("--vms and --disks say what --undo deletes besides; pass --undo")
    if os.geteuid() != 0:
        raise CPIError("the host is prepared by root: sudo bosh-cpi setup")
    return _undo(options, config) if options.undo else _prepare(options, config)


def _prepare(options: argparse.Namespace, config: Config) -> int:
    system = System()
    if not system.has_systemd:
        print(
            "systemd does not run this host, so there are no units: start `bosh-cpi serve` and, "
            "with the host, `bosh-cpi restore` and `bosh-cpi stop --all` by other means"
        )
    steps = preparation(system, config, options.config)
    if not steps:
        print("nothing to do: this host is prepared")
        return 0
    if not _confirmed(steps, options):
        return 0 if options.dry_run else 1
    failed = _perform(steps)
    # Settings that come with a module were not there before.
    later = preparation(system, config, options.config) if not failed else []
    return 1 if failed + _perform(later) else 0


def _undo(options: argparse.Namespace, config: Config) -> int:
    with catalog.Runtimes(config, Log("error")) as runtimes:
        removal = Removal(System(), runtimes)
        steps = removal.steps(vms=options.vms, disks=options.disks)
        for problem in removal.problems:
            print(f"warning: what this runtime has stays: {problem}", file=sys.stderr)
        kept = removal.kept()
        if kept and not options.disks:
            print(f"{len(kept)} persistent disks and snapshots stay; --disks deletes them")
        elif kept:
            print(f"ALL DATA of {len(kept)} persistent disks and snapshots is deleted")
        if not _confirmed(steps, options):
            return 0 if options.dry_run else 1
        failed = _perform(steps)
    return 1 if failed or removal.problems else 0


def _confirmed(steps: Sequence[Step], options: argparse.Namespace) -> bool:
    """Show the steps; tell whether to do them."""
    for step in steps:
        print(f"  {step.title}")
    if options.dry_run:
        print(f"{len(steps)} steps; nothing was done")
        return False
    if options.yes:
        return True
    if not sys.stdin.isatty():
        print("pass --yes to confirm", file=sys.stderr)
        return False
    return input("Do this? [y/N] ").strip().lower() in ("y", "yes")


def _perform(steps: Sequence[Step]) -> int:
    """Do the steps; one's failure does not block the others. Return how many failed."""
    failed = 0
    for step in steps:
        try:
            step.act()
        except (CPIError, OSError) as error:
            failed += 1
            reason = error.message if isinstance(error, CPIError) else str(error)
            print(f"bosh-cpi: cannot {step.title}: {reason}", file=sys.stderr)
    return failed


COMMANDS = (
    Command(
        "setup",
        _setup,
        "prepare this host for VMs, or undo that with --undo",
        switch("--dry-run", "show what would be done"),
        switch("--yes", "do not ask"),
        switch("--undo", "remove all that an installation leaves on this host"),
        switch("--vms", "with --undo: delete the VMs of this host as well"),
        argument(
            "--disks",
            action="store_true",
            help="with --undo: delete persistent disks and snapshots as well, with their data",
        ),
        examples=_EXAMPLES,
    ),
)
