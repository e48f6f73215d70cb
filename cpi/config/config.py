"""The CPI's configuration: all keys with their values, from the file given by `-c`.

The keys are handed in; cpi.config.load has them all. What a call overrides is in
cpi.config.overrides.
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


class Config:
    """All keys with their values. Asking for a key that is not declared raises KeyError."""

    __slots__ = ("_keys", "_values")

    def __init__(self, keys: dict[str, Key], values: dict[str, object]) -> None:
        self._keys = keys
        self._values = values

    @classmethod
    def of(cls, document: Mapping[str, object], keys: dict[str, Key], source: str) -> Config:
        """Check a configuration document. Raises CPIError naming `source` and the keys."""
        given = dict(leaves(document, keys, source))
        validate.known_keys(source, given, keys, CPIError)
        values = {name: key.default for name, key in keys.items()}
        return cls(keys, values | {name: keys[name].checked(given[name], source) for name in given})

    @property
    def keys(self) -> Mapping[str, Key]:
        """Return all keys by name."""
        return self._keys

    def replaced(self, name: str, value: object) -> Config:
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


def leaves(
    document: Mapping[str, object], keys: Mapping[str, Key], source: str, prefix: str = ""
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
            yield from leaves(section, keys, source, name + ".")
