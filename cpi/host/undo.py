"""Roll back an operation of several steps."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cpi.log import Log


class Undo:
    """Runs the pushed actions, last first, unless `keep` was called.

    Push before the step, not after it, so that an interruption in between leaks nothing. So each
    action must succeed when there is nothing to undo. Failures while undoing are logged; BOSH gets
    the error that caused the rollback.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._actions: list[Callable[[], object]] = []

    def push(self, action: Callable[[], object]) -> None:
        """Run an action if what follows fails."""
        self._actions.append(action)

    def keep(self) -> None:
        """Undo nothing: all steps have succeeded."""
        self._actions.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *_: object) -> None:
        while self._actions:
            action = self._actions.pop()
            try:
                action()
            except Exception as failure:
                self._log.error(f"could not undo a step: {failure}")
