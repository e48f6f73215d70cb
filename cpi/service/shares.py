"""Shares of the workers: no client, and no long call, keeps the others waiting."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# They pull, convert or copy for minutes, or wait for one that does.
LONG = frozenset(
    {"create_stemcell", "delete_stemcell", "snapshot_disk", "resize_disk", "update_disk"}
)


@dataclass(eq=False)
class _Turn:
    client: str
    is_long: bool


class Shares:
    """Says which of the waiting calls runs next, when `limit` may run at once.

    One client has three quarters of them at most, long calls have half, those of one client a
    quarter, but each at least one. Of those who may, the client with the fewest running calls is
    next, and the first to come among its calls.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of_client = max(1, limit * 3 // 4)
        self._long = max(1, limit // 2)
        self._long_of_client = max(1, limit // 4)
        self._changed = threading.Condition()
        self._waiting: list[_Turn] = []
        self._running: Counter[str] = Counter()
        self._running_long: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """The number of calls that wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def turn(self, client: str, method: str) -> Iterator[None]:
        """Wait until a call may run; it counts until the block ends."""
        turn = _Turn(client, method in LONG)
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._next() is turn)
            finally:
                self._waiting.remove(turn)
            self._count(turn, 1)
        try:
            yield
        finally:
            with self._changed:
                self._count(turn, -1)

    def _count(self, turn: _Turn, change: int) -> None:
        for counter in (self._running, *([self._running_long] if turn.is_long else [])):
            counter[turn.client] += change
            if not counter[turn.client]:
                del counter[turn.client]
        self._changed.notify_all()

    def _next(self) -> _Turn | None:
        """Return the turn that is next, if any may run."""
        if self._running.total() >= self._limit:
            return None
        allowed = [turn for turn in self._waiting if self._may_run(turn)]
        return min(allowed, key=lambda turn: self._running[turn.client], default=None)

    def _may_run(self, turn: _Turn) -> bool:
        if self._running[turn.client] >= self._of_client:
            return False
        if not turn.is_long:
            return True
        of_client = self._running_long[turn.client]
        return of_client < self._long_of_client and self._running_long.total() < self._long
