"""Checks of a host, for `bosh-cpi doctor`: each is a function that returns a finding.

    CHECKS = Checks[Config]()

    @CHECKS.add("loop devices")
    def _loop_devices(config: Config) -> Finding:
        ...

A CPIError or OSError that a check raises is a failure with that message.
"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cpi.errors import CPIError

OK, WARNING, FAILURE = "ok", "warning", "failure"

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Cure:
    """Programs that fix what a check found, and harm nothing else: `bosh-cpi doctor --fix`.

    text: the same in brief, for the operator to read or type.
    """

    text: str
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Finding:
    """What a check found, in one sentence, and its fix: a command, or lines of cpi.json.

    cure: the fix as commands, if it is one that `bosh-cpi doctor --fix` may do.
    """

    status: str
    message: str
    fix: str = ""
    check: str = ""
    cure: Cure | None = None


def ok(message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(OK, message)


def warning(message: str, fix: str | Cure) -> Finding:
    """Return a finding that matters to some operators only."""
    return _fixable(WARNING, message, fix)


def failure(message: str, fix: str | Cure) -> Finding:
    """Return a finding that keeps VMs from being created or run."""
    return _fixable(FAILURE, message, fix)


def _fixable(status: str, message: str, fix: str | Cure) -> Finding:
    if isinstance(fix, Cure):
        return Finding(status, message, fix.text, cure=fix)
    return Finding(status, message, fix)


def commands(*words: Sequence[str]) -> Cure:
    """Return a cure by these commands, one after the other."""
    return Cure(" && ".join(map(shlex.join, words)), tuple(map(tuple, words)))


def packages(*names: str) -> Cure:
    """Return a cure by Debian packages; apt removes none for them."""
    options = ("--yes", "--no-install-recommends", "--no-remove")
    return Cure(f"apt-get install {' '.join(names)}", (("apt-get", "install", *options, *names),))


def bosh_cpi(*words: str, text: str = "") -> Cure:
    """Return a cure by a command of this program. text: the same as the operator types it."""
    program = os.path.join(sys.prefix, "bin", "bosh-cpi")
    return Cure(text or shlex.join(("bosh-cpi", *words)), ((program, *words),))


class Checks(Generic[Subject]):
    """Checks of one subject, in the order in which they are added."""

    def __init__(self) -> None:
        self._checks: list[tuple[str, Callable[[Subject], Finding]]] = []

    def add(
        self, name: str
    ) -> Callable[[Callable[[Subject], Finding]], Callable[[Subject], Finding]]:
        """Add a function as the check of this name."""

        def added(check: Callable[[Subject], Finding]) -> Callable[[Subject], Finding]:
            self._checks.append((name, check))
            return check

        return added

    def run(self, subject: Subject) -> list[Finding]:
        """Run all checks; a failed one does not block the others."""
        return [run(name, lambda check=check: check(subject)) for name, check in self._checks]  # type: ignore[misc]


def run(name: str, check: Callable[[], Finding]) -> Finding:
    """Run one check."""
    try:
        finding = check()
    except CPIError as error:
        finding = failure(error.message, "")
    except OSError as error:
        finding = failure(f"{error.filename}: {error.strerror}", "")
    return replace(finding, check=name)
