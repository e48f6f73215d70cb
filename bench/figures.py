"""What the benchmark computes and prints: medians, ratios to other CPIs, import times.

Pure functions, and tables of what they return.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

# Medians in ms of other CPIs on two cores with a stemcell of 76 MB (compressed), as (least, most)
# for docker's, which vary.
PEER_STEMCELL_MB = 76.0
DOCKER = {
    "info": (6.0, 6.0),
    "has_vm": (10.0, 10.0),
    "create_stemcell": (7600.0, 15000.0),
    "create_vm": (700.0, 900.0),
    "attach_disk": (1800.0, 2000.0),
    "detach_disk": (1900.0, 1900.0),
    "delete_vm": (600.0, 600.0),
}
WARDEN = {
    "create_stemcell": 10000.0,
    "create_vm": 2850.0,
    "attach_disk": 940.0,
    "detach_disk": 890.0,
    "delete_vm": 930.0,
}
# The share of docker's time that each call may take at most.
GOALS = {
    "create_stemcell": 0.25,
    "create_vm": 0.5,
    "attach_disk": 0.1,
    "detach_disk": 0.1,
    "delete_vm": 0.5,
}

_IMPORT = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|\s*(\S+)")


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of some runs, in one unit."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Return the spread of one or more values."""
        ordered = sorted(values)
        return cls(ordered[0], statistics.median(ordered), ordered[-1])


@dataclass(frozen=True)
class Import:
    """One module of `python -X importtime`, in ms: its own time, and with its imports."""

    module: str
    own: float
    total: float


@dataclass
class Samples:
    """Times of each call in the order they were first made, in ms: wall, and CPU in processes."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    @classmethod
    def none(cls) -> "Samples":
        """Return samples with nothing measured yet."""
        return cls({}, {})

    def add(self, name: str, wall: float, cpu: float | None) -> None:
        """Add one run; a wait has no CPU time."""
        self.wall.setdefault(name, []).append(wall)
        if cpu is not None:
            self.cpu.setdefault(name, []).append(cpu)

    def document(self) -> dict[str, Any]:
        """Return spreads and all values, for JSON."""
        return {
            name: {
                "wall_ms": asdict(Spread.of(self.wall[name])),
                "cpu_ms": asdict(Spread.of(self.cpu[name])) if name in self.cpu else None,
                "wall_ms_all": [round(value, 1) for value in self.wall[name]],
            }
            for name in self.wall
        }


def ratio(name: str, median: float) -> float | None:
    """Return the median divided by docker's minimum, or None if docker has no figure."""
    return median / DOCKER[name][0] if name in DOCKER else None


def imports_of(text: str) -> list[Import]:
    """Return the modules in the output of `python -X importtime`, the slowest first."""
    imports = [
        Import(match[3], int(match[1]) / 1e3, int(match[2]) / 1e3)
        for match in _IMPORT.finditer(text)
    ]
    return sorted(imports, key=lambda module: module.own, reverse=True)


def range_text(low: float, high: float) -> str:
    """Return one figure, or two joined by a dash if they differ."""
    return f"{low:.0f}" if low == high else f"{low:.0f}-{high:.0f}"


def calls_table(samples: Samples, box: Any) -> Table:
    """Return a table of every call, with the figures of other CPIs."""
    table = Table(box=box, pad_edge=False)
    table.add_column("call", no_wrap=True)
    for heading in ("median ms", "least", "most", "CPU ms", "docker", "warden", "ratio", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in samples.wall.items():
        wall = Spread.of(values)
        cpu = f"{Spread.of(samples.cpu[name]).median:.0f}" if name in samples.cpu else ""
        share, goal = ratio(name, wall.median), GOALS.get(name)
        table.add_row(
            name,
            f"{wall.median:.0f}",
            f"{wall.least:.0f}",
            f"{wall.most:.0f}",
            cpu,
            range_text(*DOCKER[name]) if name in DOCKER else "",
            f"{WARDEN[name]:.0f}" if name in WARDEN else "",
            "" if share is None else f"{share:.2f}",
            "" if goal is None or share is None else _verdict(share, goal),
        )
    return table


def _verdict(share: float, goal: float) -> str:
    return f"{goal:g} {'met' if share <= goal else 'missed'}"


def imports_table(calls: Mapping[str, Sequence[Import]], count: int, box: Any) -> Table:
    """Return a table of each call's `count` slowest imports, and the sum of all."""
    table = Table(box=box, pad_edge=False)
    for heading in ("call", "module"):
        table.add_column(heading, no_wrap=True)
    for heading in ("own ms", "with its imports"):
        table.add_column(heading, justify="right")
    for name, modules in calls.items():
        for module in modules[:count]:
            table.add_row(name, module.module, f"{module.own:.1f}", f"{module.total:.1f}")
            name = ""
        total = sum(module.own for module in modules)
        table.add_row("", f"all {len(modules)} modules", f"{total:.1f}", "", end_section=True)
    return table


def stemcell_table(figures: Mapping[str, Sequence[Mapping[str, float]]], box: Any) -> Table:
    """Return a table of create_stemcell and `ctr images import` of the same content."""
    table = Table(box=box, pad_edge=False)
    table.add_column("import and unpack", no_wrap=True)
    for heading in ("median ms", "least", "most", "own CPU ms", "containerd's CPU ms"):
        table.add_column(heading, justify="right")
    for name, runs in figures.items():
        wall = Spread.of(run["wall"] for run in runs)
        own, daemon = (Spread.of(run[key] for run in runs).median for key in ("cpu", "daemon"))
        cells = (wall.median, wall.least, wall.most, own, daemon)
        table.add_row(name, *(f"{cell:.0f}" for cell in cells))
    return table
