"""A stand-in for BOSH's agent, for trying a CPI without building the real one.

It is NOT BOSH's agent (https://github.com/cloudfoundry/bosh-agent) and runs no jobs. What it does
the way the real one does it:

- reads agent.json, then the settings file that names, else the copy of an earlier start; without
  either, or with two persistent disks at the start, it ends with an error and its service
  restarts it;
- keeps its state in /var/vcap/bosh: settings.json, persistent_disk_hints.json,
  managed_disk_settings.json, spec.json, all 0600;
- answers BOSH's JSON messages at the settings' mbus address, HTTPS with the certificate of
  env.bosh.mbus.cert, HTTP basic authentication with the address's user and password; slow methods
  answer with a task that get_task asks for; /blobs/ takes what create-env sends;
- mounts, unmounts and migrates persistent disks with the same checks and mounts in the same order,
  pitfalls included: in bind mode unmount_disk unmounts the CPI's mount and leaves /var/vcap/store.

What differs: it speaks no NATS, so any address except http:// and https:// means plain HTTP on port
6868 of every interface; it partitions and formats nothing; apply, start, stop, drain and
run_script change the state that get_state returns, and nothing else; it compiles no packages; it
leaves host name, network, accounts, /var/log, /home and /tmp alone. What the agent of a virtual
machine does beyond this is in testing/agent/stand_in_machine.py.

    python3 -m testing.agent.stand_in_agent [-P PLATFORM] [-C /var/vcap/bosh/agent.json]
"""

import argparse
import base64
import hmac
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from testing.agent.stand_in_disks import AgentError, Disks, Runner, Store, run_program

if TYPE_CHECKING:  # these load where they are used: a machine's CPU can be a slow one
    import ssl

PORT = 6868
REQUEST_LIMIT = 64 << 20  # bytes
TIMEOUT = 300  # seconds, for a client that stops sending


class StandInAgent:
    """The agent's state and methods; `vcap` is /var/vcap except in tests."""

    methods: dict[str, Callable[..., Any]]  # the messages it knows, except get_task

    def __init__(self, config: Path, vcap: Path, run: Runner = run_program) -> None:
        document = json.loads(config.read_text())
        self.store, self.blobs = Store(vcap / "bosh"), vcap / "data/blobs"
        self.methods = METHODS
        self.disks = self.prepare(document, vcap, run)
        self.tasks: dict[str, tuple[bool, Any]] = {}
        self.lock = threading.Lock()  # one message at a time changes anything
        self.state = "running"
        self.load()
        self.set_up()
        if len(self.disks.all()) > 1:
            raise AgentError("Unexpected disk attached")

    def prepare(self, document: dict[str, Any], vcap: Path, run: Runner) -> Disks:
        """Read agent.json; return what handles disks."""
        source = document["Infrastructure"]["Settings"]["Sources"][0]
        self.settings_path = Path(source["SettingsPath"])
        return Disks(self.store, vcap, document["Platform"]["Linux"], run)

    def fetch(self) -> Any:
        """Read the settings from their source; raises AgentError, OSError and ValueError."""
        return json.loads(self.settings_path.read_text())

    def set_up(self) -> None:
        """Set up the machine before the first message; a container needs nothing."""

    def load(self) -> None:
        """Read the settings and keep a copy; raises AgentError if there are none and no copy."""
        try:
            settings = self.fetch()
        except (AgentError, OSError, ValueError) as error:
            settings = self.store.read("settings.json")
            if settings is None:
                raise AgentError(f"Invoking settings fetcher: {error}") from None
        else:
            self.store.write("settings.json", json.dumps(settings))
        self.settings = self.disks.settings = settings

    def mbus(self) -> tuple[SplitResult, dict[str, str]]:
        """Return where to listen, and the certificate for it."""
        bosh = (self.settings.get("env") or {}).get("bosh") or {}
        own = bosh.get("mbus") or {}
        url = urlsplit((own.get("urls") or [self.settings.get("mbus") or ""])[0])
        if url.scheme not in ("http", "https"):
            user = url.netloc.rpartition("@")[0]
            url = urlsplit(f"http://{user}{'@' if user else ''}0.0.0.0:{PORT}")
        return url, own.get("cert") or {}

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer one message."""
        name, arguments = str(message.get("method")), message.get("arguments") or []
        if name != "get_task" and name not in self.methods:
            return {"exception": {"message": f"unknown message {name}"}}
        slow = name in SLOW or (name == "list_disk" and (message.get("protocol") or 0) > 2)
        try:
            perform = self.start_task if slow else self.perform
            return {"value": perform(name, arguments)}
        except AgentError as error:
            return {"exception": {"message": f"Action Failed {name}: {error}"}}

    def perform(self, name: str, arguments: list[Any]) -> Any:
        """Run a message's method; raises AgentError."""
        try:
            if name == "get_task":
                return self.get_task(*arguments)
            if name == "ping":  # answered even while a slow method runs
                return "pong"
            with self.lock:
                return self.methods[name](self, *arguments)
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise AgentError(f"{type(error).__name__}: {error}") from error

    def start_task(self, name: str, arguments: list[Any]) -> dict[str, str]:
        """Start a slow method and return its task."""
        import uuid

        task = str(uuid.uuid4())

        def work() -> None:
            try:
                self.tasks[task] = (True, self.perform(name, arguments))
            except AgentError as error:
                self.tasks[task] = (True, error)

        self.tasks[task] = (False, {"agent_task_id": task, "state": "running"})
        threading.Thread(target=work, name=name, daemon=True).start()
        return {"agent_task_id": task, "state": "running"}

    def get_task(self, task: str) -> Any:
        """Return the result of a task, or that it is still running; raises what the task raised."""
        if task not in self.tasks:
            raise AgentError(f"Task with id {task} could not be found")
        _done, value = self.tasks[task]
        if isinstance(value, AgentError):
            raise AgentError(f"Task {task} result: {value}")
        return value

    def fresh(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Read the settings again, then call a method of the disks."""
        self.load()
        return method(*arguments)

    def apply(self, spec: dict[str, Any]) -> str:
        """Keep the spec of what the director wants to run, with addresses of dynamic networks."""
        settings = self.settings.get("networks") or {}
        for name, network in (spec.get("networks") or {}).items():
            if settings.get(name, {}).get("type") == "dynamic":
                network.update({key: settings[name][key] for key in ("ip", "netmask", "gateway")})
        self.store.write("spec.json", json.dumps(spec))
        return "applied"

    def become(self, state: str, answer: str) -> str:
        """Change the state that get_state returns."""
        self.state = state
        return answer

    def get_state(self, *_filters: str) -> dict[str, Any]:
        """Return the applied spec, and the identity and state of this machine."""
        empty: dict[str, Any] = {"networks": {}, "resource_pool": {}, "packages": {}}
        own = {"agent_id": self.settings.get("agent_id", ""), "vm": self.settings.get("vm") or {}}
        return {**empty, **self.store.read("spec.json", {}), **own, "job_state": self.state}


METHODS: dict[str, Callable[..., Any]] = {
    "ping": lambda a: "pong",
    "info": lambda a: {"api_version": 1},
    "get_state": StandInAgent.get_state,
    "list_disk": lambda a: a.fresh(a.disks.list),
    "add_persistent_disk": lambda a, cid, hint: a.fresh(a.disks.add, cid, hint),
    "remove_persistent_disk": lambda a, cid: a.fresh(a.disks.remove, cid),
    "mount_disk": lambda a, cid: a.fresh(a.disks.mount, cid),
    "unmount_disk": lambda a, cid: a.disks.unmount(cid),
    "migrate_disk": lambda a, *_: a.disks.migrate(),
    "prepare": lambda a, spec: "prepared",
    "apply": StandInAgent.apply,
    "start": lambda a: a.become("running", "started"),
    "stop": lambda a: a.become("stopped", "stopped"),
    "drain": lambda a, *_: 0,
    "run_script": lambda a, *_: {},
}
SLOW = set(METHODS) - {"ping", "info", "get_state", "list_disk", "start"}


class Server(ThreadingHTTPServer):
    """Listens where the settings say; raises AgentError and OSError."""

    daemon_threads = True

    def __init__(self, agent: StandInAgent) -> None:
        self.agent, self.authorization = agent, ""
        url, certificate = agent.mbus()
        if url.username is not None:
            words = f"{unquote(url.username)}:{unquote(url.password or '')}"
            self.authorization = f"Basic {base64.b64encode(words.encode()).decode()}"
        host = url.hostname or "0.0.0.0"  # noqa: S104 (what an mbus address without a host means)
        if ":" in host:
            self.address_family = socket.AF_INET6
        context = tls_context(certificate) if url.scheme == "https" else None
        super().__init__((host, PORT if url.port is None else url.port), Handler)
        if context is not None:
            # The request's thread makes the handshake, so that a silent client blocks no other.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def server_bind(self) -> None:
        """Bind, without asking DNS for this machine's name as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def tls_context(certificate: dict[str, str]) -> "ssl.SSLContext":
    """Return TLS with the certificate in the settings; raises AgentError if there is none."""
    import ssl
    import tempfile

    if not certificate.get("certificate") or not certificate.get("private_key"):
        raise AgentError("Loading configured tls certificate: env.bosh.mbus.cert has none")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.NamedTemporaryFile("w") as file:  # 0600; the ssl module takes files only
        file.write(f"{certificate['certificate']}\n{certificate['private_key']}\n")
        file.flush()
        context.load_cert_chain(file.name)
    return context


class Handler(BaseHTTPRequestHandler):
    """One HTTP request. Messages hold secrets, so only methods are logged."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT

    def do_POST(self) -> None:
        """Answer a message to the agent."""
        body = self.body()
        if body is None:
            return
        if self.path != "/agent":
            self.reply(404)
            return
        try:
            message = json.loads(body)
            answer = self.server.agent.handle(message)
        except (ValueError, AttributeError):
            self.reply(500)
            return
        print(f"{message.get('method')}: {next(iter(answer))}", file=sys.stderr, flush=True)
        self.reply(200, json.dumps(answer).encode())

    def do_PUT(self) -> None:
        """Keep a blob, as the rendered templates that create-env sends."""
        body, name = self.body(), re.fullmatch(r"/blobs/(?:.*/)?([\w.-]*\w)", self.path)
        if body is None:
            return
        if name:
            self.server.agent.blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.server.agent.blobs / name[1]).write_bytes(body)
        self.reply(201 if name else 404)

    def body(self) -> bytes | None:
        """Return the request's body, or None if its sender is unknown and was refused."""
        wanted, given = self.server.authorization, self.headers.get("Authorization", "")
        if wanted and not hmac.compare_digest(given.encode(), wanted.encode()):
            refusal = 401
        elif (size := int(self.headers.get("Content-Length") or 0)) > REQUEST_LIMIT:
            refusal = 413
        else:
            return self.rfile.read(size)
        # Not having read the body, it cannot tell where the next request begins.
        self.close_connection = True
        self.reply(refusal)
        return None

    def reply(self, status: int, body: bytes = b"") -> None:
        """Send an answer."""
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm=""')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: do_POST logs the methods."""


def main(argv: Sequence[str] | None = None, agent_class: type[StandInAgent] = StandInAgent) -> int:
    """Run an agent until it is killed; return 1 if it cannot start."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-P", dest="platform", help="taken for the real agent's sake")
    parser.add_argument("-C", dest="config", type=Path, default=Path("/var/vcap/bosh/agent.json"))
    args = parser.parse_args(argv)
    try:
        server = Server(agent_class(args.config, Path("/var/vcap")))
    except (AgentError, OSError, ValueError, KeyError, IndexError) as error:
        print(f"stand-in agent: {error}", file=sys.stderr)
        return 1
    print(f"stand-in agent: listening on port {server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
