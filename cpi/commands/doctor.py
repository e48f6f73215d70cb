"""`bosh-cpi doctor`: whether this host can run VMs, and how to fix it where not."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from cpi.commands import host_checks, network_checks, output
from cpi.commands.declare import JSON, Command
from cpi.commands.host_checks import Host
from cpi.config.config import Config
from cpi.config.load import config_of, load_config
from cpi.errors import CPIError
from cpi.findings import FAILURE, OK, WARNING, Finding, failure
from cpi.log import Log
from runtimes import catalog

_EXAMPLES = """\
examples:
  bosh-cpi doctor
  bosh-cpi doctor --json | jq -r '.checks[] | select(.status == "failure") | .fix'

Nothing is changed. Below what is not well is its fix: a command, or a line of cpi.json.
Exit status 1: at least one failure. Runtimes that are not configured get one line each.
"""
_MARKS = {OK: "✓", WARNING: "!", FAILURE: "✗"}
_COLOURS = {OK: "green", WARNING: "yellow", FAILURE: "bold red"}


def _load(path: str | None) -> Config:
    """A file that cannot be used is a finding and no reason to stop."""
    try:
        return load_config(path)
    except CPIError:
        return config_of({})


def _doctor(options: argparse.Namespace, config: Config) -> int:
    results = findings(Host(config, options.config, _problem(options.config)))
    failures = sum(finding.status == FAILURE for _, finding in results)
    warnings = sum(finding.status == WARNING for _, finding in results)
    if options.json:
        checks = [{"scope": scope, **asdict(finding)} for scope, finding in results]
        output.show_json({"failures": failures, "warnings": warnings, "checks": checks})
    else:
        _show(results)
        print(f"\n{len(results)} checks, {failures} failed, {warnings} warnings")
    return 1 if failures else 0


def _problem(path: str | None) -> str:
    try:
        load_config(path)
    except CPIError as error:
        return error.message
    return ""


def findings(host: Host) -> list[tuple[str, Finding]]:
    """What all checks found, with what each is about: the host, its network, or a runtime."""
    if os.geteuid() != 0:  # what the others found would be that
        return [("host", finding) for finding in host_checks.FIRST.run(host)]
    found = [("host", finding) for finding in host_checks.FIRST.run(host)]
    found += [("host", finding) for finding in host_checks.CHECKS.run(host)]
    found += [("network", finding) for finding in network_checks.CHECKS.run(host.config)]
    wanted = catalog.configured(host.config)
    for name in (*wanted, *(other for other in catalog.REGISTRY if other not in wanted)):
        about = of_runtime(name, host.config)
        found += [(name, one) for one in (about if name in wanted else [optional(name, about)])]
    return found


def of_runtime(name: str, config: Config) -> list[Finding]:
    """What a runtime's own checks found; only why it does not load, when it does not."""
    with catalog.Runtimes(config, Log("error")) as runtimes:
        try:
            runtime = runtimes.get(name)
        except CPIError as error:
            hint = catalog.REGISTRY[name].hint if name in catalog.REGISTRY else ""
            return [replace(failure(error.message, hint), check="runtime")]
        return runtime.checks()


def optional(name: str, found: Sequence[Finding]) -> Finding:
    """Of a runtime that nobody has configured: the first thing that is missing, as a warning."""
    bad = [finding for finding in found if finding.status == FAILURE]
    if bad:
        message = f"{bad[0].message} (only for runtime {name})"
        return replace(bad[0], status=WARNING, message=message)
    return Finding(OK, "could be used", check="not configured")


def _show(results: Sequence[tuple[str, Finding]]) -> None:
    from rich.console import Console
    from rich.text import Text

    width = None if sys.stdout.isatty() else output.PLAIN_WIDTH
    console = Console(width=width, highlight=False, markup=False)
    last = ""
    for scope, finding in results:
        if scope != last:
            console.print(Text(scope, style="bold"))
            last = scope
        line = Text(f"  {_MARKS[finding.status]} ", style=_COLOURS[finding.status])
        console.print(line.append(f"{finding.check}: {finding.message}", style="default"))
        if finding.fix:
            console.print(Text(f"      {finding.fix}", style="cyan"))


COMMANDS = (
    Command(
        "doctor",
        _doctor,
        "check whether this host can run VMs",
        JSON,
        examples=_EXAMPLES,
        load=_load,
    ),
)
