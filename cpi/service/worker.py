"""A worker process of the service, which answers calls one after the other.

It is a process, not a thread: an interrupted create is undone as in a `cpi` process, and what a
call leaks or breaks ends with it. The service speaks to it over a socket pair; when that is closed
during a call, the client has gone, and the call is interrupted.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path

from cpi.config.config import Config
from cpi.config.load import load_config
from cpi.contract.handle import handle
from cpi.documents import failure
from cpi.errors import CPIError, Interrupted
from cpi.log import Log
from cpi.service import frames
from cpi.service.guard import Guard
from cpi.service.policy import Policies
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def main() -> None:
    """Answer calls until the service has no more: `worker DESCRIPTOR [CONFIG]`."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    config = load_config(sys.argv[2] if len(sys.argv) > 2 else None)
    policies = Policies.of(config)
    # A terminal's signals are for the service only; SIGTERM is handled during a call.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _warm_up(config)
    jobs: queue.SimpleQueue[dict[str, object] | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(connection, jobs, busy), daemon=True).start()
    while (job := jobs.get()) is not None:
        response, interrupted = _answer(job, config, policies, busy)
        try:
            frames.send(connection, response)
        except OSError:
            break
        if interrupted:
            break  # signals are ignored from here on
    os._exit(0)


def _read(
    connection: socket.socket,
    jobs: queue.SimpleQueue[dict[str, object] | None],
    busy: threading.Event,
) -> None:
    """Queue jobs; interrupt the running call when the connection is closed."""
    job: dict[str, object] | None = {}
    while job is not None:
        try:
            job = frames.receive(connection)
        except OSError:
            job = None
        if job is not None:
            busy.set()
        elif busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        jobs.put(job)


def _warm_up(config: Config) -> None:
    """Load everything before the first call."""
    name = config.text("runtime")
    call = {"method": "has_vm", "arguments": [f"{name}-vm-0"], "context": {}, "api_version": 2}
    handle(call, config, Log("error", quiet=True))


def _answer(
    job: Mapping[str, object], config: Config, policies: Policies, busy: threading.Event
) -> tuple[dict[str, object], bool]:
    """Run one call; return the response and whether it was interrupted."""
    request, client = job["request"], str(job["client"])
    log = Log(tag=_tag(client, request))
    client_config = job["config"] if isinstance(job["config"], dict) else {}
    upload = Path(str(job["upload"])) if job.get("upload") else None
    response: dict[str, object] | None = None
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        guard = Guard(client, config, policies, upload)
        response = handle(request, config, log, guard, client_config)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except CPIError as error:
        response = failure(error, log)
    except Interrupted as error:
        log.error(f"interrupted by {error}: nobody waits for the answer any more")
        # It may have come after the end; then the service undoes it by another call.
        done = response or failure(CPIError("interrupted", ok_to_retry=True), log)
        return done, True
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        busy.clear()
    return response, False


def _interrupt(number: int, frame: object) -> None:
    """Interrupt the call, once: a second interrupt would interrupt the undoing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted(signal.Signals(number).name)


def _tag(client: str, request: object) -> str:
    """Return the tag of a call's lines in the service's log."""
    context = request.get("context") if isinstance(request, dict) else None
    number = context.get("request_id") if isinstance(context, dict) else None
    return f"{client} {shown(number, 40)[1:-1]}" if isinstance(number, str) else client


if __name__ == "__main__":
    main()
