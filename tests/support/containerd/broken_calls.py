"""Calls of the CPI in which one function fails, waits, or kills the process."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.containerd.machine import Machine

# Runs the cpi with one function made to fail before or after its work, or to kill the process.
_SCRIPT = """
import importlib, os, signal, sys
target, when = sys.argv[1:3]
del sys.argv[1:3]
module, _, path = target.partition(":")
owner = importlib.import_module(module)
*parents, name = path.split(".")
for parent in parents:
    owner = getattr(owner, parent)
real = getattr(owner, name)
def broken(*arguments, **options):
    result = None
    if when.startswith("wait:"):
        open(when[5:]).read()
        return real(*arguments, **options)
    if when.startswith("errno:"):
        raise OSError(int(when[6:]), os.strerror(int(when[6:])))
    if when != "before":
        result = real(*arguments, **options)
    if when == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("broken on purpose")
setattr(owner, name, broken)
from cpi.main import main
main()
"""


def broken(
    machine: Machine,
    target: str,
    when: str,
    method: str,
    *arguments: Any,
    config: Path | None = None,
) -> str:
    """Make a call whose function `target` fails `before` or `after` its work, or kills the CPI.

    "wait:FIFO" makes it wait until the FIFO is written to, "errno:24" fail as a system call does.
    Returns what the call printed.
    """
    script = machine.host.folder / "breaker.py"
    script.write_text(_SCRIPT)
    request = {"method": method, "arguments": arguments, "context": {}, "api_version": 2}
    path = config or machine.host.write_config()
    done = machine.host.run(
        sys.executable, str(script), target, when, "-c", str(path),
        input=json.dumps(request), check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    return str(done.stdout)


def fails(
    machine: Machine,
    target: str,
    when: str,
    method: str,
    *arguments: Any,
    config: Path | None = None,
) -> None:
    """Make such a call and check that it fails."""
    response = json.loads(broken(machine, target, when, method, *arguments, config=config))
    assert "broken on purpose" in response["error"]["message"], "the step was never reached"


def drop_leases(machine: Machine) -> None:
    """Remove the leases of killed processes, which would expire within an hour."""
    for lease in machine.ctr("leases", "ls", "-q").split():
        machine.ctr("leases", "rm", "--sync", lease)
        (machine.host.folder / "run/locks" / lease).unlink(missing_ok=True)
