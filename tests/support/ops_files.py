"""BOSH's ops-files, as far as ours go: github.com/cppforlife/go-patch."""

import re
from copy import deepcopy
from typing import Any


def applied(document: Any, operations: list[dict[str, Any]]) -> Any:
    """Return the document after all `replace` operations.

    Raises KeyError where a path leads nowhere: only what follows a `?` is made.
    """
    result = deepcopy(document)
    for operation in operations:
        assert set(operation) == {"type", "path", "value"}, operation
        assert operation["type"] == "replace"
        _replace(result, operation["path"], deepcopy(operation["value"]))
    return result


def _replace(document: Any, path: str, value: Any) -> None:
    at, optional = document, False
    tokens = path.removeprefix("/").split("/")
    for index, token in enumerate(tokens):
        optional = optional or token.endswith("?")
        name, last = token.removesuffix("?"), index == len(tokens) - 1
        if isinstance(at, list):
            key: Any = _index(at, name, path)
            if key == len(at):
                at.append(None)
        else:
            key = name
            if key not in at and not optional and not last:
                raise KeyError(f"{path}: there is no {name}")
        if last:
            # go-patch wants a `?` after a key that is not there yet.
            if isinstance(at, dict) and key not in at and not optional:
                raise KeyError(f"{path}: there is no {name}")
            at[key] = value
            return
        if isinstance(at, dict) and at.get(key) is None:
            at[key] = [] if re.fullmatch(r"-|\d+|.*=.*", tokens[index + 1]) else {}
        at = at[key]


def _index(items: list[Any], name: str, path: str) -> int:
    if name == "-":
        return len(items)
    if name.isdigit():
        return int(name)
    key, _, wanted = name.partition("=")
    found = [index for index, item in enumerate(items) if item.get(key) == wanted]
    if len(found) != 1:
        raise KeyError(f"{path}: {len(found)} items have {name}")
    return found[0]
