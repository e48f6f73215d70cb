"""`bosh-cpi stop --all`: shut down all VMs of this host, until `bosh-cpi restore`."""

import argparse

from cpi.commands import output
from cpi.commands.declare import JSON, Command, argument
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.log import Log
from cpi.upkeep.shutdown import shut_down_all

_SECONDS = 60
_LONGEST = 3600

_EXAMPLES = """\
examples:
  bosh-cpi stop --all                   before the host is restarted; systemd's unit does it
  bosh-cpi stop --all --timeout 300
  bosh-cpi restore                      starts them again; so does the service when it starts

Containers' inits are asked to end (SIGRTMIN+3 for systemd, SIGTERM to all processes for runit),
full VMs get the power button. What still runs after the timeout is killed. BOSH's health monitor
sees VMs that do not answer, and may recreate them. Exit status 1 when a VM could not be shut down.
"""


def _stop(options: argparse.Namespace, config: Config) -> int:
    if not options.all:
        raise CPIError("bosh-cpi stop shuts down all VMs of this host; pass --all to confirm")
    done = shut_down_all(config, Log(config.text("log_level")), options.timeout)
    if options.json:
        output.show_json({"stopped": done.ended, "failed": done.failed})
    else:
        print(done.summary)
    return 1 if done.failed else 0


def _seconds(text: str) -> int:
    if not text.isdigit() or int(text) > _LONGEST:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at most {_LONGEST}")
    return int(text)


COMMANDS = (
    Command(
        "stop",
        _stop,
        "shut down all VMs of this host, until they are restored",
        argument("--all", action="store_true", help="all VMs of this host"),
        argument(
            "--timeout",
            type=_seconds,
            default=_SECONDS,
            metavar="SECONDS",
            help=f"how long a VM may take to shut down by itself (default: {_SECONDS})",
        ),
        JSON,
        examples=_EXAMPLES,
    ),
)
