"""`bosh-cpi doctor`: check whether this host can run VMs, and how to fix what is wrong."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from cpi.commands import host_checks, network_checks, output
from cpi.commands.declare import JSON, Command, switch
from cpi.commands.host_checks import Host
from cpi.config.config import Config
from cpi.config.load import config_of, load_config
from cpi.errors import CPIError
from cpi.findings import FAILURE, OK, WARNING, Cure, Finding, failure
from cpi.host.process import CommandFailed, run
from cpi.log import Log
from runtimes import catalog

_EXAMPLES = """\
examples:
  bosh-cpi doctor
  bosh-cpi doctor --fix
  bosh-cpi doctor --json | jq -r '.checks[] | select(.status == "failure") | .fix'

Without --fix nothing is changed. Below each problem is its fix: a command, or a line of cpi.json.
--fix runs those commands that can do no harm, asks before each, and checks again after it.
Exit status 1: at least one failure. Runtimes that are not configured get one line each.
"""
_MARKS = {OK: "✓", WARNING: "!", FAILURE: "✗"}
_CURE_SECONDS = 900  # apt may load packages
_COLOURS = {OK: "green", WARNING: "yellow", FAILURE: "bold red"}


def _load(path: str | None) -> Config:
    """Load the configuration, or the defaults if the file is invalid: that is a finding."""
    try:
        return load_config(path)
    except CPIError:
        return config_of({})


def _doctor(options: argparse.Namespace, config: Config) -> int:
    def look() -> list[tuple[str, Finding]]:
        return findings(Host(config, options.config, _problem(options.config)))

    results = fixed(look, yes=options.yes) if options.fix else look()
    failures = sum(finding.status == FAILURE for _, finding in results)
    warnings = sum(finding.status == WARNING for _, finding in results)
    if options.json:
        checks = [{"scope": scope, **_document(finding)} for scope, finding in results]
        output.show_json({"failures": failures, "warnings": warnings, "checks": checks})
    else:
        _show(results)
        print(f"\n{len(results)} checks, {failures} failed, {warnings} warnings")
    return 1 if failures else 0


def fixed(look: Callable[[], list[tuple[str, Finding]]], *, yes: bool) -> list[tuple[str, Finding]]:
    """Do the cures that the checks propose, one by one; return what the checks say at the end.

    All checks run again after each, as one cure may settle several findings, or allow more checks.
    Each is asked for, unless `yes`, and done once.
    """
    proposed: set[tuple[str, str]] = set()
    while True:
        results = look()
        todo = ((s, f) for s, f in results if f.cure and (s, f.check) not in proposed)
        scope, finding = next(todo, (None, None))
        if scope is None or finding is None:
            return results
        proposed.add((scope, finding.check))
        print(f"{scope}, {finding.check}: {finding.message}", file=sys.stderr)
        if finding.cure and _confirmed(finding.cure, yes=yes):
            _apply(finding.cure)


def _confirmed(cure: Cure, *, yes: bool) -> bool:
    for words in cure.commands:
        print(f"  {shlex.join(words)}", file=sys.stderr)
    if yes:
        return True
    if not sys.stdin.isatty():
        print("  pass --yes to confirm", file=sys.stderr)
        return False
    print("Do this? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _apply(cure: Cure) -> None:
    """Run a cure; a failure is shown, and the checks say the rest."""
    try:
        for words in cure.commands:
            run(words, timeout=_CURE_SECONDS, env={"DEBIAN_FRONTEND": "noninteractive"})
    except CommandFailed as error:
        print(f"  {error.message}", file=sys.stderr)


def _document(finding: Finding) -> dict[str, str]:
    return {
        "status": finding.status,
        "message": finding.message,
        "fix": finding.fix,
        "check": finding.check,
    }


def _problem(path: str | None) -> str:
    try:
        load_config(path)
    except CPIError as error:
        return error.message
    return ""


def findings(host: Host) -> list[tuple[str, Finding]]:
    """Run all checks; return (scope, finding): the scope is host, network, or a runtime."""
    results = [("host", finding) for finding in host_checks.FIRST.run(host)]
    if os.geteuid() != 0:  # the other checks would only fail for lack of root
        return results
    results += [("host", finding) for finding in host_checks.CHECKS.run(host)]
    results += [("network", finding) for finding in network_checks.CHECKS.run(host.config)]
    configured = catalog.configured(host.config)
    for name in dict.fromkeys((*configured, *catalog.REGISTRY)):
        checked = of_runtime(name, host.config)
        shown = checked if name in configured else [optional(name, checked)]
        results += [(name, finding) for finding in shown]
    return results


def of_runtime(name: str, config: Config) -> list[Finding]:
    """Return the findings of a runtime's checks, or the reason why it does not load."""
    with catalog.Runtimes(config, Log("error")) as runtimes:
        try:
            runtime = runtimes.get(name)
        except CPIError as error:
            hint = catalog.REGISTRY[name].hint if name in catalog.REGISTRY else ""
            return [replace(failure(error.message, hint), check="runtime")]
        return runtime.checks()


def optional(name: str, results: Sequence[Finding]) -> Finding:
    """Return the first failure of a runtime that is not configured, as a warning."""
    for finding in results:
        if finding.status == FAILURE:
            message = f"{finding.message} (only for runtime {name})"
            # Not cured: whoever does not use the runtime does not want its programs.
            return replace(finding, status=WARNING, message=message, cure=None)
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
        switch("--fix", "do what is proposed, one by one, where it is safe; asks before each"),
        switch("--yes", "with --fix: do not ask"),
        JSON,
        examples=_EXAMPLES,
        load=_load,
    ),
)
