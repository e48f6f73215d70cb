"""The JSON documents that come in, and the response to a broken one.

The thin client needs this too, so it imports only what it must.
"""

from __future__ import annotations

import json

from cpi.errors import CPIError, InvalidCall
from cpi.text import shown, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.log import Log

# 8 MiB. Real requests have a few KiB, of certificates mostly.
REQUEST_LIMIT = 8 * 1024 * 1024

_FILE_LIMIT = 1024 * 1024  # bytes


def decode(request: bytes) -> object:
    """Parse a request. Raises InvalidCall naming what is wrong with it."""
    if len(request) > REQUEST_LIMIT:
        raise InvalidCall(f"the request is larger than {REQUEST_LIMIT} bytes (8 MiB)")
    if not request.strip():
        raise InvalidCall("the request is empty; it must be one JSON object")
    try:
        return json.loads(request.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidCall(
            f"the request is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
    except RecursionError as error:
        raise InvalidCall("the request is nested too deeply") from error
    except ValueError as error:
        raise InvalidCall(f"the request is not JSON: {error}") from error


def _no_constant(name: str) -> None:
    """Refuse NaN and infinities, which are not JSON although Python reads them."""
    raise ValueError(f"{name} is no JSON number")


def require_object(document: object) -> dict[str, object]:
    """Return a request that is a JSON object. Raises InvalidCall for any other."""
    if not isinstance(document, dict):
        raise InvalidCall(f"the request must be a JSON object, got {type_name(document)}")
    return document


def failure(error: CPIError, log: Log, *, to_director: bool = False) -> dict[str, object]:
    """Return the response for an error, by the types that the CLI or a director knows."""
    type_ = (to_director and error.director_type) or error.type
    details = {"type": type_, "message": error.message, "ok_to_retry": error.ok_to_retry}
    return {"result": None, "error": details, "log": log.text}


def load_file(path: str) -> Mapping[str, object]:
    """Read a configuration file, a JSON object. Raises CPIError naming file and reason."""
    try:
        with open(path, "rb") as file:
            content = file.read(_FILE_LIMIT + 1)
        if len(content) > _FILE_LIMIT:
            raise ValueError(f"larger than {_FILE_LIMIT} bytes")
        document = json.loads(content.decode("utf-8"))
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
    except OSError as error:
        raise CPIError(f"cannot read {named(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise CPIError(f"{named(path)} cannot be used: {error}") from error
    return document


def named(path: str) -> str:
    """Return how messages name a configuration file."""
    return f"configuration file {shown(path)}"
