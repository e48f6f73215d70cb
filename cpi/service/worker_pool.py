"""The worker processes of the service: started when needed, kept for the next call, bounded."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from cpi.errors import CPIError
from cpi.service import frames
from cpi.service.shares import Shares

SPARE = 2  # kept for ever; the others end when they have been idle for a while
_IDLE_SECONDS = 60


class Worker:
    """A worker process."""

    def __init__(self, config_file: str | None) -> None:
        self.connection, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            files = [config_file] if config_file else []
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cpi.service.worker", str(descriptor), *files],
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        self.idle_since = 0.0
        self.interrupted = False

    def interrupt(self) -> None:
        """Undo its call, and end its process."""
        self.interrupted = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)

    def end(self) -> str:
        """Wait for its end and return how it ended."""
        self.interrupt()
        status = self._process.wait()
        self.connection.close()
        return signal.Signals(-status).name if status < 0 else f"status {status}"


class WorkerPool:
    """All workers. Calls beyond `limit`, or beyond their client's share of it, wait."""

    def __init__(self, config_file: str | None, limit: int) -> None:
        self._config_file = config_file
        self._shares = Shares(limit)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    def start(self) -> None:
        """Have some workers ready before the first call."""
        for _ in range(SPARE):
            self._put(Worker(self._config_file))

    @property
    def running(self) -> int:
        """The number of running calls."""
        return len(self._busy)

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a worker."""
        return self._shares.waiting

    def run(
        self, job: Mapping[str, object], client: socket.socket | None, interruptible: bool
    ) -> dict[str, object]:
        """Run a job and return the response. Raises CPIError when its worker breaks.

        client: the connection of the client; when it is closed, an interruptible job is
        interrupted.
        """
        request = job["request"]
        method = str(request.get("method")) if isinstance(request, Mapping) else ""
        with self._shares.turn(str(job["client"]), method):
            worker = self._take(job)
            with self._lock:
                self._busy.add(worker)
            response = _await(worker, client, interruptible)
        with self._lock:
            self._busy.discard(worker)
        if response is None:
            how = worker.end()
            raise CPIError(
                f"the process that ran this call ended with {how}; see the service's log. "
                "bosh-cpi gc shows what it may have left",
                ok_to_retry=True,
            )
        if worker.interrupted:
            worker.end()
        else:
            self._put(worker)
        return response

    def interrupt_all(self) -> None:
        """Interrupt all running calls."""
        with self._lock:
            for worker in self._busy:
                worker.interrupt()

    def trim(self) -> None:
        """End workers that have been idle for a while."""
        old = []
        with self._lock:
            long_ago = time.monotonic() - _IDLE_SECONDS
            while len(self._idle) > SPARE and self._idle[0].idle_since < long_ago:
                old.append(self._idle.pop(0))
        for worker in old:
            worker.end()

    def close(self) -> None:
        """End all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.interrupt()
        for worker in idle:
            worker.end()

    def _take(self, job: Mapping[str, object]) -> Worker:
        """Send the job to a worker: the one that was used last, else a new one."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            fresh = worker is None
            worker = worker or Worker(self._config_file)
            try:
                frames.send(worker.connection, job)
            except OSError:
                how = worker.end()
                if fresh:
                    raise CPIError(f"a process for this call ended with {how}") from None
                continue  # it died while it was idle
            return worker

    def _put(self, worker: Worker) -> None:
        worker.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(worker)


def _await(
    worker: Worker, client: socket.socket | None, interruptible: bool
) -> dict[str, object] | None:
    """Return a worker's response, None if it died; interrupt it when the client has gone."""
    poll = select.poll()
    poll.register(worker.connection, select.POLLIN)
    if client is not None and interruptible:
        poll.register(client, select.POLLRDHUP)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if worker.connection.fileno() in ready:
            try:
                return frames.receive(worker.connection)
            except OSError:
                return None
        if client is not None:
            worker.interrupt()
            poll.unregister(client)


def is_gone(client: socket.socket) -> bool:
    """Tell whether the other side of a connection has closed it."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))
