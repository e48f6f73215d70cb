"""What commands print: tables for people, JSON for scripts, progress on stderr."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cpi.disks.image import Progress

_PLAIN_WIDTH = 1000  # columns; what is not a terminal gets every row on one line


def show_json(document: object) -> None:
    """Print a document."""
    print(json.dumps(document, indent=2))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print rows under headings; the headings named in `right`, in words, stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _PLAIN_WIDTH, highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for heading in headings:
        justify = "right" if heading in right.split() else "left"
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    console.print(table)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show how far a copy is: a bar with rate and time left, or a line every 10 % in a log."""
    if not sys.stderr.isatty():
        yield _lines(what)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _lines(what: str) -> Progress:
    told = -1

    def show(done: int, total: int) -> None:
        nonlocal told
        tenths = 10 * done // total if total else 10
        if tenths > told:
            told = tenths
            print(f"{what}: {done >> 20} of {total >> 20} MiB", file=sys.stderr, flush=True)

    return show


def size(mib: int) -> str:
    """A size in MiB, for people."""
    if mib >= 1024 and mib % 1024 == 0:
        return f"{mib // 1024} GiB"
    return f"{mib} MiB"


def confirmed(question: str, yes: bool) -> bool:
    """Ask whoever sits at the terminal; without one, only --yes counts."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question}\nbosh-cpi: say --yes to do it", file=sys.stderr)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
