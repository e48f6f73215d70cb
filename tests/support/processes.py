"""Processes of tests: they end with the test, which does not wait for them forever."""

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, AnyStr

from testing.patience import PATIENCE, wait_for


@contextmanager
def ended(process: "subprocess.Popen[AnyStr]") -> Iterator["subprocess.Popen[AnyStr]"]:
    """Wait for the end of a process; kill it if the test fails before."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def write_end(fifo: Path) -> IO[bytes]:
    """Open a FIFO once a process reads it."""

    def opened() -> int | None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no reader yet
            return None

    descriptor = wait_for(opened, f"a reader of {fifo}")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def wait_for_writer(fifo: Path) -> None:
    """Wait until a process writes into a FIFO, and read what it writes."""
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reading:
        assert select.select([reading], [], [], PATIENCE)[0], f"nobody writes into {fifo}"
        os.set_blocking(reading.fileno(), True)
        reading.read()
