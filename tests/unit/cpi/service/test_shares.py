"""Which of the waiting calls runs next."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cpi.service.shares import Shares
from testing.patience import wait_for

LONG, SHORT = "create_stemcell", "has_vm"


class Queue:
    """Calls that wait for their turn in threads; each that got it runs until it is ended."""

    def __init__(self, limit: int) -> None:
        self.shares = Shares(limit)
        self.started: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._ended = 0

    def call(self, name: str, method: str = SHORT) -> None:
        """Start a call of the client that its name begins with; wait until it waits, or runs."""
        before = len(self.started) + self.shares.waiting
        end = self._ends[name] = threading.Event()

        def run() -> None:
            with self.shares.turn(name[0], method):
                self.started.append(name)
                end.wait(60)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()
        wait_for(lambda: len(self.started) + self.shares.waiting > before, name)

    def calls(self, names: str, method: str = SHORT) -> None:
        for name in names.split():
            self.call(name, method)

    def expect(self, *names: str) -> None:
        """Wait until exactly these have started."""
        wait_for(lambda: len(self.started) == len(names), f"{names}, not {self.started}")
        assert sorted(self.started) == sorted(names)

    def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()

    def stop(self) -> None:
        for end in self._ends.values():
            end.set()
        for thread in self._threads:
            thread.join(60)
        assert self.shares.waiting == 0


@pytest.fixture
def four() -> Iterator[Queue]:
    with ExitStack() as stack:
        queue = Queue(4)
        stack.callback(queue.stop)
        yield queue


def test_a_client_leaves_room_for_others(four: Queue) -> None:
    four.calls("a1 a2 a3 a4 a5")
    four.expect("a1", "a2", "a3")
    four.call("b1")
    four.expect("a1", "a2", "a3", "b1")


def test_the_client_with_the_fewest_is_next(four: Queue) -> None:
    four.calls("a1 a2 a3 b1 a4 a5 c1 b2")
    four.expect("a1", "a2", "a3", "b1")
    four.end("a1")
    four.expect("a1", "a2", "a3", "b1", "c1")
    four.end("a2")
    four.expect("a1", "a2", "a3", "b1", "c1", "a4")


def test_short_calls_are_not_behind_long_ones(four: Queue) -> None:
    four.calls("a1 a2", LONG)
    four.calls("b1 c1", LONG)
    four.expect("a1", "b1")
    four.calls("a3 b2")
    four.expect("a1", "b1", "a3", "b2")
    four.end("b1", "a3", "b2")
    four.expect("a1", "b1", "a3", "b2", "c1")


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("method", [LONG, SHORT])
def test_few_workers_serve_everybody_all_the_same(limit: int, method: str) -> None:
    queue = Queue(limit)
    names = [f"{client}{number}" for number in range(3) for client in "ab"]
    queue.calls(" ".join(names), method)
    queue.stop()
    assert sorted(queue.started) == sorted(names)
