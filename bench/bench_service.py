"""Time calls of the thin client through the host's service, beside the same calls in process.

Real processes on a private host: a bare interpreter, the CPI in process, and the one-file client
over the unix socket, with the machine's own Python; and how many calls a second 16 clients get
answered at once.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich import box
from rich.console import Console
from rich.table import Table

from bench.bench_calls import BenchFailed
from bench.figures import Spread
from cpi.client.endpoint import Endpoint
from cpi.client.forward import forward
from cpi.log import Log
from testing.command_line import count, run_as_root
from testing.hosts.driver import Driver
from testing.hosts.private_host import CPI, PrivateHost
from testing.hosts.private_service import SYSTEM_PYTHON, Service, request

RUNS = 21
GOAL = 45.0  # ms, start to finish, where a bare interpreter takes 15
_ABSENT = "containerd-vm-0"
_CALLS = 400
_AT_ONCE = 16


def measure(driver: Driver, argv: Sequence[str], stdin: str, runs: int) -> tuple[Spread, Spread]:
    """Return wall and CPU time of a command, in ms."""
    done = [driver.run(argv, stdin) for _ in range(runs)]
    if stdin and json.loads(done[-1].stdout)["error"]:
        raise BenchFailed(done[-1].stdout)
    return Spread.of(run.wall for run in done), Spread.of(run.cpu for run in done)


def calls_a_second(service: Service) -> float:
    """Return how many has_vm calls a second the service answers to many clients at once."""
    endpoint = Endpoint(f"unix://{service.socket}", {})
    has_vm = json.loads(request("has_vm", _ABSENT))
    started = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        calls = [pool.submit(forward, endpoint, has_vm, {}, Log(quiet=True)) for _ in range(_CALLS)]
        if any(call.result()["error"] for call in calls):
            raise BenchFailed("a call among many failed")
    return _CALLS / (time.perf_counter() - started)


def bench(runs: int, console: Console) -> None:
    """Measure, and print the table."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None)
    for heading in ("process", "median ms", "least", "most", "CPU ms", "goal"):
        table.add_column(heading, justify="left" if heading == "process" else "right")
    with PrivateHost() as host, Service(host) as service, Driver(host, service.config) as driver:
        in_process, client = [str(CPI), "-c", str(service.config)], service.client().argv
        has_vm, info = request("has_vm", _ABSENT), request("info")
        rows = {
            "bare interpreter": ([SYSTEM_PYTHON, "-I", "-c", "pass"], ""),
            "info in process": (in_process, info),
            "info by the client": (client, info),
            "has_vm in process": (in_process, has_vm),
            "has_vm by the client": (client, has_vm),
        }
        for name, (argv, stdin) in rows.items():
            wall, cpu = measure(driver, argv, stdin, runs)
            goal = ""
            if name == "has_vm by the client":
                goal = f"{GOAL:.0f} {'met' if wall.median <= GOAL else 'missed'}"
            figures = (f"{value:.1f}" for value in (wall.median, wall.least, wall.most, cpu.median))
            table.add_row(name, *figures, goal)
        rate = calls_a_second(service)
    console.print(table)
    console.print(f"has_vm by {_AT_ONCE} clients at once: {rate:.0f} calls a second")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.bench_service", description=__doc__)
    parser.add_argument("--runs", type=count, default=RUNS, help="of each (default: %(default)s)")
    options = parser.parse_args(argv)
    return run_as_root("bench_service", lambda console: bench(options.runs, console), BenchFailed)


if __name__ == "__main__":
    sys.exit(main())
