"""Processes that a test starts, and which end with it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import AnyStr


@contextmanager
def ended(process: "subprocess.Popen[AnyStr]") -> Iterator["subprocess.Popen[AnyStr]"]:
    """Wait for the end of a process, as `with` does by itself; kill it if the test fails before."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
