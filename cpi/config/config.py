"""The CPI's configuration: the file given by `-c`, and what overrides it in a call's context.

BOSH merges a cpi-config's properties flat into the context, beside keys of its own; so a key that
is unknown is an error in the file, but only a name in the log when it comes with the context. Every
key is declared once, in cpi.config.general_keys, or in the keys of the service or of its runtime,
and docs/configuration.md is made from that.
"""

from __future__ import annotations

import re

from cpi import documents
from cpi.errors import CPIError
from cpi.text import kind, shown
from runtimes import catalog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# What the director and the CLI put into the context themselves.
CONTEXT_OWN = frozenset({"director_uuid", "request_id", "vm"})


class Key:
    """One configuration key. Not a dataclass: `info` makes all of them.

    name: dotted path in the JSON. type: string, path, integer, boolean, list of strings, list of
    paths or object. unit: for the documentation. pattern: regular expression for the whole string.
    least: smallest integer. context_only_forbids: the context may set false but not true, so that
    the host has the last word. client: a client of the host's service may set it with its calls.
    """

    __slots__ = (
        "choices",
        "client",
        "context_only_forbids",
        "default",
        "doc",
        "least",
        "name",
        "pattern",
        "type",
        "unit",
    )

    def __init__(
        self,
        name: str,
        type: str,
        default: object,
        unit: str,
        doc: str,
        *,
        choices: tuple[str, ...] = (),
        pattern: str = "",
        least: int | None = None,
        context_only_forbids: bool = False,
        client: bool = False,
    ) -> None:
        self.name = name
        self.type = type
        self.default = default
        self.unit = unit
        self.doc = doc
        self.choices = choices
        self.pattern = pattern
        self.least = least
        self.context_only_forbids = context_only_forbids
        self.client = client


def declared() -> dict[str, Key]:
    """Return every key by name: the general ones, the service's, then the runtimes'."""
    from cpi.config import general_keys  # which declare them by Key
    from cpi.service import service_keys

    return {key.name: key for key in (*general_keys.KEYS, *service_keys.KEYS, *catalog.keys())}


class Config:
    """All keys with their values. Asking for a key that is not declared raises KeyError."""

    __slots__ = ("_keys", "_values")

    def __init__(self, keys: dict[str, Key], values: dict[str, object]) -> None:
        self._keys = keys
        self._values = values

    @classmethod
    def load(cls, path: str | None) -> Config:
        """Read the configuration file; None gives the defaults.

        Raises CPIError naming the file, and the key or the reason.
        """
        if path is None:
            return cls.of({})
        return cls.of(documents.load_file(path), documents.named(path))

    @classmethod
    def of(cls, document: Mapping[str, object], source: str = "configuration") -> Config:
        """Check a configuration document. Raises CPIError naming `source` and the keys."""
        keys = declared()
        values = {name: key.default for name, key in keys.items()}
        unknown = []
        for name, value in _leaves(document, keys, source):
            if name in keys:
                values[name] = _checked(keys[name], value, source)
            else:
                unknown.append(name)
        if unknown:
            raise CPIError(f"{source} has unknown keys: {suggestions(unknown, keys)}")
        return cls(keys, values)

    def with_context(
        self, *documents: Mapping[str, object], of_client: bool = False
    ) -> tuple[Config, list[str]]:
        """Override this by what came with a call; return that and the names of the ignored keys.

        documents: the call's context, after the client's own configuration where it has one; the
        last one that sets a key wins. A key of type object is replaced as a whole. The director's
        own keys are neither used nor reported. of_client: they come from a client of the service,
        which sets only keys that are its own business. Raises CPIError for a key with a wrong
        value.
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
            checked = _checked(key, value, "context")
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
        value = self._values[name]
        if not isinstance(value, str):
            raise KeyError(f"{name} is no string")
        return value

    def integer(self, name: str) -> int:
        """Return a key of type integer, in the key's unit."""
        value = self._values[name]
        if not isinstance(value, int) or isinstance(value, bool):
            raise KeyError(f"{name} is no integer")
        return value

    def flag(self, name: str) -> bool:
        """Return a key of type boolean."""
        value = self._values[name]
        if not isinstance(value, bool):
            raise KeyError(f"{name} is no boolean")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a key of type list of strings or list of paths."""
        value = self._values[name]
        if not isinstance(value, tuple):
            raise KeyError(f"{name} is no list")
        return value

    def mapping(self, name: str) -> Mapping[str, object]:
        """Return a key of type object."""
        value = self._values[name]
        if not isinstance(value, dict):
            raise KeyError(f"{name} is no object")
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
        elif isinstance(value, dict):
            yield from _leaves(value, keys, source, name + ".")
        else:
            raise CPIError(f"{source}: {name} must be an object, got {kind(value)}")


def _checked(key: Key, value: object, source: str) -> object:
    """Return a value as Config keeps it. Raises CPIError naming the key and what it takes."""
    wanted = key.type
    if wanted.startswith("list of"):
        if isinstance(value, list) and all(_fits(key, item, wanted[8:-1]) for item in value):
            return tuple(value)
    elif _fits(key, value, wanted):
        return value
    # The value itself is not shown: it may be a password in the wrong place.
    raise CPIError(f"{source}: {key.name} must be {_wanted(key)}, got {kind(value)}")


def _fits(key: Key, value: object, wanted: str) -> bool:
    """Tell whether one value is of the type and in the range that the key takes."""
    if wanted == "object":
        return isinstance(value, dict)
    if wanted == "boolean":
        return isinstance(value, bool)
    if wanted == "integer":
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return key.least is None or value >= key.least
    if not isinstance(value, str) or "\0" in value:
        return False
    if wanted == "path":
        clean = value.startswith("/") and ".." not in value.split("/")
        return clean or (value == "" and key.default == "")
    if key.choices:
        return value in key.choices
    if value == "" and key.default == "":
        return True
    return not key.pattern or re.fullmatch(key.pattern, value) is not None


def _wanted(key: Key) -> str:
    """Describe what a key takes."""
    if key.choices:
        return f"one of {', '.join(key.choices)}"
    if key.pattern:
        return f"a string that matches {key.pattern}"
    if key.least is not None:
        return f"an integer of at least {key.least}"
    absolute = " (absolute, without ..)" if "path" in key.type else ""
    return f"{'an' if key.type[0] in 'aeiou' else 'a'} {key.type}{absolute}"


def suggestions(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Name unknown names, each with the known one it looks like."""
    import difflib  # only a wrong file pays for it

    parts = []
    known = list(known)
    for name in unknown:
        close = difflib.get_close_matches(name, known, 1)
        parts.append(shown(name, 60) + (f" (did you mean {close[0]}?)" if close else ""))
    return ", ".join(parts)
