"""What commands print: tables for people, JSON for scripts, progress on stderr."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from cpi.progress import Progress

_LINE_SECONDS = 1.0  # between lines of a log
_SHORT = 12  # characters
PLAIN_WIDTH = 1000  # columns; what is not a terminal gets every row on one line


def show_json(document: object) -> None:
    """Print a document."""
    print(json.dumps(document, indent=2))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print rows under headings; the headings named in `right`, in words, stand to the right."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=width, highlight=False, markup=False)
    console.print(table(headings, rows, right))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> Any:
    """A table for rich, with a line below the headings on a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for heading in headings:
        justify = "right" if heading in right.split() else "left"
        made.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))  # as it is: no markup in what BOSH wrote
    return made


def show_facts(document: Mapping[str, object]) -> None:
    """Print what there is to know of one thing, a line for each value."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            value = [f"{name}: {told}" for name, told in value.items()]
        for index, line in enumerate(value if isinstance(value, list) and value else [value]):
            if isinstance(line, Mapping):
                line = " ".join(str(told) for told in line.values())
            heading = "" if index else key.replace("_", " ")
            print(f"{heading:16}  {'-' if line in ('', []) else line}")


class Terminal:
    """Tells on stderr what is done, and how far it is: bars on a terminal, plain lines in a log."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._stopped = threading.Event()

    def say(self, text: str) -> None:
        """Tell what is done now."""
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """Show how far one step is; steps may be inside each other."""
        if not sys.stderr.isatty():
            yield self._stoppable(_lines(what))
            return
        outermost = self._bars is None
        if outermost:
            self._bars = _bars()
            self._bars.start()
        task = self._bars.add_task(what, total=None)
        try:
            yield self._stoppable(
                lambda done, total: self._bars.update(task, completed=done, total=total)
            )
        finally:
            self._bars.remove_task(task)
            if outermost:
                self._bars.stop()
                self._bars = None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Have Ctrl-C and SIGTERM end what works in threads as well."""

        def stop(number: int, frame: object) -> None:
            self._stopped.set()
            raise KeyboardInterrupt

        before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stoppable(self, show: Progress) -> Progress:
        def checked(done: int, total: int) -> None:
            if self._stopped.is_set():
                raise KeyboardInterrupt
            show(done, total)

        return checked


def progress(what: str) -> AbstractContextManager[Progress]:
    """Show how far a copy is."""
    return Terminal().progress(what)


def _bars() -> Any:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    return bars.Progress(*columns, console=Console(stderr=True), transient=True)


def _lines(what: str) -> Progress:
    told, at = -1, -math.inf

    def show(done: int, total: int) -> None:
        nonlocal told, at
        tenths = 10 * done // total if total else 10
        now = time.monotonic()
        if tenths > told and (now - at >= _LINE_SECONDS or tenths == 10):
            told, at = tenths, now
            print(f"{what}: {done >> 20} of {total >> 20} MiB", file=sys.stderr, flush=True)

    return show


def short(any_cid: str) -> str:
    """A CID for a terminal, which is narrow: the beginning of what tells it from others."""
    return any_cid.rpartition("-")[2][:_SHORT] if sys.stdout.isatty() else any_cid


def size(mib: int) -> str:
    """A size in MiB, for people."""
    if mib >= 1024 and mib % 1024 == 0:
        return f"{mib // 1024} GiB"
    return f"{mib} MiB"


def bytes_size(count: float | None) -> str:
    """A number of bytes, for people; "" for what is not known."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def confirmed(question: str, yes: bool) -> bool:
    """Ask whoever sits at the terminal; without one, only --yes counts."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question}\nbosh-cpi: say --yes to do it", file=sys.stderr)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
