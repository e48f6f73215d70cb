"""`bosh-cpi vms` and `bosh-cpi stemcells`: list those of all configured runtimes."""

import argparse
import time
from dataclasses import asdict
from typing import Any

from cpi.commands import output
from cpi.commands.declare import JSON, Command
from cpi.commands.fleet import Fleet
from cpi.config.config import Config
from cpi.views import StemcellView, VMView

_VMS = """\
examples:
  bosh-cpi vms
  bosh-cpi vms --json | jq -r '.[] | select(.state != "running") | .cid'

The names are BOSH's own, as it gave them to the VM. A terminal shows the beginning of each CID's
last part, which other commands take; a pipe and --json get all of it. Exit status 1: a runtime
could not be asked, which is said on stderr.
"""
_STEMCELLS = """\
examples:
  bosh-cpi stemcells
  bosh-cpi stemcells --json

One line for each runtime that has it. A stemcell that several runtimes have has one CID in all of
them, which the usual runtime gave it.
"""


def _vms(options: argparse.Namespace, config: Config) -> int:
    with Fleet(config) as fleet:
        vms = fleet.each(lambda runtime: runtime.vms())
        if options.json:
            output.show_json([document(vm) for vm in vms])
            return fleet.status
        known = fleet.each(lambda runtime: runtime.stemcells()) if vms else []
    # One CID may be in several runtimes, of which only some know the stemcell's name.
    stemcells = {stemcell.cid: stemcell for stemcell in known if stemcell.name}
    # BOSH names a job like its instance group; only VMs created by hand may differ.
    jobs = any(vm.name.job not in ("", vm.name.group) for vm in vms)
    names = ["VM", "DEPLOYMENT", "INSTANCE", "INDEX", *(["JOB"] * jobs)]
    rest = ["STATE", "RUNTIME", "ISOLATION", "ADDRESSES", "PORTS"]
    rest += ["STEMCELL", "CPU", "MEMORY", "AGE"]
    rows = [_row(vm, stemcells.get(vm.stemcell), jobs=jobs) for vm in vms]
    output.show_table([*names, *rest], rows, right="CPU MEMORY AGE")
    return fleet.status


def _row(vm: VMView, stemcell: StemcellView | None, *, jobs: bool) -> list[str]:
    name = vm.name
    return [
        output.short(vm.cid),
        name.deployment,
        name.instance,
        name.index,
        *([name.job] * jobs),
        vm.state,
        vm.runtime,
        vm.isolation,
        " ".join(vm.addresses),
        " ".join(vm.ports),
        _title(stemcell) if stemcell else output.short(vm.stemcell),
        "" if vm.cpu is None else f"{vm.cpu:g}",
        "" if vm.memory is None else output.size(vm.memory),
        age(vm.created_at),
    ]


def _title(stemcell: StemcellView) -> str:
    return f"{stemcell.name}/{stemcell.version}" if stemcell.version else stemcell.name


def document(vm: VMView) -> dict[str, Any]:
    """Describe a VM for scripts, with BOSH's names; memory in MiB."""
    return {
        **asdict(vm),
        "deployment": vm.name.deployment,
        "instance": vm.name.instance,
        "instance_group": vm.name.group,
        "index": vm.name.index,
        "job": vm.name.job,
        "created_at": timestamp(vm.created_at),
        "metadata": dict(vm.metadata),
    }


def _stemcells(options: argparse.Namespace, config: Config) -> int:
    with Fleet(config) as fleet:
        views = fleet.each(lambda runtime: runtime.stemcells())
        if options.json:
            documents = [
                asdict(view) | {"created_at": timestamp(view.created_at)} for view in views
            ]
            output.show_json(documents)
            return fleet.status
        vms = fleet.each(lambda runtime: runtime.vms()) if views else []
    used = [(vm.stemcell, vm.runtime) for vm in vms]
    rows = [
        [
            view.cid,
            view.name,
            view.version,
            view.operating_system,
            view.runtime,
            str(used.count((view.cid, view.runtime))),
            view.image,
            age(view.created_at),
        ]
        for view in views
    ]
    headings = ["STEMCELL", "NAME", "VERSION", "OS", "RUNTIME", "VMS", "IMAGE", "AGE"]
    output.show_table(headings, rows, right="VMS AGE")
    return fleet.status


def timestamp(seconds: float | None) -> str | None:
    """Format a time in seconds since the epoch as RFC 3339."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def age(created_at: float | None, now: float | None = None) -> str:
    """Format the time since `created_at` in its two largest units."""
    if created_at is None:
        return ""
    left = max(0, int((time.time() if now is None else now) - created_at))
    parts: list[str] = []
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= seconds or parts:
            parts.append(f"{left // seconds}{unit}")
            left %= seconds
    return " ".join(parts[:2]) or "0s"


COMMANDS = (
    Command("vms", _vms, "list all VMs", JSON, examples=_VMS),
    Command("stemcells", _stemcells, "list imported stemcells", JSON, examples=_STEMCELLS),
)
