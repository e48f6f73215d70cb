"""Kill the CPI with SIGKILL at each step that changes something.

A step is a system call of the CPI's own code that changes the host, a mount, or the start of a
program, which goes on when the CPI is killed.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.containerd.machine import Machine

_SCRIPT = """
import os, signal, sys, threading
wanted = int(sys.argv.pop(1))
CALLS = {"fsync", "ioctl", "mkdir", "posix_fallocate", "rename", "replace", "rmdir", "sendfile",
         "truncate", "unlink"}
FUNCTIONS = {"_execute_child", "mount", "umount", "umount_all"}
copied = done = 0
def step(frame, event, argument):
    global copied, done
    if event == "c_return":
        name = argument.__name__
        counts = name in CALLS and argument.__module__ in ("posix", "fcntl")
        if counts and name == "sendfile":  # a piece of a copy is like any other
            copied += 1
            counts = copied < 3
    else:
        counts = event == "return" and frame.f_code.co_name in FUNCTIONS
    done += counts
    if counts and done == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
from cpi.main import main
threading.setprofile(step)
sys.setprofile(step)
main()
"""


def killed_at_every_step(machine: Machine, method: str, *arguments: Any) -> Iterator[int]:
    """Repeat a call that is killed one step later each time; yield after each kill.

    Between the calls the caller must undo the call's work; an argument that is a function is called
    each time. Ends with a call that is not killed.
    """
    script = machine.host.folder / "killer.py"
    script.write_text(_SCRIPT)
    root = Path(__file__).parents[3]
    config = machine.host.folder / "cpi.json"
    for step in range(1, 1000):
        given = [value() if callable(value) else value for value in arguments]
        request = json.dumps(
            {"method": method, "arguments": given, "context": {}, "api_version": 2}
        )
        done = machine.host.run(
            sys.executable, str(script), str(step), "-c", str(config),
            input=request, check=False, cwd=root,
        )  # fmt: skip
        if done.stdout:
            assert json.loads(done.stdout)["error"] is None, done.stdout
            assert step > 3, "the call does nothing that could be interrupted"
            return
        yield step
    raise AssertionError(f"{method} never ends")
