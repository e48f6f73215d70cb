"""The `cpi` command: one JSON request on stdin, one JSON response on stdout, exit status 0.

BOSH starts this twice for every operation (`info` comes first), so it imports as little as it can;
and BOSH takes a second line on stdout or another exit status for a crash, so both are guarded here.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from contextlib import suppress

from cpi.errors import CPIError, Elsewhere, Interrupted, InvalidCall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpi.log import Log

CONFIG_OPTIONS = ("-c", "--config", "--configPath", "-configPath")

HELP = """\
usage: cpi [-c cpi.json]

Run BOSH VMs as containers. Reads one BOSH CPI request (JSON) from stdin until its end and writes
one JSON response to stdout. Logs go to stderr. The exit status is 0 even when the response is an
error. With `endpoint` in the configuration, the host's service (bosh-cpi serve) does the work.

  -c, --config, --configPath FILE   configuration (JSON); without it, defaults
  -h, --help                        show this
      --version                     show the version

Try it:

  echo '{"method":"info","arguments":[],"context":{}}' | cpi
  echo '{"method":"has_vm","arguments":["vm-1"],"context":{},"api_version":2}' |
    cpi -c cpi.json

A request has method, arguments (a list), context (an object) and, from API 2 on, api_version. The
methods are those of https://bosh.io/docs/cpi-api-v2/; docs/configuration.md lists what goes into
cpi.json.
"""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LAST_RESORT = (
    b'{"result": null, "error": {"type": "Bosh::Clouds::CpiError", "message": '
    b'"the CPI failed and could not even say why", "ok_to_retry": false}, "log": ""}'
)


def main() -> None:
    """Answer the request on stdin and end the process with status 0."""
    answer_to = _guard_stdout()
    try:
        output = _output(sys.argv[1:])
    except Elsewhere as elsewhere:
        output = _installed(elsewhere, answer_to)
    except BaseException:  # a signal in the few lines outside _response's own guard
        output = _LAST_RESORT
    _write(answer_to, output)
    for stream in (sys.stdout, sys.stderr):  # what libraries printed goes to stderr
        with suppress(Exception):
            stream.flush()
    # Not sys.exit: threads, exit handlers and a closed stderr could still change the status.
    os._exit(0)


def _guard_stdout() -> int:
    """Return a private copy of stdout, and send whatever else is written to stdout to stderr.

    Libraries and child processes print there too. The copy's number is above those of the standard
    streams, whichever of them are closed, and child processes do not inherit it.
    """
    try:
        answer_to = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        os._exit(0)  # stdout is closed: no one can read the response
    try:
        os.dup2(2, 1)
    except OSError:  # no stderr either
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
    return answer_to


def _output(argv: Sequence[str]) -> bytes:
    """Return what goes to stdout for this command line."""
    if any(option in ("-h", "--help") for option in argv):
        return HELP.encode()
    if "--version" in argv:
        from cpi.version import VERSION

        return f"cpi {VERSION}\n".encode()
    return _response(argv)


def _response(argv: Sequence[str]) -> bytes:
    """Return the response to the request on stdin, whatever happens.

    Its `log` has only lines that are not on stderr: a director keeps both.
    """
    from cpi import documents
    from cpi.log import Log

    log = Log()

    def failure(error: CPIError) -> dict[str, object]:
        return {**documents.failure(error, log), "log": log.unwritten}

    try:
        _raise_on_signals()
        # Read first, even if it is for nothing: its writer must not meet a closed pipe.
        request = _read_request()
        response = _answer(argv, request, log)
    except Elsewhere:
        raise
    except CPIError as error:
        log.error(error.message)
        response = failure(error)
    except Exception as error:
        response = failure(CPIError(f"the CPI failed: {type(error).__name__}: {error}"))
    except BaseException as error:
        _ignore_signals()
        reason = str(error) or type(error).__name__
        log.error(f"interrupted by {reason}")
        response = failure(CPIError(f"interrupted by {reason}", ok_to_retry=True))
    _ignore_signals()
    try:
        return json.dumps(response, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        broken = CPIError(f"the result cannot be written as JSON: {error}")
        return json.dumps(failure(broken)).encode() + b"\n"


def _answer(argv: Sequence[str], given: bytes, log: Log) -> dict[str, object]:
    """Answer a request: by the service if one is configured, else here. Raises CPIError."""
    from cpi import documents

    path = _config_file(argv)
    document = {} if path is None else documents.load_file(path)
    request = documents.require_object(documents.decode(given))
    context = request.get("context")
    context = context if isinstance(context, dict) else {}
    if document.get("endpoint") or context.get("endpoint"):
        from cpi.client import forward

        endpoint = forward.endpoint_of(document, context)
        response = forward.forward(endpoint, request, document, log)
        return {**response, "log": f"{log.unwritten}{response['log']}"}
    try:
        from cpi.config.load import config_of
        from cpi.contract.handle import handle
    except ModuleNotFoundError:  # only the thin client is installed
        from cpi.client import installed

        raise Elsewhere(installed.program(document), given) from None
    source = "configuration" if path is None else documents.named(path)
    return {**handle(request, config_of(document, source), log), "log": log.unwritten}


def _installed(elsewhere: Elsewhere, answer_to: int) -> bytes:
    """Have the installed CPI answer; return the response if it cannot."""
    from cpi.client import installed

    try:
        installed.run(elsewhere, sys.argv[1:], answer_to)
    except OSError as error:
        from cpi.documents import failure
        from cpi.log import Log

        problem = f"cannot run the installed CPI {elsewhere.program}: {error.strerror}"
        return json.dumps(failure(CPIError(problem), Log())).encode()
    return _LAST_RESORT


def _raise_on_signals() -> None:
    """Turn the first signal that ends a process into an exception, so that work is undone.

    Later ones are ignored: they would interrupt the undoing. So are those that our parent ignores.
    """

    def interrupt(number: int, frame: object) -> None:
        _ignore_signals()
        raise Interrupted(signal.Signals(number).name)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _ignore_signals() -> None:
    """Ignore signals during what follows: an undo, or the response."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _read_request() -> bytes:
    """Return all of stdin, cut off where it is known to be too long. Raises InvalidCall."""
    from cpi.documents import REQUEST_LIMIT

    if os.isatty(0):
        sys.stderr.write("cpi: type a JSON request, then Ctrl-D; cpi --help tells more\n")
    chunks: list[bytes] = []
    size = 0
    while True:
        try:
            chunk = os.read(0, 65536)
        except OSError as error:
            raise InvalidCall(f"stdin cannot be read: {error.strerror}") from error
        if not chunk:
            return b"".join(chunks)
        if size <= REQUEST_LIMIT:
            chunks.append(chunk)
            size += len(chunk)


def _config_file(argv: Sequence[str]) -> str | None:
    """Return the configuration file that the command line names. Raises InvalidCall."""
    path = None
    words = list(argv)
    while words:
        option, has_value, value = words.pop(0).partition("=")
        if option not in CONFIG_OPTIONS:
            raise InvalidCall(f"cpi does not know the option {ascii(option)[:60]}; see cpi --help")
        if not has_value:
            if not words:
                raise InvalidCall(f"cpi: {option} needs a file; see cpi --help")
            value = words.pop(0)
        path = value
    return path


def _write(descriptor: int, output: bytes) -> None:
    """Write all of the output; nothing can be done for a reader that has gone."""
    with suppress(OSError):
        while output:
            output = output[os.write(descriptor, output) :]


if __name__ == "__main__":
    main()
