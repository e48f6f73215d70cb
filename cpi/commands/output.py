"""The output of commands: tables, JSON for scripts, progress on stderr."""

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
from cpi.text import printable

_LINE_SECONDS = 1.0  # between lines of a log
_SHORT = 12  # characters
PLAIN_WIDTH = 1000  # columns: outside a terminal each row stays on one line


def show_json(document: object) -> None:
    """Print a document as JSON."""
    print(json.dumps(document, indent=2))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print rows under headings; `right` names the headings that are aligned right."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=width, highlight=False, markup=False)
    console.print(table(headings, rows, right))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> Any:
    """Return a table for rich, with a line below the headings on a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rich_table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for heading in headings:
        justify = "right" if heading in right.split() else "left"
        rich_table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # Neither markup nor a terminal's escapes count in BOSH's names.
        rich_table.add_row(*(Text(printable(cell, kept="")) for cell in row))
    return rich_table


def show_facts(document: Mapping[str, object]) -> None:
    """Print a document, a line for each value."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            value = [f"{name}: {text}" for name, text in value.items()]
        for index, line in enumerate(value if isinstance(value, list) and value else [value]):
            if isinstance(line, Mapping):
                line = " ".join(str(text) for text in line.values())
            heading = "" if index else key.replace("_", " ")
            text = "-" if line in ("", []) else printable(str(line), kept="")
            print(f"{heading:16}  {text}")


class Terminal:
    """Reports steps and their progress on stderr: bars on a terminal, plain lines in a log."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._stopped = threading.Event()

    def say(self, text: str) -> None:
        """Report the current step."""
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """Show the progress of a step; steps may be nested."""
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
        """Let Ctrl-C and SIGTERM stop work in other threads as well."""

        def stop(number: int, frame: object) -> None:
            self._stopped.set()
            raise KeyboardInterrupt

        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, stop) for number in signals}
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
    """Show the progress of a copy."""
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
    last_tenths, last_time = -1, -math.inf

    def show(done: int, total: int) -> None:
        nonlocal last_tenths, last_time
        tenths = 10 * done // total if total else 10
        now = time.monotonic()
        if tenths > last_tenths and (now - last_time >= _LINE_SECONDS or tenths == 10):
            last_tenths, last_time = tenths, now
            print(f"{what}: {done >> 20} of {total >> 20} MiB", file=sys.stderr, flush=True)

    return show


def short(any_cid: str) -> str:
    """Return the beginning of a CID's last part on a terminal, else the whole CID."""
    return any_cid.rpartition("-")[2][:_SHORT] if sys.stdout.isatty() else any_cid


def size(mib: int) -> str:
    """Format a size in MiB."""
    if mib >= 1024 and mib % 1024 == 0:
        return f"{mib // 1024} GiB"
    return f"{mib} MiB"


def bytes_size(count: float | None) -> str:
    """Format a number of bytes, "" for None."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def confirmed(question: str, yes: bool) -> bool:
    """Ask the user at the terminal for confirmation; without one, only --yes confirms."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question}\nbosh-cpi: say --yes to do it", file=sys.stderr)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
