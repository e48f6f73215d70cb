"""A configuration key: its name, the values it takes, and what it means."""

from __future__ import annotations

import re

from cpi import validate
from cpi.errors import CPIError


class Key:
    """A configuration key. Not a dataclass: `info` makes all of them.

    name: dotted path in the JSON. type: string, path, integer, boolean, list of strings, list of
    paths or object. unit: what an integer counts. pattern: regular expression for the whole string.
    minimum: smallest integer, besides a default of 0. context_only_forbids: the context may set
    false but not true, so that the host has the last word. client: a client of the host's service
    may set it with its calls.
    """

    def __init__(
        self,
        name: str,
        *,
        doc: str,
        type: str = "string",
        default: object = "",
        unit: str = "",
        choices: tuple[str, ...] = (),
        pattern: str = "",
        minimum: int = 0,
        context_only_forbids: bool = False,
        client: bool = False,
    ) -> None:
        self.name = name
        self.type = type
        self.default = default
        self.doc = doc
        self.unit = unit
        self.choices = choices
        self.pattern = pattern
        self.minimum = minimum
        self.context_only_forbids = context_only_forbids
        self.client = client

    def checked(self, value: object, source: str) -> object:
        """Return a value as Config keeps it. Raises CPIError naming the key and what it takes."""
        where = f"{source}: {self.name}"
        if self.type == "object":
            return validate.mapping(where, value, CPIError)
        if self.type == "boolean":
            return validate.flag(where, value, CPIError)
        if self.type == "integer":
            if type(value) is int and value == 0 == self.default:  # a bool is another type
                return value
            return validate.integer(self.minimum, unit=self.unit)(where, value, CPIError)
        if self.type.startswith("list of"):
            return validate.list_of(self._string)(where, value, CPIError)
        return self._string(where, value, CPIError)

    def _string(self, where: str, value: object, error: type[CPIError]) -> str:
        text = validate.text(where, value, error)
        if not self._accepts(text):
            # The string itself is not shown: it may be a password in the wrong place.
            raise validate.wrong(where, self._wanted(), text, error)
        return text

    def _accepts(self, text: str) -> bool:
        if text == "" == self.default:
            return True
        if "path" in self.type:
            return validate.is_path(text, "..")
        if self.choices:
            return text in self.choices
        return "\0" not in text and (not self.pattern or bool(re.fullmatch(self.pattern, text)))

    def _wanted(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.pattern:
            return f"a string that matches {self.pattern}"
        return "an absolute path without .." if "path" in self.type else "a string without NUL"
