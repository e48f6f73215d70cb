"""BOSH's ops-files (github.com/cppforlife/go-patch), as far as ours need them."""

import re
from copy import deepcopy
from typing import Any


def applied(document: Any, operations: list[dict[str, Any]]) -> Any:
    """Return the document after all `replace` operations.

    Raises KeyError for a path that does not exist: only keys after a `?` are created.
    """
    result = deepcopy(document)
    for operation in operations:
        assert set(operation) == {"type", "path", "value"}, operation
        assert operation["type"] == "replace"
        _replace(result, operation["path"], deepcopy(operation["value"]))
    return result


def _replace(document: Any, path: str, value: Any) -> None:
    node, optional = document, False
    tokens = path.removeprefix("/").split("/")
    for index, token in enumerate(tokens):
        optional = optional or token.endswith("?")
        name, last = token.removesuffix("?"), index == len(tokens) - 1
        if isinstance(node, list):
            key: Any = _index(node, name, path)
            if key == len(node):
                node.append(None)
        else:
            key = name
            if key not in node and not optional and not last:
                raise KeyError(f"{path}: there is no {name}")
        if last:
            # go-patch wants a `?` after a key that is not there yet.
            if isinstance(node, dict) and key not in node and not optional:
                raise KeyError(f"{path}: there is no {name}")
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = [] if re.fullmatch(r"-|\d+|.*=.*", tokens[index + 1]) else {}
        node = node[key]


def _index(items: list[Any], name: str, path: str) -> int:
    if name == "-":
        return len(items)
    if name.isdigit():
        return int(name)
    key, _, wanted = name.partition("=")
    matches = [index for index, item in enumerate(items) if item.get(key) == wanted]
    if len(matches) != 1:
        raise KeyError(f"{path}: {len(matches)} items have {name}")
    return matches[0]
