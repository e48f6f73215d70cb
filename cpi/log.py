"""The request's own log: to stderr at once, and kept for the response's `log`.

A director puts both into the task's log, so the `cpi` process returns only lines that are not on
its stderr: those of the host's service, or all when stderr is closed.

Not the logging module, whose import costs more than the rest of `info`. Never log settings, env,
cloud_properties or arguments: they carry secrets.
"""

import sys
import time
from contextlib import suppress

from cpi.text import printable

LEVELS = ("debug", "info", "warn", "error")


class Log:
    """Collects a request's lines.

    tag: what stderr shows before each line, where several requests write there. quiet: write
    nothing to stderr.
    """

    def __init__(self, level: str = "info", *, tag: str = "", quiet: bool = False) -> None:
        self._min_kept = self._min_shown = LEVELS.index(level)
        self._lines: list[str] = []
        self._unwritten: list[str] = []
        self._tag = f"[{tag}] " if tag else ""
        self._quiet = quiet

    def debug(self, message: str) -> None:
        self._write("debug", message)

    def info(self, message: str) -> None:
        self._write("info", message)

    def warn(self, message: str) -> None:
        self._write("warn", message)

    def error(self, message: str) -> None:
        self._write("error", message)

    @property
    def text(self) -> str:
        """All lines so far, for the response."""
        return "".join(self._lines)

    @property
    def unwritten(self) -> str:
        """The lines of `text` that are not on stderr."""
        return "".join(self._unwritten)

    def set_level(self, level: str, shown: str = "") -> None:
        """Keep lines from this level on; stderr shows those from `shown` on, if that differs."""
        self._min_kept = LEVELS.index(level)
        self._min_shown = LEVELS.index(shown or level)

    def _write(self, level: str, message: str) -> None:
        number = LEVELS.index(level)
        if number < min(self._min_kept, self._min_shown):
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{stamp} {level.upper()} {printable(message)}\n"
        if number >= self._min_kept:
            self._lines.append(line)
        written = False
        # A stderr that is closed (None) or whose reader has gone must not undo what works.
        if number >= self._min_shown and sys.stderr is not None and not self._quiet:
            with suppress(OSError, ValueError):
                sys.stderr.write(f"{self._tag}{line}")
                written = True
        if number >= self._min_kept and not written:
            self._unwritten.append(line)
