"""Waiting for other processes, for as long as they may take on a busy machine."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 180  # seconds, for what takes one or two: tests do not look for slowness

_POLL_SECONDS = 0.02


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Poll until a condition holds, and return its value.

    what: named by the TimeoutError.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(_POLL_SECONDS)
    return value
