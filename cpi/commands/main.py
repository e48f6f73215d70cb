"""The `bosh-cpi` command, for people: what the CPI keeps on this host.

`cpi` is the program that BOSH calls; this one never speaks BOSH's protocol.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from cpi.commands import (
    completion,
    console,
    disk,
    doctor,
    exec,
    gc,
    logs,
    networks,
    restore,
    serve,
    stemcell,
    top as top_command,
    vms,
)
from cpi.config.load import load_config
from cpi.errors import CPIError
from cpi.version import VERSION

CONFIG_VARIABLE = "BOSH_CPI_CONFIG"

_EPILOG = f"""\
Each command has a --help of its own. The configuration is the cpi.json that BOSH's jobs use; name
it with --config or in ${CONFIG_VARIABLE}, or the defaults hold (docs/configuration.md).
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="bosh-cpi",
        description="See and mend what the BOSH CPI keeps on this host.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=VERSION)
    top.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=os.environ.get(CONFIG_VARIABLE),
        help=f"configuration (JSON); also ${CONFIG_VARIABLE}",
    )
    nouns = top.add_subparsers(metavar="COMMAND", required=True)
    for command in (
        *(doctor, vms, networks, disk, top_command, logs, console, exec, stemcell),
        *(serve, restore, gc, completion),
    ):
        command.add_to(nouns)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failure, 2 for a wrong command."""
    options = parser().parse_args(argv)
    try:
        load = getattr(options, "load", load_config)
        status: int = options.run(options, load(options.config))
        return status
    except CPIError as error:
        print(f"bosh-cpi: {error.message}", file=sys.stderr)
    except PermissionError as error:
        print(f"bosh-cpi: {error.filename}: permission denied; this needs root", file=sys.stderr)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("bosh-cpi: interrupted; nothing is half done", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
