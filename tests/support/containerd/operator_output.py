"""Output of `bosh-cpi` on a private host, read from JSON."""

import json
from pathlib import Path
from typing import Any

from tests.support.containerd.machine import Machine

ROUTER, DB = "router/aaaa-1", "db/bbbb-2"  # VMs of the fixtures `router` and `db`


def listed(machine: Machine, *words: str) -> Any:
    return json.loads(machine.bosh_cpi(*words, "--json").stdout)


def check(machine: Machine, name: str, config: Path | None = None) -> dict[str, Any]:
    """Run `bosh-cpi doctor`; return the finding of a check."""
    done = machine.bosh_cpi("doctor", "--json", check=False, config=config)
    report = json.loads(done.stdout)
    assert done.returncode == (1 if report["failures"] else 0)
    return next(finding for finding in report["checks"] if finding["check"] == name)
