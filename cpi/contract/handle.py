"""One request in, one response out: the same for the `cpi` process and for a host service.

Nothing here belongs to the process: no globals, no stdin, no stdout. Any Exception becomes the
response's error; others (an interrupt) pass through, after runtimes have undone their work.
"""

from __future__ import annotations

import errno
import time

from cpi.config.overrides import overridden
from cpi.contract import methods
from cpi.documents import decode, failure, require_object
from cpi.errors import CPIError, InvalidCall, NoDiskSpace, NotSupported, VMCreationFailed
from cpi.text import shown, type_name
from runtimes import catalog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    from cpi.config.config import Config
    from cpi.log import Log

    class CallGuard(Protocol):
        """Checks what a client of the host's service asks for."""

        client: str

        def run(
            self, call: methods.Call, arguments: Sequence[object], go: Callable[[], object]
        ) -> object: ...


def handle(
    request: object,
    config: Config,
    log: Log,
    guard: CallGuard | None = None,
    client_config: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Answer one request, given as bytes of JSON or as the object that they are.

    guard: enforces what the host allows a client of the service. client_config: its own
    configuration file, which overrides `config` and is overridden by the request's context. Raises
    no Exception.
    """
    try:
        document = decode(request) if isinstance(request, bytes) else request
        name, given, context, api_version = _envelope(document)
    except CPIError as error:
        return failure(error, log)
    except Exception as error:  # out of memory, most likely
        return failure(_unexpected("request", error, log, request, client_config), log)
    overrides = (client_config or {}, context)
    started = time.monotonic()
    try:
        result = _run(name, given, overrides, api_version, config, log, guard)
    except Exception as error:
        typed = error if isinstance(error, CPIError) else None
        if typed is None:
            objects = [value for value in given if isinstance(value, dict)]
            typed = _unexpected(name, error, log, objects, overrides, _agent_secrets(config))
        # The director asks for what a runtime may not support, and then does it another way.
        write = log.info if isinstance(typed, NotSupported) else log.error
        write(f"{name} failed after {_since(started)}: {typed.type}: {typed.message}")
        # Only a director numbers its requests.
        return failure(typed, log, to_director="request_id" in context)
    log.info(f"{name} done in {_since(started)}{_created(name, result)}")
    return {"result": result, "error": None, "log": log.text}


def _envelope(document: object) -> tuple[str, list[object], dict[str, object], int]:
    """Return method, arguments, context and api_version. Raises InvalidCall."""
    document = require_object(document)
    name = document.get("method")
    if not isinstance(name, str):
        got = type_name(name) if "method" in document else "none"
        raise InvalidCall(f"the request's method must be a string, got {got}")
    given = document.get("arguments")
    if not isinstance(given, list):
        got = type_name(given) if "arguments" in document else "none"
        raise InvalidCall(f"the request's arguments must be a list, got {got}")
    context = document.get("context")
    if context is not None and not isinstance(context, dict):
        got = type_name(context)
        raise InvalidCall(f"the request's context must be an object or null, got {got}")
    api_version = document.get("api_version")
    if api_version is None:  # the director's info has none
        api_version = 1
    if type(api_version) is not int or not 1 <= api_version <= methods.API_VERSION:
        got = str(api_version)[:20] if type(api_version) is int else type_name(api_version)
        raise InvalidCall(
            f"the request's api_version must be 1 to {methods.API_VERSION}, got {got}"
        )
    return name, given, context or {}, api_version


def _run(
    name: str,
    given: list[object],
    overrides: Sequence[Mapping[str, object]],
    api_version: int,
    config: Config,
    log: Log,
    guard: CallGuard | None,
) -> object:
    """Run a method. Raises what is wrong with the call, and whatever its runtime raises."""
    # Clients do not set the level of the host's own log.
    shown_level = "" if guard is None else config.text("log_level")
    config, ignored = overridden(config, *overrides, of_client=guard is not None)
    log.set_level(config.text("log_level"), shown_level)
    method = methods.find(name, api_version)
    log.info(_started(name, method, given, overrides[-1]))
    _log_ignored(ignored, config, log)
    with catalog.Runtimes(config, log) as runtimes:
        director = shown(str(overrides[-1].get("director_uuid") or ""))
        client = "" if guard is None else guard.client
        call = methods.Call(name, api_version, runtimes, client, director)
        arguments = methods.parsed(call, method, given)
        if guard is None:
            return method.run(call, *arguments)
        return guard.run(call, arguments, lambda: method.run(call, *arguments))


def _log_ignored(ignored: list[str], config: Config, log: Log) -> None:
    """Log the keys of the context that are not used, and why."""
    hosts = [name for name in ignored if config.knows(name)]
    unknown = [name for name in ignored if name not in hosts]
    for reason, names in (("", unknown), (", as they are the host's to decide", hosts)):
        if names:
            listed = ", ".join(shown(name, 60) for name in names)
            log.info(f"not used from the context{reason}: {listed}")


def _started(
    name: str, method: methods.Method, given: list[object], context: Mapping[str, object]
) -> str:
    """Return the log line for a call: CIDs and BOSH's identifiers, no other argument."""
    pairs = list(zip((parameter.name for parameter in method.parameters), given, strict=False))
    pairs = [(key, value) for key, value in pairs if key.endswith("_cid")]
    pairs += [(key, context.get(key)) for key in ("request_id", "director_uuid")]
    words = [f"{key}={shown(value)}" for key, value in pairs if isinstance(value, str)]
    return " ".join([name, *words])


def _created(name: str, result: object) -> str:
    """Return the CID that a create_* method made, for the log."""
    if not name.startswith("create_"):
        return ""
    first = result[0] if isinstance(result, list) and result else result
    return f": {shown(first)}" if isinstance(first, str) else ""


def _since(started: float) -> str:
    """Return the time since then in milliseconds."""
    return f"{(time.monotonic() - started) * 1000:.0f} ms"


def _unexpected(name: str, error: Exception, log: Log, *secret: object) -> CPIError:
    """Return the error that BOSH gets for an unexpected exception.

    Its text comes from anywhere, so all that the caller sent and the agent's own secrets are
    redacted. The traceback goes to the debug log only.
    """
    import traceback

    from cpi.contract.redact import redacted

    log.debug(redacted("".join(traceback.format_exception(error)).rstrip(), *secret))
    text = redacted(str(error), *secret)
    message = ": ".join(part for part in (name, type(error).__name__, text) if part)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoDiskSpace(message)
    return VMCreationFailed(message) if name == "create_vm" else CPIError(message)


def _agent_secrets(config: Config) -> list[object]:
    """Return the configuration's values that must not be shown."""
    return [config.text("agent.mbus"), config.mapping("agent.blobstore")]
