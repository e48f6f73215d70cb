"""Checks of a host, for `bosh-cpi doctor`: each is a function that returns a finding.

    CHECKS = Checks[Config]()

    @CHECKS.add("loop devices")
    def _loop_devices(config: Config) -> Finding:
        ...

A CPIError or OSError that a check raises is a failure with that message.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cpi.errors import CPIError

OK, WARNING, FAILURE = "ok", "warning", "failure"

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """What a check found, in one sentence, and its fix: a command, or lines of cpi.json."""

    status: str
    message: str
    fix: str = ""
    check: str = ""


def ok(message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(OK, message)


def warning(message: str, fix: str) -> Finding:
    """Return a finding that matters to some operators only."""
    return Finding(WARNING, message, fix)


def failure(message: str, fix: str) -> Finding:
    """Return a finding that keeps VMs from being created or run."""
    return Finding(FAILURE, message, fix)


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
