"""`bosh-cpi gc`: orphaned resources on this host."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cpi.commands import output
from cpi.commands.declare import JSON, Command, argument, switch
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.log import Log
from cpi.model import Garbage
from cpi.upkeep.garbage_collection import collect_garbage, read_cids

_EXAMPLES = """\
examples:
  bosh-cpi gc
  bosh-cpi gc --yes
  bosh vms --json > vms.json && bosh-cpi gc --bosh-vms vms.json

Killed calls leave garbage; what a call is at work on, and disks with their facts, are none. With
--bosh-vms, VMs that no CID in FILE names are garbage too. FILE must name the VMs of all directors
that use this host, and the directors' own (the CID that `bosh create-env` keeps in its state file),
which `bosh vms` does not list: look at what is shown before you add --yes. Exit status 1 when
something could not be looked at or removed.
"""


def _gc(options: argparse.Namespace, config: Config) -> int:
    known = None if options.bosh_vms is None else read_cids(_text(options.bosh_vms))
    log = Log("warn" if config.text("log_level") == "info" else config.text("log_level"))
    done = collect_garbage(config, log, yes=options.yes, only_certain=False, bosh_vms=known)
    shown = done.removed if options.yes else done.found
    if options.json:
        output.show_json(
            [_document(garbage, removed=garbage in done.removed) for garbage in done.found]
        )
    else:
        if shown:
            rows = [[it.type, it.name, output.size(-(-it.size >> 20)), it.why] for it in shown]
            output.show_table(["TYPE", "NAME", "SIZE", "REASON"], rows, right="SIZE")
        print(_summary(len(shown), removed=options.yes))
    return 1 if done.failed else 0


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(errors="replace")
    except OSError as error:
        raise CPIError(f"cannot read {file}: {error.strerror}") from None


def _document(garbage: Garbage, *, removed: bool) -> dict[str, Any]:
    return {
        "type": garbage.type,
        "name": garbage.name,
        "reason": garbage.why,
        "size_bytes": garbage.size,
        "certain": garbage.certain,
        "removed": removed,
    }


def _summary(count: int, *, removed: bool) -> str:
    if removed:
        return f"{count} removed"
    return f"{count} that nobody owns; --yes removes them" if count else "nothing that nobody owns"


COMMANDS = (
    Command(
        "gc",
        _gc,
        "list orphaned resources on this host, and delete them with --yes",
        switch("--yes", "remove what is shown"),
        JSON,
        argument(
            "--bosh-vms",
            type=Path,
            metavar="FILE",
            help="text with the CIDs of all VMs that BOSH knows, in any form",
        ),
        examples=_EXAMPLES,
    ),
)
