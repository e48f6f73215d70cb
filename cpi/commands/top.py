"""`bosh-cpi top`: show the CPU, memory and disk that VMs use."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpi.commands import output
from cpi.commands.declare import Command, argument, switch
from cpi.commands.fleet import Fleet
from cpi.config.config import Config
from cpi.views import Usage, VMView

_EXAMPLES = """\
examples:
  bosh-cpi top               the busiest VMs first, until Ctrl-C
  bosh-cpi top --once        one table
  bosh-cpi top --json        the same for scripts, with units in the names

CPU 100% is one CPU. MEMORY is without file cache that nobody used lately. DISK is what root file
system and limited ephemeral disk take on the host, READ and WRITTEN are per second.
"""
_RIGHT = "CPU MEMORY LIMIT PIDS DISK READ WRITTEN"
_HEADINGS = ("INSTANCE", "DEPLOYMENT", "VM", *_RIGHT.split())


@dataclass(frozen=True)
class Rate:
    """A VM's usage over an interval. cpu: percent of one CPU; read, written: bytes per second."""

    usage: Usage
    cpu: float
    read: float | None
    written: float | None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("must be 0.1 to 3600")
    return value


def _top(options: argparse.Namespace, config: Config) -> int:
    with Fleet(config) as fleet:
        sampler = _Sampler(fleet)
        sampler.sample()
        if not options.json and not options.once and sys.stdout.isatty():
            _live(sampler, options.interval)
            return 0
        time.sleep(options.interval)
        samples = sampler.sample()
        if options.json:
            output.show_json([_document(rate, vm) for rate, vm in samples])
        else:
            output.show_table(_HEADINGS, [_row(rate, vm) for rate, vm in samples], right=_RIGHT)
        return fleet.status


def _live(sampler: "_Sampler", interval: float) -> None:
    """Show a table that is updated until Ctrl-C."""
    from rich.live import Live

    table = output.table(_HEADINGS, [], _RIGHT)
    try:
        with output.Terminal().interruptible(), Live(table, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                rows = [_row(rate, vm) for rate, vm in sampler.sample()]
                live.update(output.table(_HEADINGS, rows, _RIGHT), refresh=True)
    except KeyboardInterrupt:
        return


class _Sampler:
    """Samples the usage of all VMs."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._before: dict[str, Usage] = {}
        self._time = 0.0

    def sample(self) -> list[tuple[Rate, VMView | None]]:
        """Return what each VM has used since the last sample, the busiest first."""
        vms = {vm.cid: vm for vm in self._fleet.each(lambda runtime: runtime.vms())}
        now = self._fleet.each(lambda runtime: runtime.usage())
        last, self._time = self._time, time.monotonic()
        used = rates(self._before, now, self._time - last)
        self._before = {usage.cid: usage for usage in now}
        return [(rate, vms.get(rate.usage.cid)) for rate in used]


def rates(before: dict[str, Usage], now: Sequence[Usage], seconds: float) -> list[Rate]:
    """Return what was used between two samples; VMs that are new or were restarted used nothing."""

    def per_second(new: float | None, old: float | None) -> float | None:
        return None if new is None else max(0.0, new - (old or 0.0)) / seconds

    used = []
    for usage in now:
        old = before.get(usage.cid, usage)
        cpu = max(0.0, usage.cpu - old.cpu) / seconds * 100
        read, written = per_second(usage.read, old.read), per_second(usage.written, old.written)
        used.append(Rate(usage, cpu, read, written))
    return sorted(used, key=lambda rate: (-rate.cpu, rate.usage.cid))


def _row(rate: Rate, vm: VMView | None) -> list[str]:
    usage = rate.usage
    return [
        vm.name.instance if vm else "",
        vm.name.deployment if vm else "",
        output.short(usage.cid),
        f"{rate.cpu:.1f}%",
        output.bytes_size(usage.memory),
        output.bytes_size(usage.memory_limit),
        "" if usage.pids is None else str(usage.pids),
        output.bytes_size(usage.disk),
        output.bytes_size(rate.read),
        output.bytes_size(rate.written),
    ]


def _document(rate: Rate, vm: VMView | None) -> dict[str, Any]:
    usage = rate.usage
    return {
        "cid": usage.cid,
        "cpu_percent": round(rate.cpu, 1),
        "cpu_seconds": round(usage.cpu, 3),
        "memory_bytes": usage.memory,
        "memory_limit_bytes": usage.memory_limit,
        "pids": usage.pids,
        "disk_bytes": usage.disk,
        "read_bytes": usage.read,
        "written_bytes": usage.written,
        "read_bytes_per_second": rate.read,
        "written_bytes_per_second": rate.written,
        "deployment": vm.name.deployment if vm else "",
        "instance": vm.name.instance if vm else "",
    }


COMMANDS = (
    Command(
        "top",
        _top,
        "show what VMs use",
        switch("--once", "print one table, and end"),
        switch("--json", "print JSON once, and end"),
        argument(
            "--interval",
            type=_seconds,
            default=2.0,
            metavar="SECONDS",
            help="how long between two looks (2)",
        ),
        examples=_EXAMPLES,
    ),
)
