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
    """Who does the same: the share of its time that ours may take, None if that is no aim."""

    name: str
    aim: float | None


@dataclass(frozen=True)
class Race:
    """One thing that is done by ours and by others, and what each run took, by name."""

    title: str
    ours: str
    rivals: tuple[Rival, ...]
    taken: dict[str, list[Taken]]

    @property
    def names(self) -> list[str]:
        """All who take part, ours first."""
        return [self.ours, *(rival.name for rival in self.rivals)]


@dataclass(frozen=True)
class Grown:
    """What one of ours took for an image of one size, in its best run; sizes in bytes."""

    what: str
    size: int
    unpacked: int
    files: int
    seconds: float
    memory: float


def best(runs: Sequence[Taken]) -> float:
    """The seconds of the best run: what the machine did besides is in the others."""
    return min(run.wall for run in runs)


def share(race: Race, rival: str) -> float:
    """Our best time as a share of a rival's."""
    return best(race.taken[race.ours]) / best(race.taken[rival])


def verdict(value: float, aim: float) -> str:
    """Whether a value is as small as it is to be."""
    return f"{aim:g} {'met' if value <= aim else 'missed'}"


def race_table(race: Race, box: Any) -> Table:
    """Ours beside the others."""
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
    """How time and memory grow with the size of the image."""
    table = Table(box=box, pad_edge=False)
    table.add_column("ours", no_wrap=True)
    headings = ("image MB", "unpacked MB", "files", "best s", "s per 100 MB", "memory MB")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for what, found in by_what(rows).items():
        name = what
        for row in found:
            per_100 = row.seconds * 100 * MEGABYTE / row.size
            table.add_row(
                name,
                f"{row.size / MEGABYTE:.0f}",
                f"{row.unpacked / MEGABYTE:.0f}",
                f"{row.files}",
                f"{row.seconds:.2f}",
                f"{per_100:.2f}",
                f"{row.memory:.0f}",
                end_section=row is found[-1],
            )
            name = ""
    return table


def growth_lines(rows: Sequence[Grown]) -> list[str]:
    """What the table says of each of ours: whether time is linear, and memory small."""
    lines = []
    for what, found in by_what(rows).items():
        memory = max(row.memory for row in found)
        told = f"at most {memory:.0f} MB of memory, aim {verdict(memory, MEMORY_AIM)}"
        if len(found) > 1:
            first, last = found[0], found[-1]
            size, time = last.size / first.size, last.seconds / first.seconds
            linear = verdict(time / size, LINEAR)
            told = f"{size:.1f} times the size, {time:.1f} times the time, aim {linear}; {told}"
        lines.append(f"{what}: {told}")
    return lines


def by_what(rows: Sequence[Grown]) -> Mapping[str, list[Grown]]:
    """The rows of each of ours, from the smallest to the largest."""
    found: dict[str, list[Grown]] = {}
    for row in sorted(rows, key=lambda row: row.size):
        found.setdefault(row.what, []).append(row)
    return found
