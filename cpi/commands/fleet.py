"""All runtimes that are configured, asked one after the other."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
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


class Fleet:
    """Use with `with`. failed: runtimes that could not be asked; each was told of on stderr."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.failed: set[str] = set()
        self._loaded: dict[str, Runtime] = {}

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for runtime in self._loaded.values():
            with suppress(CPIError):
                runtime.close()

    @property
    def names(self) -> list[str]:
        """The usual runtime, then others that are configured."""
        return configured(self.config)

    @property
    def status(self) -> int:
        """The exit status: 1 when a runtime could not be asked."""
        return 1 if self.failed else 0

    def runtime(self, name: str) -> Runtime:
        """Load a runtime. Raises CPIError."""
        if name not in self._loaded:
            self._loaded[name] = catalog.load(name)(self.config, Log("error"))
        return self._loaded[name]

    def each(
        self, ask: Callable[[Runtime], Sequence[Result]], names: Sequence[str] | None = None
    ) -> list[Result]:
        """Ask every runtime; one that cannot be asked is a warning, and keeps no other back.

        It is not asked again, so that there is one warning of it.
        """
        found: list[Result] = []
        for name in self.names if names is None else names:
            if name in self.failed:
                continue
            try:
                found += ask(self.runtime(name))
            except CPIError as error:
                self.failed.add(name)
                print(f"bosh-cpi: {name}: {error.message}", file=sys.stderr)
        return found

    def vm(self, text: str) -> VMView:
        """The VM that a person means. Raises VMNotFound, and CPIError when it may be several."""
        try:
            names = [cid.runtime_of(text, cid.VM)]
        except CPIError:  # no CID
            names = self.names
        known = [name for name in names if name in catalog.REGISTRY]
        return find(text, self.each(lambda runtime: runtime.vms(), known))


def configured(config: Config) -> list[str]:
    """The runtimes that a configuration names, the usual one first."""
    return list(dict.fromkeys([config.text("runtime"), *config.strings("runtimes")]))
