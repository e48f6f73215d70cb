"""What operators see of a private host, as JSON."""

import json
from pathlib import Path
from typing import Any

from tests.support.containerd.machine import Machine

ROUTER, DB = "router/aaaa-1", "db/bbbb-2"  # VMs of the fixtures `router` and `db`


def listed(machine: Machine, *words: str) -> Any:
    return json.loads(machine.bosh_cpi(*words, "--json").stdout)


def check(machine: Machine, name: str, config: Path | None = None) -> dict[str, Any]:
    """Return one finding of the doctor."""
    done = machine.bosh_cpi("doctor", "--json", check=False, config=config)
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["failures"] else 0)
    return next(one for one in found["checks"] if one["check"] == name)
