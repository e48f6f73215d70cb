"""What the benchmark of stemcells computes and prints. Pure functions, and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.figures import Spread

MEGABYTE = 1_000_000
MEMORY_AIM = 200  # MB of the largest process, at every size
LINEAR = 1.1  # as much more than the size may the time grow: other sizes, other files


@dataclass(frozen=True)
class Taken:
    """What one run took: seconds, of the processors in the program and in daemons, and MB."""

    wall: float
    cpu: float
    daemon: float
    memory: float


@dataclass(frozen=True)
class Rival:
    """Another program for the same task, and the share of its time we aim for, if any."""

    name: str
    aim: float | None


@dataclass(frozen=True)
class Race:
    """A task done by our program and by others, and what each run took, by name."""

    title: str
    ours: str
    rivals: tuple[Rival, ...]
    taken: dict[str, list[Taken]]

    @property
    def names(self) -> list[str]:
        """The names of all programs, ours first."""
        return [self.ours, *(rival.name for rival in self.rivals)]


@dataclass(frozen=True)
class Grown:
    """What our program took for an image of one size, in its best run; sizes in bytes."""

    what: str
    size: int
    unpacked: int
    files: int
    seconds: float
    memory: float


def best(runs: Sequence[Taken]) -> float:
    """Return the seconds of the best run, which other work on the machine slowed least."""
    return min(run.wall for run in runs)


def share(race: Race, rival: str) -> float:
    """Return our best time as a share of a rival's."""
    return best(race.taken[race.ours]) / best(race.taken[rival])


def verdict(value: float, aim: float) -> str:
    """Return the aim and whether a value meets it."""
    return f"{aim:g} {'met' if value <= aim else 'missed'}"


def race_table(race: Race, box: Any) -> Table:
    """Return a table of our program and the others."""
    table = Table(box=box, pad_edge=False)
    table.add_column(race.title, no_wrap=True)
    headings = ("best s", "median", "most", "CPU s", "daemon's", "MB", "ours / this", "aim")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    aims = {rival.name: rival.aim for rival in race.rivals}
    for name in race.names:
        runs = race.taken[name]
        wall = Spread.of(run.wall for run in runs)
        cells = [f"{value:.2f}" for value in (wall.least, wall.median, wall.most)]
        cells += [f"{Spread.of(run.cpu for run in runs).median:.2f}"]
        cells += [f"{Spread.of(run.daemon for run in runs).median:.2f}"]
        cells += [f"{max(run.memory for run in runs):.0f}"]
        if name in aims:
            value, aim = share(race, name), aims[name]
            cells += [f"{value:.2f}", "" if aim is None else verdict(value, aim)]
        table.add_row(name, *cells)
    return table


def growth_table(rows: Sequence[Grown], box: Any) -> Table:
    """Return a table of how time and memory grow with the size of the image."""
    table = Table(box=box, pad_edge=False)
    table.add_column("ours", no_wrap=True)
    headings = ("image MB", "unpacked MB", "files", "best s", "s per 100 MB", "memory MB")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for what, what_rows in by_what(rows).items():
        name = what
        for row in what_rows:
            per_100 = row.seconds * 100 * MEGABYTE / row.size
            table.add_row(
                name,
                f"{row.size / MEGABYTE:.0f}",
                f"{row.unpacked / MEGABYTE:.0f}",
                f"{row.files}",
                f"{row.seconds:.2f}",
                f"{per_100:.2f}",
                f"{row.memory:.0f}",
                end_section=row is what_rows[-1],
            )
            name = ""
    return table


def growth_lines(rows: Sequence[Grown]) -> list[str]:
    """Return a line for each of our programs: whether time is linear, and memory small."""
    lines = []
    for what, what_rows in by_what(rows).items():
        memory = max(row.memory for row in what_rows)
        growth = f"at most {memory:.0f} MB of memory, aim {verdict(memory, MEMORY_AIM)}"
        if len(what_rows) > 1:
            first, last = what_rows[0], what_rows[-1]
            size, time = last.size / first.size, last.seconds / first.seconds
            linear = verdict(time / size, LINEAR)
            growth = f"{size:.1f} times the size, {time:.1f} times the time, aim {linear}; {growth}"
        lines.append(f"{what}: {growth}")
    return lines


def by_what(rows: Sequence[Grown]) -> Mapping[str, list[Grown]]:
    """Return the rows of each of our programs, the smallest image first."""
    rows_by_what: dict[str, list[Grown]] = {}
    for row in sorted(rows, key=lambda row: row.size):
        rows_by_what.setdefault(row.what, []).append(row)
    return rows_by_what
