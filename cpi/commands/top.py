"""`bosh-cpi top`: what VMs use now."""

import argparse
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
    """What a VM uses between two looks. cpu: percent of one CPU; read, written: bytes a second."""

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
        look = _Look(fleet)
        look.again()
        if options.json or options.once:
            time.sleep(options.interval)
            rates = look.again()
            if options.json:
                output.show_json([_document(rate, look.vms.get(rate.usage.cid)) for rate in rates])
            else:
                rows = [_row(rate, look.vms.get(rate.usage.cid)) for rate in rates]
                output.show_table(_HEADINGS, rows, right=_RIGHT)
            return fleet.status
        _live(look, options.interval)
    return 0


def _live(look: "_Look", interval: float) -> None:
    """Show a table that changes, until Ctrl-C."""
    from rich.live import Live

    table = output.table(_HEADINGS, [], _RIGHT)
    try:
        with output.Terminal().interruptible(), Live(table, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                rows = [_row(rate, look.vms.get(rate.usage.cid)) for rate in look.again()]
                live.update(output.table(_HEADINGS, rows, _RIGHT), refresh=True)
    except KeyboardInterrupt:
        return


class _Look:
    """Looks at all VMs, and again."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._before: dict[str, Usage] = {}
        self._at = 0.0
        self.vms: dict[str, VMView] = {}

    def again(self) -> list[Rate]:
        """What each VM has used since the last look, the busiest first."""
        self.vms = {vm.cid: vm for vm in self._fleet.each(lambda runtime: runtime.vms())}
        now = self._fleet.each(lambda runtime: runtime.usage())
        at, self._at = self._at, time.monotonic()
        found = rates(self._before, now, self._at - at)
        self._before = {usage.cid: usage for usage in now}
        return found


def rates(before: dict[str, Usage], now: Sequence[Usage], seconds: float) -> list[Rate]:
    """What was used between two looks; what was not there before, or began anew, used nothing."""

    def each(new: float | None, old: float | None) -> float | None:
        return None if new is None else max(0.0, new - (old or 0.0)) / seconds

    found = []
    for usage in now:
        old = before.get(usage.cid, usage)
        cpu = max(0.0, usage.cpu - old.cpu) / seconds * 100
        read, written = each(usage.read, old.read), each(usage.written, old.written)
        found.append(Rate(usage, cpu, read, written))
    return sorted(found, key=lambda rate: (-rate.cpu, rate.usage.cid))


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
