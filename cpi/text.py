"""How values that come from outside are shown in messages and logs."""

_TYPES = {str: "a string", int: "a number", float: "a fraction", list: "a list", dict: "an object"}


def type_name(value: object) -> str:
    """Name a JSON value's type for a message."""
    if isinstance(value, bool):
        return "a boolean"
    return _TYPES.get(type(value), "null")


def printable(text: str, kept: str = "\n\t") -> str:
    """Return foreign text with escapes in place of what a terminal would obey, but for `kept`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def shown(text: str, limit: int = 120) -> str:
    """Return foreign text quoted and shortened, safe to put into a message or a log."""
    quoted = ascii(text)
    return quoted if len(quoted) <= limit else quoted[:limit] + "…'"
