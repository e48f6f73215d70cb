"""What the command lines of the demo and the benchmarks share."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from rich.console import Console

from testing.hosts.driver import DriverError
from testing.stemcells.make_stemcell import interrupt
from testing.stemcells.stemcell_source import StemcellUnusable

_PLAIN_WIDTH = 120  # columns, where there is no terminal that has a width


def run_as_root(
    name: str,
    work: Callable[[Console], None],
    failure: type[Exception],
    *,
    interrupted: str = "interrupted",
    gap: str = "",
) -> int:
    """Do the work of a tool that makes containers and mounts; return its exit status.

    failure: what the tool itself raises. interrupted: printed after Ctrl-C or SIGTERM. gap: printed
    before an error.
    """
    if os.geteuid() != 0:
        print(f"{name}: needs root, for containers and mounts: run it with sudo", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, interrupt)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    try:
        work(console)
    except (failure, DriverError, StemcellUnusable, RuntimeError) as error:
        print(f"{gap}{name}: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{gap}{name}: {error}\n{error.stderr}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{gap}{name}: {interrupted}", file=sys.stderr)
        return 130
    return 0


def count(text: str) -> int:
    """Read a number, at least 1; raises ValueError."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
