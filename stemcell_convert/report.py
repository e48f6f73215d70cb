"""The interface for progress of long work, on a terminal or in a log."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Report(Protocol):
    """The progress of a conversion."""

    def say(self, text: str) -> None:
        """Tell what is done now, in one line."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """Show how far one long step is, while the context lasts."""
