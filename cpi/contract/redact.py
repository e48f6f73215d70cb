"""Redacts secrets in the messages of unexpected exceptions, such as a library's KeyError.

Errors of cpi.errors show no secrets.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "<redacted>"

# Replacing shorter values ("tcp", "8080") would garble messages.
_MIN_LENGTH = 4


def redacted(text: str, *documents: object) -> str:
    """Return text without any of the strings and numbers in these JSON documents."""
    secrets = {
        part for document in documents for leaf in _leaves(document) for part in _parts(leaf)
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MARK)
    return text


def _leaves(value: object) -> Iterator[str]:
    """Yield every string and number in a document, but not the names of its keys."""
    waiting = [value]  # no recursion: the document may be nested as deeply as its parser allowed
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
            yield str(value)


def _parts(leaf: str) -> Iterator[str]:
    """Yield the forms in which a leaf may appear: by line, escaped, and the password of a URL."""
    for line in leaf.splitlines():
        for form in (line, ascii(line)[1:-1], json.dumps(line)[1:-1]):
            if len(form) >= _MIN_LENGTH:
                yield form
    if "://" in leaf and "@" in leaf:
        user, _, password = leaf.split("://", 1)[1].rpartition("@")[0].partition(":")
        yield from (part for part in (user, password) if len(part) >= _MIN_LENGTH)
