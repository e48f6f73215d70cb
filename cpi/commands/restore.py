"""`bosh-cpi restore`: restore VMs after a restart of the host."""

import argparse

from cpi.commands import output
from cpi.commands.declare import JSON, Command
from cpi.config.config import Config
from cpi.log import Log
from cpi.upkeep.restore import restore_all

_EXAMPLES = """\
examples:
  bosh-cpi restore

The host service does this when it starts. VMs that run, or that have ended by themselves, are left
alone, so it does no harm at any time. Exit status 1 when a VM could not be brought back.
"""


def _restore(options: argparse.Namespace, config: Config) -> int:
    done = restore_all(config, Log(config.text("log_level")))
    if options.json:
        output.show_json(
            {"restored": done.back, "unchanged": done.untouched, "failed": done.failed}
        )
    else:
        print(done.summary)
    return 1 if done.failed else 0


COMMANDS = (
    Command(
        "restore",
        _restore,
        "bring VMs back that a restart of the host took away, with their networks and disks",
        JSON,
        examples=_EXAMPLES,
    ),
)
