"""Commands in running VMs: containerd's Exec, with FIFOs that its shim carries the bytes through.

Source: containerd 1.6 to 2.x, api/services/tasks/v1 and runtime/v2 (README, "IO"): the shim opens
the FIFOs by their paths while the process starts, and closes them when it has ended.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as Packed  # noqa: TID253 - loaded with the client only
from google.protobuf.empty_pb2 import Empty  # noqa: TID253

from cpi import terminal
from cpi.errors import CloudError, CPIError
from cpi.terminal import Carrier, Remote, Streams
from cpi.text import shown
from runtimes.containerd.api import tasks_pb2
from runtimes.containerd.client import Client

_PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_KILL = 9
_LONG = 365 * 86400  # seconds; a shell may stay open


def process(
    spec: dict[str, Any], command: Sequence[str], terminal: tuple[int, int] | None
) -> dict[str, Any]:
    """Return the OCI process of a command in a VM: its init's, with other arguments.

    terminal: its width and height in characters, None for pipes.
    """
    environment = [*spec["process"]["env"], "HOME=/root"]
    document = {
        **spec["process"],
        "args": list(command),
        "env": environment,
        "terminal": terminal is not None,
    }
    if terminal is not None:
        environment.append(f"TERM={os.environ.get('TERM', 'xterm')}")
        # A size set after the start would be too late for programs that read it first.
        document["consoleSize"] = {"width": terminal[0], "height": terminal[1]}
    return document


class Execs:
    """Runs commands in VMs of one containerd. folder: for the FIFOs, only root's."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        self._folder = folder

    def run(self, vm_cid: str, spec: dict[str, Any], command: Sequence[str], near: Streams) -> int:
        """Run a command in a VM of this spec and return its exit status, as a shell does.

        An interrupt kills it. Raises CloudError when it does not start.
        """
        size = terminal.size(near.stdin) if near.terminal else None
        document = process(spec, command, size)
        running = _Exec(self._client, vm_cid, f"bosh-cpi-{os.urandom(8).hex()}")
        with ExitStack() as stack:
            folder = stack.enter_context(_fifos(self._folder / running.id))
            stdin = stack.enter_context(_stdin(folder))
            far = stack.enter_context(_outputs(folder, stdin, terminal=near.terminal))
            running.create(document, folder, terminal=near.terminal)
            stack.callback(running.end)
            try:
                running.start()
            except CloudError as error:
                raise _explained(error, vm_cid, command[0]) from None
            if near.terminal:
                stack.enter_context(terminal.raw(near.stdin, running.resize))
            waiting = threading.Thread(target=running.wait, daemon=True)
            waiting.start()

            def closed() -> None:
                stdin.close()
                running.close_input()

            Carrier(near, far, closed).run()
            waiting.join()
            return running.status()


def _explained(error: CloudError, vm_cid: str, program: str) -> CloudError:
    """Reword runc's error for a program that is not there."""
    if not any(words in error.message for words in ("not found in $PATH", "no such file or")):
        return error
    return CloudError(f"the VM {vm_cid} has no program {shown(program)}")


class _Exec:
    """One process beside a task's init."""

    def __init__(self, client: Client, vm_cid: str, name: str) -> None:
        self.id = name
        self._client = client
        self._vm_cid = vm_cid
        self._deleted: tasks_pb2.DeleteResponse | None = None
        self._failure: CPIError | None = None

    def create(self, document: dict[str, Any], folder: Path, *, terminal: bool) -> None:
        request = tasks_pb2.ExecProcessRequest(
            container_id=self._vm_cid,
            exec_id=self.id,
            stdin=str(folder / "stdin"),
            stdout=str(folder / "stdout"),
            stderr="" if terminal else str(folder / "stderr"),
            terminal=terminal,
            spec=Packed(type_url=_PROCESS_TYPE, value=json.dumps(document).encode()),
        )
        self._call("Exec", request, Empty, "preparing a command")

    def start(self) -> None:
        request = tasks_pb2.StartRequest(container_id=self._vm_cid, exec_id=self.id)
        self._call("Start", request, tasks_pb2.StartResponse, "starting the command")

    def wait(self) -> None:
        """Wait until it has ended; then the shim carries the rest and closes the FIFOs."""
        request = tasks_pb2.WaitRequest(container_id=self._vm_cid, exec_id=self.id)
        doing = "waiting for the command"
        try:
            self._call("Wait", request, tasks_pb2.WaitResponse, doing, timeout=_LONG)
            self._deleted = self._delete()
        except CPIError as error:  # for the thread that asks for the status
            self._failure = error

    def status(self) -> int:
        """Return the exit status. Raises CloudError when containerd lost it."""
        if self._deleted is None:
            raise self._failure or CloudError(f"containerd lost the command in {self._vm_cid}")
        return int(self._deleted.exit_status)

    def resize(self, width: int, height: int) -> None:
        request = tasks_pb2.ResizePtyRequest(
            container_id=self._vm_cid, exec_id=self.id, width=width, height=height
        )
        self._call("ResizePty", request, Empty, "resizing the terminal")

    def close_input(self) -> None:
        """Let the command see the end of its input, if it still runs."""
        request = tasks_pb2.CloseIORequest(container_id=self._vm_cid, exec_id=self.id, stdin=True)
        with suppress(CPIError):
            self._call("CloseIO", request, Empty, "closing the command's input")

    def end(self) -> None:
        """Kill the command, if it runs, and delete it from containerd."""
        if self._deleted is not None:
            return
        request = tasks_pb2.KillRequest(container_id=self._vm_cid, exec_id=self.id, signal=_KILL)
        with suppress(CPIError):  # it did not start, or has just ended
            self._call("Kill", request, Empty, "killing the command")
            wait = tasks_pb2.WaitRequest(container_id=self._vm_cid, exec_id=self.id)
            self._call("Wait", wait, tasks_pb2.WaitResponse, "waiting for the command")
        with suppress(CPIError):  # or the waiting thread was faster
            self._delete()

    def _delete(self) -> tasks_pb2.DeleteResponse:
        request = tasks_pb2.DeleteProcessRequest(container_id=self._vm_cid, exec_id=self.id)
        doing = "ending the command"
        reply: tasks_pb2.DeleteResponse = self._call(
            "DeleteProcess", request, tasks_pb2.DeleteResponse, doing
        )
        return reply

    def _call(
        self, method: str, request: Any, reply: Any, doing: str, timeout: float | None = None
    ) -> Any:
        where = f"{doing} in the VM {self._vm_cid}"
        return self._client.call(
            f"tasks.v1.Tasks/{method}", request, reply, doing=where, timeout=timeout
        )


@contextmanager
def _fifos(folder: Path) -> Iterator[Path]:
    """Make a folder with three FIFOs for root only; remove it at the end."""
    folder.mkdir(parents=True, mode=0o700)
    try:
        for name in ("stdin", "stdout", "stderr"):
            os.mkfifo(folder / name, 0o600)
        yield folder
    finally:
        shutil.rmtree(folder)


# Our ends are opened before the shim's, so that neither waits for the other.


def _stdin(folder: Path) -> FileIO:
    # Its reader comes later; O_RDWR needs none (fifo(7)).
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    return FileIO(os.open(folder / "stdin", flags), "w")


@contextmanager
def _outputs(folder: Path, stdin: FileIO, *, terminal: bool) -> Iterator[Remote]:
    with ExitStack() as stack:

        def opened(name: str) -> int:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return descriptor

        yield Remote(stdin.fileno(), opened("stdout"), -1 if terminal else opened("stderr"))
