"""`bosh-cpi exec VM -- COMMAND…`: run a command in a running VM."""

import argparse
from dataclasses import replace

from cpi.commands import output
from cpi.commands.declare import Command, argument, switch
from cpi.commands.fleet import Fleet
from cpi.commands.vm_names import VM
from cpi.config.config import Config
from cpi.terminal import ours

_EXAMPLES = """\
examples:
  bosh-cpi exec router/0 -- bash                       a shell, when somebody sits at the terminal
  bosh-cpi exec router/0 -- monit summary
  bosh-cpi exec 1f0c… -- tar -C /var/vcap/sys/log -cz . > logs.tgz

Runs as root, with the VM's own limits. The exit status is the command's. Full VMs let nobody in
from outside: `bosh ssh` does, and `bosh-cpi console VM` shows what one printed.
"""


def _exec(options: argparse.Namespace, config: Config) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise SystemExit("bosh-cpi exec: which command? bosh-cpi exec VM -- COMMAND")
    streams = ours()
    if options.no_terminal:
        streams = replace(streams, terminal=False)
    with Fleet(config) as fleet, output.Terminal().interruptible():
        vm = fleet.vm(options.vm)
        return fleet.get(vm.runtime).run_inside(vm.cid, command, streams)


COMMANDS = (
    Command(
        "exec",
        _exec,
        "run a command in a running VM",
        VM,
        argument(
            "command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="program and arguments"
        ),
        switch("--no-terminal", "plain pipes, also when this is a terminal"),
        examples=_EXAMPLES,
    ),
)
