"""How long work tells how far it is, to a terminal, a log or nobody."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Report(Protocol):
    """What a conversion tells while it runs."""

    def say(self, text: str) -> None:
        """Tell what is done now, in one line."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """Show how far one long step is, while the context lasts."""
