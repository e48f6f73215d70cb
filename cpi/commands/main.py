"""The `bosh-cpi` command: the operator's command line.

BOSH calls the program `cpi`; this one does not speak the CPI protocol.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

from cpi.commands import (
    check_config,
    console,
    disk,
    doctor,
    exec,
    gc,
    logs,
    networks,
    restore,
    serve,
    setup,
    stemcell,
    stop,
    top,
    vms,
)
from cpi.commands.declare import Command, argument
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.setup.steps import CONFIG
from cpi.text import printable
from cpi.version import VERSION

CONFIG_VARIABLE = "BOSH_CPI_CONFIG"

SHELLS = ("bash", "zsh")

_EPILOG = f"""\
Each command has a --help of its own. The configuration is the cpi.json that BOSH's jobs use: the
file given by --config or in ${CONFIG_VARIABLE}, else {CONFIG}
if it can be read, else the defaults (docs/configuration.md).
"""


_COMPLETION = """\
examples:
  bosh-cpi completion bash > /etc/bash_completion.d/bosh-cpi
  bosh-cpi completion zsh > /usr/local/share/zsh/site-functions/_bosh-cpi
  eval "$(bosh-cpi completion bash)"                       for this shell alone
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command_line = argparse.ArgumentParser(
        prog="bosh-cpi",
        description="See and mend what the BOSH CPI keeps on this host.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_argument("--version", action="version", version=VERSION)
    command_line.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=os.environ.get(CONFIG_VARIABLE) or _installed(),
        help=f"configuration (JSON); also ${CONFIG_VARIABLE}; default: {CONFIG}",
    )
    commands = command_line.add_subparsers(metavar="COMMAND", required=True)
    modules = (
        *(doctor, vms, networks, disk, top, logs, console, exec, stemcell),
        *(check_config, setup, serve, restore, stop, gc),
    )
    for command in (*chain.from_iterable(module.COMMANDS for module in modules), _COMPLETE):
        command.add_to(commands)
    return command_line


def _installed() -> str | None:
    """Return this host's configuration, as `make install` leaves it, if it can be read."""
    return CONFIG if os.access(CONFIG, os.R_OK) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failure, 2 for a wrong command."""
    options = parser().parse_args(argv)
    try:
        status: int = options.run(options, options.load(options.config))
        return status
    except CPIError as error:
        print(printable(f"bosh-cpi: {error.message}"), file=sys.stderr)
    except PermissionError as error:
        print(f"bosh-cpi: {error.filename}: permission denied; this needs root", file=sys.stderr)
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("bosh-cpi: interrupted; nothing is half done", file=sys.stderr)
        return 130
    return 1


def _complete(options: argparse.Namespace, config: Config) -> int:
    import shtab

    command_line = parser()
    files = {"FILE": shtab.FILE, "STEMCELL": shtab.FILE, "FOLDER": shtab.DIRECTORY}
    _complete_files(command_line, files)
    print(shtab.complete(command_line, shell=options.shell))
    return 0


def _complete_files(command: argparse.ArgumentParser, files: dict[str, Any]) -> None:
    """Mark the arguments that are files for shtab, by their metavar."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subcommand in action.choices.values():
                _complete_files(subcommand, files)
        elif action.metavar in files:
            action.complete = files[action.metavar]  # type: ignore[attr-defined]


_COMPLETE = Command(
    "completion",
    _complete,
    "print a script by which the shell completes this command",
    argument("shell", choices=SHELLS, help="the shell"),
    examples=_COMPLETION,
)


if __name__ == "__main__":
    sys.exit(main())
