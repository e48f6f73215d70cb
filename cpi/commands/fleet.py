"""All runtimes that are configured, asked one after the other."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from cpi import cid
from cpi.commands.vm_names import find
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.log import Log
from cpi.runtime import Runtime
from cpi.views import VMView
from runtimes import catalog

Result = TypeVar("Result")


class Fleet(catalog.Runtimes):
    """Use with `with`. failed: runtimes that could not be asked; each was told of on stderr."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, Log("error"))
        self.failed: set[str] = set()

    @property
    def status(self) -> int:
        """The exit status: 1 when a runtime could not be asked."""
        return 1 if self.failed else 0

    def each(
        self, ask: Callable[[Runtime], Sequence[Result]], names: Sequence[str] | None = None
    ) -> list[Result]:
        """Ask every runtime; one that cannot be asked is a warning, and keeps no other back.

        It is not asked again, so that there is one warning of it.
        """
        found: list[Result] = []
        for name in catalog.configured(self.config) if names is None else names:
            if name in self.failed:
                continue
            try:
                found += ask(self.get(name))
            except CPIError as error:
                self.failed.add(name)
                print(f"bosh-cpi: {name}: {error.message}", file=sys.stderr)
        return found

    def vm(self, text: str) -> VMView:
        """The VM that a person means. Raises VMNotFound, and CPIError when it may be several."""
        named = cid.named_runtime(text, cid.VM)
        names = catalog.configured(self.config) if named is None else (named,)
        known = [name for name in names if name in catalog.REGISTRY]
        return find(text, self.each(lambda runtime: runtime.vms(), known))
