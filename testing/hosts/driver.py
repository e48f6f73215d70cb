"""Call the `cpi` executable, and agents, from inside a host, and time the calls."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from testing.hosts.private_host import CPI, PrivateHost

WORKER = Path(__file__).with_name("host_worker.py")
_END_SECONDS = 10


class DriverError(Exception):
    """A program or an agent failed; the message says how."""


@dataclass(frozen=True)
class Done:
    """A program that has ended: times in milliseconds, memory in MiB (see host_worker.run)."""

    status: int
    stdout: str
    stderr: str
    wall: float
    cpu: float
    daemon: float
    memory: float


@dataclass(frozen=True)
class Answer:
    """What `cpi` answered, and what the call took."""

    response: dict[str, Any]
    done: Done

    @property
    def error(self) -> dict[str, Any] | None:
        """The error in the response, if any."""
        error: dict[str, Any] | None = self.response["error"]
        return error


class Driver:
    """One worker inside a host; use with `with`, from one thread. `config` is the CPI's file.

    before: called before each request; may raise to stop.
    """

    def __init__(self, host: PrivateHost, config: Path, programs: Path | None = None) -> None:
        self.before: Callable[[], None] = lambda: None
        self._host = host
        self._config = config
        document = json.loads(config.read_text())
        namespace = document["containerd"].get("namespace", "bosh")
        ctr = str(programs / "ctr") if programs else "ctr"
        self.ctr = (ctr, "--address", str(host.address), "--namespace", namespace)
        self._bridge = document.get("network", {}).get("bridge", "bosh0")
        # A namespace of the host's containerd has a name that nothing else has.
        self._marks = [host.folder.name, f"/{namespace}/", f"-namespace\0{namespace}\0"]

    def __enter__(self) -> "Driver":
        self._worker = subprocess.Popen(
            self._host.enter(sys.executable, str(WORKER)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; the CPI's call is to end as it should
        )
        self._requests = cast(IO[str], self._worker.stdin)
        self._answers = cast(IO[str], self._worker.stdout)
        return self

    def __exit__(self, error_type: object, error: object, traceback: object) -> None:
        if error is not None:
            self._worker.kill()  # it may be in the middle of a call
        with suppress(OSError):
            self._requests.close()
        try:
            self._worker.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        self._answers.close()

    def run(self, argv: Sequence[str], stdin: str = "") -> Done:
        """Run a program inside. Raises DriverError when it cannot be started."""
        return Done(**self._ask("run", argv=list(argv), stdin=stdin))

    def must(self, argv: Sequence[str]) -> Done:
        """Run a program inside. Raises DriverError with the end of its output if it fails."""
        done = self.run(argv)
        if done.status:
            output = (done.stderr or done.stdout).strip()[-500:]
            raise DriverError(f"{' '.join(argv)} failed with status {done.status}: {output}")
        return done

    def cpi(self, method: str, *arguments: Any, python: Sequence[str] = ()) -> Answer:
        """Call `cpi` as BOSH does; `python` is an interpreter with options.

        Raises DriverError if the answer is not JSON.
        """
        request = {
            "method": method,
            "arguments": arguments,
            "context": {"director_uuid": "bosh-containerd-cpi-tools"},
            "api_version": 2,
        }
        done = self.run([*python, str(CPI), "-c", str(self._config)], json.dumps(request))
        try:
            response = json.loads(done.stdout)
        except ValueError:
            output = (done.stdout + done.stderr).strip()[-500:]
            raise DriverError(f"cpi {method} answered no JSON: {output}") from None
        return Answer(response, done)

    def inside(self, vm: str, *argv: str) -> Done:
        """Run a program inside a VM."""
        command = [*self.ctr, "tasks", "exec", "--exec-id", f"tools-{os.urandom(6).hex()}", vm]
        return self.run([*command, *argv])

    def post(
        self, address: str, port: int, message: Any, *, user: str, ca: str, timeout: float
    ) -> Any:
        """Send an agent a message and return its answer. Raises DriverError."""
        return self._ask(
            "post", address=address, port=port, message=message, user=user, ca=ca, timeout=timeout
        )["answer"]

    def inventory(self) -> dict[str, set[str]]:
        """Return the parts of VMs, disks and stemcells, by title (see host_worker)."""
        resources = self._ask(
            "inventory",
            ctr=list(self.ctr),
            folder=str(self._host.folder),
            marks=self._marks,
            bridge=self._bridge,
        )
        return {title: set(names) for title, names in resources.items()}

    def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        self.before()
        try:
            self._requests.write(json.dumps({"do": operation, **arguments}) + "\n")
            self._requests.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise DriverError("the worker inside the host has ended; is the host still there?")
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise DriverError(str(answer["failure"]))
        return answer
