"""`bosh-cpi restore`: bring VMs back that a restart of the host took away."""

import argparse
from dataclasses import asdict
from typing import Any

from cpi.commands import output
from cpi.commands.declare import switch
from cpi.config.config import Config
from cpi.log import Log
from cpi.upkeep.restore import restore_all

_EXAMPLES = """\
examples:
  bosh-cpi restore

The host service does this when it starts. VMs that run, or that have ended by themselves, are left
alone, so it does no harm at any time. Exit status 1 when a VM could not be brought back.
"""


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "restore",
        help="bring VMs back that a restart of the host took away",
        description="Bring VMs back that a restart of the host took away, with their networks and "
        "disks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", **switch("print JSON"))
    parser.set_defaults(run=_restore)


def _restore(options: argparse.Namespace, config: Config) -> int:
    done = restore_all(config, Log(config.text("log_level")))
    if options.json:
        output.show_json(asdict(done))
    else:
        print(done.summary)
    return 1 if done.failed else 0
