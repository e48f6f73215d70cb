"""The CPI's service on a private host, and clients of it."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testing.hosts import notify
from testing.hosts.daemon import Daemon
from testing.hosts.private_host import CPI, PrivateHost
from testing.patience import PATIENCE
from tools import client_zipapp

BOSH_CPI = CPI.with_name("bosh-cpi")
SYSTEM_PYTHON = "/usr/bin/python3"  # present on any machine of a client


class Service:
    """`bosh-cpi serve` from `with` on; `settings` is the configuration's section `service`."""

    def __init__(
        self, host: PrivateHost, settings: Mapping[str, Any] | None = None, **changes: Any
    ) -> None:
        self.host = host
        self.config = host.write_config("service.json", service=dict(settings or {}), **changes)
        self.socket = Path(f"{host.folder}/run.sock")
        self.zipapp = host.folder / "cpi.pyz"
        client_zipapp.build(self.zipapp)
        host.folder.chmod(0o711)  # the socket's own mode says who may use it
        self.log = host.folder / "bosh-cpi.log"
        self._daemon: Daemon | None = None

    def __enter__(self) -> "Service":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the service and wait until it accepts calls."""
        argv = [str(BOSH_CPI), "--config", str(self.config), "serve"]
        self._daemon = notify.started(self.host, *argv, folder=self.host.folder)

    def stop(self, seconds: float = PATIENCE) -> None:
        """End the service after its running calls."""
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            daemon.stop(seconds)

    @property
    def pid(self) -> int:
        """The process id of the service itself."""
        if self._daemon is None:
            raise RuntimeError("the service does not run")
        children = Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children").read_text()
        return int(children)

    def client(self, *around: str, **config: Any) -> "ThinClient":
        """Return a client of its unix socket; `around`: words before the command."""
        return ThinClient(
            self.host, self.zipapp, {"endpoint": f"unix://{self.socket}", **config}, around
        )

    def get(self, path: str, socket: Path | None = None) -> str:
        """Return /healthz or /metrics, from the main socket by default."""
        ask = "import http.client, socket, sys; c = http.client.HTTPConnection('x'); "
        ask += "c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(sys.argv[1]); "
        ask += "c.request('GET', sys.argv[2]); print(c.getresponse().read().decode())"
        return str(self.host.run(SYSTEM_PYTHON, "-c", ask, str(socket or self.socket), path).stdout)


class ThinClient:
    """Calls the thin client, one process a call, as BOSH does."""

    _count = 0

    def __init__(
        self,
        host: PrivateHost,
        zipapp: Path,
        config: Mapping[str, Any],
        around: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        """Write the configuration to `folder`; `around`: words before the command."""
        ThinClient._count += 1
        self._host = host
        path = (folder or host.folder) / f"client-{ThinClient._count}.json"
        path.write_text(json.dumps(config))
        path.chmod(0o644)
        self.argv = [*around, SYSTEM_PYTHON, "-I", str(zipapp), "-c", str(path)]

    def __call__(
        self, method: str, *arguments: object, api_version: int = 2, context: Any = None
    ) -> dict[str, Any]:
        """Make a call and return its response."""
        done = self._host.run(
            *self.argv, input=request(method, *arguments, api_version=api_version, context=context)
        )
        response: dict[str, Any] = json.loads(done.stdout)
        return {**response, "log": f"{done.stderr}{response['log']}"}

    def started(self, method: str, *arguments: object, **more: Any) -> "subprocess.Popen[str]":
        """Start a call; return its process, to interrupt it or to run others beside it."""
        with tempfile.TemporaryFile("w+") as stdin:
            stdin.write(request(method, *arguments, **more))
            stdin.seek(0)
            return subprocess.Popen(
                self._host.enter(*self.argv),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )


def request(method: str, *arguments: object, api_version: int = 2, context: Any = None) -> str:
    """Return a request as BOSH writes it."""
    defaulted = {"director_uuid": "tests"} if context is None else context
    return json.dumps(
        {"method": method, "arguments": arguments, "context": defaulted, "api_version": api_version}
    )
