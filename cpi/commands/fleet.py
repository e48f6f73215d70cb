"""All configured runtimes, queried one after the other."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from cpi import cid
from cpi.commands.vm_names import find
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.log import Log
from cpi.runtime import Runtime
from cpi.text import printable
from cpi.views import VMView
from runtimes import catalog

Result = TypeVar("Result")


class Fleet(catalog.Runtimes):
    """A context manager. failed: runtimes that could not be queried; see stderr for the errors."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, Log("error"))
        self.failed: set[str] = set()

    @property
    def status(self) -> int:
        """Return the exit status: 1 when a runtime could not be queried."""
        return 1 if self.failed else 0

    def each(
        self, ask: Callable[[Runtime], Sequence[Result]], names: Sequence[str] | None = None
    ) -> list[Result]:
        """Query all runtimes (or `names`); warn once of each that fails, then leave it out."""
        results: list[Result] = []
        for name in catalog.configured(self.config) if names is None else names:
            if name in self.failed:
                continue
            try:
                results += ask(self.get(name))
            except CPIError as error:
                self.failed.add(name)
                print(printable(f"bosh-cpi: {name}: {error.message}"), file=sys.stderr)
        return results

    def vm(self, text: str) -> VMView:
        """Find a VM by what the operator typed. Raises VMNotFound, or CPIError when ambiguous."""
        named = cid.named_runtime(text, cid.VM)
        names = catalog.configured(self.config) if named is None else (named,)
        known = [name for name in names if name in catalog.REGISTRY]
        return find(text, self.each(lambda runtime: runtime.vms(), known))
