"""The way back of an operation of several steps."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cpi.log import Log


class Undo:
    """Runs what was pushed, last first, unless `keep` was called.

    Push before the step, not after it: then nothing that interrupts in between is left behind. So
    each action must be content when there is nothing to undo. What fails while undoing is logged;
    the error that BOSH gets is the one that started it.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._actions: list[Callable[[], object]] = []

    def push(self, action: Callable[[], object]) -> None:
        """Have something undone if what follows fails."""
        self._actions.append(action)

    def keep(self) -> None:
        """All went well: undo nothing."""
        self._actions.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._actions:
            action = self._actions.pop()
            try:
                action()
            except Exception as failure:
                self._log.error(f"could not undo a step: {failure}")
