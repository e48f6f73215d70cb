"""`bosh-cpi gc`: list or delete orphaned resources on this host."""

import argparse
import sys
from collections.abc import Sequence
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
    collected = collect_garbage(config, log, yes=options.yes, only_certain=False, bosh_vms=known)
    shown = collected.removed if options.yes else collected.garbage
    if options.json:
        removed = collected.removed
        output.show_json([_document(item, item in removed) for item in collected.garbage])
    else:
        if shown:
            rows = [[it.type, it.name, output.size(-(-it.size >> 20)), it.why] for it in shown]
            output.show_table(["TYPE", "NAME", "SIZE", "REASON"], rows, right="SIZE")
        print(_summary(len(shown), removed=options.yes, failed=tuple(collected.failed)))
    return 1 if collected.failed else 0


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(errors="replace")
    except OSError as error:
        raise CPIError(f"cannot read {file}: {error.strerror}") from None


def _document(item: Garbage, removed: bool) -> dict[str, Any]:
    return {
        "type": item.type,
        "name": item.name,
        "reason": item.why,
        "size_bytes": item.size,
        "certain": item.certain,
        "removed": removed,
    }


def _summary(count: int, *, removed: bool, failed: Sequence[str]) -> str:
    if removed:
        text = f"{count} removed"
    elif count:
        text = f"{count} orphaned; --yes removes them"
    else:
        text = "nothing else is orphaned" if failed else "nothing is orphaned"
    return f"{text}; failed, see above: {', '.join(failed)}" if failed else text


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
