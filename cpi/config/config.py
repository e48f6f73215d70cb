"""The CPI's configuration: the file given by `-c`, and what overrides it in a call's context.

BOSH merges a cpi-config's properties flat into the context, beside keys of its own; so a key that
is unknown is an error in the file, and only logged when it comes with the context. The keys are
handed in; cpi.config.load has them all.
"""

from __future__ import annotations

from cpi import validate
from cpi.errors import CPIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeVar

    from cpi.config.key import Key

    Value = TypeVar("Value")

# What the director and the CLI put into the context themselves.
CONTEXT_OWN = frozenset({"director_uuid", "request_id", "vm"})


class Config:
    """All keys with their values. Asking for a key that is not declared raises KeyError."""

    __slots__ = ("_keys", "_values")

    def __init__(self, keys: dict[str, Key], values: dict[str, object]) -> None:
        self._keys = keys
        self._values = values

    @classmethod
    def of(cls, document: Mapping[str, object], keys: dict[str, Key], source: str) -> Config:
        """Check a configuration document. Raises CPIError naming `source` and the keys."""
        given = dict(_leaves(document, keys, source))
        validate.known_keys(source, given, keys, CPIError)
        values = {name: key.default for name, key in keys.items()}
        return cls(keys, values | {name: keys[name].checked(given[name], source) for name in given})

    def with_context(
        self, *documents: Mapping[str, object], of_client: bool = False
    ) -> tuple[Config, list[str]]:
        """Override this by what came with a call; return that and the names of the ignored keys.

        documents: the call's context, after the client's own configuration where it has one; the
        last one that sets a key wins. A key of type object is replaced as a whole. The director's
        own keys are neither used nor reported. of_client: they come from a client of the service,
        which may set only keys marked `client`. Raises CPIError for a wrong value.
        """
        given: dict[str, object] = {}
        for document in documents:
            own = {name: value for name, value in document.items() if name not in CONTEXT_OWN}
            given.update(_leaves(own, self._keys, "context"))
        values = dict(self._values)
        ignored = []
        for name, value in given.items():
            key = self._keys.get(name)
            if key is None or (of_client and not key.client):
                ignored.append(name)
                continue
            checked = key.checked(value, "context")
            if key.context_only_forbids and checked and not self._values[name]:
                ignored.append(name)
            else:
                values[name] = checked
        return Config(self._keys, values), ignored

    def replaced(self, name: str, value: str | tuple[str, ...]) -> Config:
        """Return this with another value of a key, as its getter returns it."""
        if name not in self._keys:
            raise KeyError(name)
        return Config(self._keys, {**self._values, name: value})

    def knows(self, name: str) -> bool:
        """Tell whether there is such a key."""
        return name in self._keys

    def text(self, name: str) -> str:
        """Return a key of type string or path."""
        return self._get(name, str)

    def integer(self, name: str) -> int:
        """Return a key of type integer, in the key's unit."""
        return self._get(name, int)

    def flag(self, name: str) -> bool:
        """Return a key of type boolean."""
        return self._get(name, bool)

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a key of type list of strings or list of paths."""
        return self._get(name, tuple)

    def mapping(self, name: str) -> Mapping[str, object]:
        """Return a key of type object."""
        return self._get(name, dict)

    def _get(self, name: str, type_: type[Value]) -> Value:
        value = self._values[name]
        if not isinstance(value, type_) or isinstance(value, bool) != (type_ is bool):
            raise KeyError(f"{name} is not of type {type_.__name__}")
        return value


def _leaves(
    document: Mapping[str, object], keys: dict[str, Key], source: str, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield dotted names and values; a section such as `agent` is descended into, a key is not.

    null counts as not set: templates render it for properties without a value.
    """
    for part, value in document.items():
        name = prefix + part
        if value is None:
            continue
        if name in keys or not any(known.startswith(name + ".") for known in keys):
            yield name, value
        else:
            section = validate.mapping(f"{source}: {name}", value, CPIError)
            yield from _leaves(section, keys, source, name + ".")
