"""Daemons of a private host that notify when they are ready (sd_notify(3))."""

import os
import select
import socket
from collections.abc import Mapping
from pathlib import Path

from testing.hosts.daemon import Daemon
from testing.hosts.private_host import PrivateHost
from testing.patience import PATIENCE


def started(
    host: PrivateHost, *argv: str, folder: Path, env: Mapping[str, str] | None = None
) -> Daemon:
    """Start a daemon and wait until it is ready (sd_notify(3)). Raises RuntimeError with its log.

    folder: for its socket and its log.
    """
    name = Path(argv[0]).name
    notify = folder / f"{name}-notify.sock"
    notify.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(notify))
        ready.setblocking(False)
        daemon = Daemon(
            host,
            *argv,
            log=folder / f"{name}.log",
            env={"NOTIFY_SOCKET": str(notify), **(env or {})},
        )
        try:
            _await_ready(ready, daemon)
        except BaseException:
            daemon.stop()
            raise
    return daemon


def _await_ready(ready: socket.socket, daemon: Daemon) -> None:
    ended = os.pidfd_open(daemon.pid)
    try:
        while True:
            happened, _, _ = select.select([ready.fileno(), ended], [], [], PATIENCE)
            if ended in happened:
                raise daemon.failure("has ended")
            if ready.fileno() not in happened:
                raise daemon.failure(f"was not ready within {PATIENCE} s")
            if b"READY=1" in ready.recv(4096):
                return
    finally:
        os.close(ended)
