"""Long-running programs on a private host."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

from testing.hosts.private_host import PrivateHost
from testing.patience import PATIENCE, wait_for
from testing.repository import REPOSITORY


class Daemon:
    """A program that runs inside a private host until `stop`; its errors go to the file `log`."""

    def __init__(
        self, host: PrivateHost, *argv: str, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = argv[0]
        self._log = log
        self._printed = b""
        # Entering a mount namespace leaves the current folder, which Python would search.
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})}
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                host.enter(*argv),
                bufsize=0,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us; we stop it after the cleanup
            )
        self._output = cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._output.fileno(), False)

    @property
    def pid(self) -> int:
        """A process that ends with the program: nsenter."""
        return self._process.pid

    def failure(self, what: str) -> RuntimeError:
        """Return an error with the end of the program's log."""
        tail = self._log.read_text(errors="replace")[-3000:]
        return RuntimeError(f"{self.name} {what}:\n{tail}")

    def lines(self) -> list[str]:
        """Return the lines that the program has printed so far."""
        while chunk := self._output.read(65536):
            self._printed += chunk
        return self._printed.decode().split("\n")[:-1]

    def first_line(self, seconds: float = PATIENCE) -> str:
        """Wait for the first line that the program prints when it is ready."""
        end = time.monotonic() + seconds
        while not (lines := self.lines()):
            if self._process.poll() is not None:
                raise self.failure("has ended")
            if not select.select([self._output], [], [], end - time.monotonic())[0]:
                raise self.failure(f"printed nothing within {seconds} s")
        return lines[0]

    def stop(self, seconds: float = PATIENCE) -> None:
        """End the program with SIGTERM, or SIGKILL after a timeout."""
        try:
            self._signal(signal.SIGTERM)
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
            raise self.failure(f"did not end within {seconds} s") from None
        finally:
            self._output.close()

    def _signal(self, number: int) -> None:
        """Signal the program itself: nsenter, its parent, passes nothing on."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        ended = "ended"
        child = wait_for(
            lambda: ended if self._process.poll() is not None else children.read_text(), "a child"
        )
        if child != ended:
            with contextlib.suppress(ProcessLookupError):  # it may end by itself just now
                os.kill(int(child), number)
