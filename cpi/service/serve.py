"""The host's service, from its start to its end: `bosh-cpi serve`."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import threading
from contextlib import suppress
from pathlib import Path

from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.host import guest_socket
from cpi.host.layout import Layout
from cpi.log import Log
from cpi.service import sockets
from cpi.service.client_calls import ClientCalls
from cpi.service.metrics import Metrics
from cpi.service.policy import GUEST, LOCAL, Policies
from cpi.service.server import App, Listener, serve_all
from cpi.service.worker_pool import WorkerPool
from cpi.upkeep.garbage_collection import collect_garbage
from cpi.upkeep.restore import restore_all
from cpi.version import VERSION

_HOUSEKEEPING_SECONDS = 5


class Service:
    """A running service."""

    def __init__(self, config: Config, config_file: str | None) -> None:
        """Open the sockets. Raises CPIError for a configuration that cannot be used."""
        Policies.of(config)
        self._config = config
        self._tls = sockets.tls_context(config) if config.text("service.tcp") else None
        self._pool = WorkerPool(config_file, config.integer("service.max_calls"))
        metrics = Metrics(config, self._pool)
        self._app = App(ClientCalls(config, self._pool, metrics), metrics)
        self._own: list[Path] = []
        self._listeners = self._open()
        self._signals = threading.Event()
        self._received: list[int] = []

    def _open(self) -> list[Listener]:
        """Return a listener for each socket, also for those that systemd has opened."""
        given = sockets.from_systemd()
        unix = [opened for opened in given if opened.family == socket.AF_UNIX]
        config = self._config
        main = sockets.main_socket(config)
        guest = guest_socket.make_folder(Layout.of(config).guest) / guest_socket.SOCKET
        for_guests = next((opened for opened in unix if opened.getsockname() == str(guest)), None)
        for_host = next((opened for opened in unix if opened is not for_guests), None)
        mode, group = (
            int(config.text("service.socket_mode"), 8),
            config.text("service.socket_group"),
        )
        main.parent.mkdir(parents=True, exist_ok=True)
        listeners = [
            Listener(self._unix(for_host, main, mode, group), LOCAL, self._app),
            # Any user in a VM may use it; on the host, its folder's parent is only root's.
            Listener(self._unix(for_guests, guest, 0o666), GUEST, self._app),
        ]
        if self._tls is not None:
            listeners.append(Listener(self._tcp(given), "", self._app, self._tls))
        return listeners

    def _tcp(self, given: list[socket.socket]) -> socket.socket:
        """Return systemd's socket for service.tcp, or one of our own."""
        address = self._config.text("service.tcp")
        tcp = [opened for opened in given if opened.family != socket.AF_UNIX]
        same = next((opened for opened in tcp if sockets.is_at(opened, address)), None)
        return same or sockets.tcp(address)

    def _unix(
        self, given: socket.socket | None, path: Path, mode: int, group: str = ""
    ) -> socket.socket:
        """Return systemd's socket, or one of our own, with this mode and group."""
        if given is None:
            self._own.append(path)
            return sockets.unix(path, mode, group)
        sockets.grant(Path(given.getsockname()), mode, group)
        return given

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C; a second one interrupts running calls."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        notify = os.environ.pop("NOTIFY_SOCKET", "")
        self._pool.start()
        # Calls wait meanwhile: they could take the address of a VM that is not restored yet.
        self._put_in_order()
        serve_all(self._listeners)
        addresses = ", ".join(str(listener.bind_addr) for listener in self._listeners)
        print(f"bosh-containerd-cpi {VERSION} serves on {addresses}", file=sys.stderr)
        _notify_systemd(notify, "READY=1")
        while not self._stop_asked():
            self._signals.wait(_HOUSEKEEPING_SECONDS)
            self._signals.clear()
            self._keep_house()
        _notify_systemd(notify, "STOPPING=1")
        self._stop()

    def _put_in_order(self) -> None:
        """Restore VMs after a restart of the host, and remove orphaned resources."""
        log = Log(tag="start")
        restore_all(self._config, log)
        for garbage in collect_garbage(self._config, log, yes=True).removed:
            log.info(f"removed the {garbage.type} {garbage.name}: {garbage.why}")

    def _on_signal(self, number: int, frame: object) -> None:
        self._received.append(number)
        self._signals.set()

    def _stop_asked(self) -> bool:
        return any(number != signal.SIGHUP for number in self._received)

    def _keep_house(self) -> None:
        for listener in self._listeners:
            listener.close_slow()
        self._pool.trim()
        if signal.SIGHUP in self._received:
            self._received.remove(signal.SIGHUP)
            self._reload(self._tls)

    def _reload(self, context: ssl.SSLContext | None) -> None:
        """Reload the certificates; new connections use them."""
        if context is not None:
            try:
                sockets.load_certificates(context, self._config)
                print("certificates are read anew", file=sys.stderr)
            except CPIError as error:
                print(f"still with the old certificates: {error.message}", file=sys.stderr)

    def _stop(self) -> None:
        """Accept no more calls, finish running ones, and end the workers."""
        print(f"stopping; {self._pool.running} calls still run", file=sys.stderr)
        self._app.stopping = True  # what was accepted until now is still answered
        ending = [threading.Thread(target=listener.stop) for listener in self._listeners]
        for thread in ending:
            thread.start()
        asked = len(self._received)
        while any(thread.is_alive() for thread in ending):
            self._signals.wait(0.2)
            self._signals.clear()
            if len(self._received) > asked:
                asked = len(self._received)
                print("asked again: interrupting what still runs", file=sys.stderr)
                self._pool.interrupt_all()
        self._pool.close()
        for path in self._own:
            with suppress(OSError):
                path.unlink()


def _notify_systemd(address: str, state: str) -> None:
    """Notify systemd of a state, see sd_notify(3)."""
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, suppress(OSError):
            notify.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def run(config: Config, config_file: str | None) -> None:
    """Run the service until it is stopped. Raises CPIError when it cannot start."""
    if os.geteuid() != 0:
        raise CPIError("the service makes containers and mounts: run it as root")
    Service(config, config_file).run()
