"""`bosh-cpi vms` and `bosh-cpi stemcells`: what there is, in all configured runtimes."""

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
        found = fleet.each(lambda runtime: runtime.vms())
        if options.json:
            output.show_json([document(vm) for vm in found])
            return fleet.status
        stemcells = {one.cid: one for one in _known_stemcells(fleet)} if found else {}
    # BOSH calls a job like its instance group, unless somebody makes a VM by hand.
    jobs = any(vm.name.job not in ("", vm.name.group) for vm in found)
    names = ["VM", "DEPLOYMENT", "INSTANCE", "INDEX", *(["JOB"] * jobs)]
    rest = ["STATE", "RUNTIME", "ADDRESSES", "PORTS", "STEMCELL", "CPU", "MEMORY", "AGE"]
    rows = [_row(vm, stemcells.get(vm.stemcell), jobs=jobs) for vm in found]
    output.show_table([*names, *rest], rows, right="CPU MEMORY AGE")
    return fleet.status


def _known_stemcells(fleet: Fleet) -> list[StemcellView]:
    """Those with a name first, so that the last of one CID is one that tells it."""
    found = fleet.each(lambda runtime: runtime.stemcells())
    return sorted(found, key=lambda one: bool(one.name))


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
        " ".join(vm.addresses),
        " ".join(vm.ports),
        _title(stemcell) if stemcell and stemcell.name else output.short(vm.stemcell),
        "" if vm.cpu is None else f"{vm.cpu:g}",
        "" if vm.memory is None else output.size(vm.memory),
        age(vm.created_at),
    ]


def _title(stemcell: StemcellView) -> str:
    return f"{stemcell.name}/{stemcell.version}" if stemcell.version else stemcell.name


def document(vm: VMView) -> dict[str, Any]:
    """A VM for scripts: BOSH's names beside the rest; memory in MiB."""
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
        found = fleet.each(lambda runtime: runtime.stemcells())
        if options.json:
            times = [timestamp(one.created_at) for one in found]
            both = zip(found, times, strict=True)
            output.show_json([{**asdict(one), "created_at": at} for one, at in both])
            return fleet.status
        users = fleet.each(lambda runtime: runtime.vms()) if found else []
    used = [(vm.stemcell, vm.runtime) for vm in users]
    rows = [
        [
            one.cid,
            one.name,
            one.version,
            one.operating_system,
            one.runtime,
            str(used.count((one.cid, one.runtime))),
            one.image,
            age(one.created_at),
        ]
        for one in found
    ]
    headings = ["STEMCELL", "NAME", "VERSION", "OS", "RUNTIME", "VMS", "IMAGE", "AGE"]
    output.show_table(headings, rows, right="VMS AGE")
    return fleet.status


def timestamp(seconds: float | None) -> str | None:
    """A moment as RFC 3339 writes it."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def age(created_at: float | None, now: float | None = None) -> str:
    """How long ago something was, in its two largest units."""
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
