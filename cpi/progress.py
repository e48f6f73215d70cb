"""Progress of long work, as lines of a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cpi.log import Log

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_INTERVAL = 10.0  # seconds


class LogReport:
    """Reports to the request's log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def say(self, text: str) -> None:
        """Log what is done now."""
        self._log.info(text)

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """Log how far a step is, if it takes more than a moment."""
        last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _INTERVAL:
                last = time.monotonic()
                self._log.info(f"{what}: {done >> 20} of {total >> 20} MiB")

        yield show
