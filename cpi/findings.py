"""Checks of a host, for `bosh-cpi doctor`: each is one function that returns one finding.

    CHECKS = Checks[Config]()

    @CHECKS.add("loop devices")
    def _loop_devices(config: Config) -> Finding:
        ...

What a check raises of the CPI's and the system's errors is a failure with that message.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cpi.errors import CPIError

OK, WARNING, FAILURE = "ok", "warning", "failure"

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """What a check found, in one sentence, and what mends it: a command, or lines of cpi.json."""

    status: str
    told: str
    mend: str = ""
    check: str = ""


def ok(told: str) -> Finding:
    """All is well."""
    return Finding(OK, told)


def warning(told: str, mend: str) -> Finding:
    """Works, or is not needed by everyone, but somebody may stumble over it."""
    return Finding(WARNING, told, mend)


def failure(told: str, mend: str) -> Finding:
    """VMs cannot be made or kept like this."""
    return Finding(FAILURE, told, mend)


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
        """Run all checks; a failed one does not keep the others from running."""
        return [run(name, lambda check=check: check(subject)) for name, check in self._checks]  # type: ignore[misc]


def run(name: str, check: Callable[[], Finding]) -> Finding:
    """Run one check."""
    try:
        found = check()
    except CPIError as error:
        found = failure(error.message, "")
    except OSError as error:
        found = failure(f"{error.filename}: {error.strerror}", "")
    return replace(found, check=name)
