"""The `cpi` process: one JSON object on stdout and exit status 0, whatever happens."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cpi.documents import REQUEST_LIMIT
from cpi.version import VERSION
from runtimes import catalog
from testing.patience import PATIENCE
from testing.repository import REPOSITORY
from tests.support.cpi_calls import request
from tests.support.processes import ended

CPI = [sys.executable, "-m", "cpi.main"]

# Registers a runtime of the test's own, whose has_vm is the given body, and is the CPI.
WITH_RUNTIME = """
import os, signal, subprocess, sys, time
from cpi.main import main
from runtimes import catalog
from tests.support import fake_config, fake_runtime

class Own(fake_runtime.FakeRuntime):
    def has_vm(self, vm_cid):
{body}

fake_runtime.Own = Own
catalog.REGISTRY["fake"] = fake_config.FAKE
fake_config.FAKE.class_path = "tests.support.fake_runtime:Own"
main()
"""

HAS_VM = request("has_vm", "fake-vm-1")


def run(
    stdin: bytes, *options: str, argv: list[str] | None = None, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the CPI as BOSH does."""
    return subprocess.run(
        [*(argv or CPI), *options],
        input=stdin,
        capture_output=True,
        cwd=REPOSITORY,
        timeout=PATIENCE,
        **more,
    )


def response_of(ran: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """Return the one JSON object, checked as the director checks it."""
    assert ran.returncode == 0, ran.stderr
    response: dict[str, Any] = json.loads(ran.stdout)
    assert set(response) == {"result", "error", "log"}
    assert isinstance(response["log"], str)
    if response["error"] is not None:
        types = {name: type(value) for name, value in response["error"].items()}
        assert types == {"type": str, "message": str, "ok_to_retry": bool}
    return response


def error_of(ran: subprocess.CompletedProcess[bytes]) -> tuple[str, str]:
    """Return type and message of the error."""
    error = response_of(ran)["error"]
    return error["type"], error["message"]


def own_runtime(body: str) -> list[str]:
    """Return the command of a CPI with a runtime whose has_vm does this."""
    return [sys.executable, "-c", WITH_RUNTIME.format(body=textwrap.indent(body, " " * 8))]


FORMATS = list(catalog.REGISTRY["containerd"].stemcell_formats)


def test_info_answers() -> None:
    response = response_of(run(b'{"method":"info","arguments":[],"context":{}}'))
    assert response["result"] == {"stemcell_formats": FORMATS, "api_version": 3}


def test_each_line_is_on_stderr_or_in_the_log() -> None:
    ran = run(b'{"method":"info","arguments":[],"context":{}}')
    assert ran.stderr.decode().count("INFO info done in") == 1
    assert response_of(ran)["log"] == ""
    failed = run(b'{"method":"levitate","arguments":[],"context":{}}')
    assert failed.stderr.decode().count("levitate failed after") == 1
    assert response_of(failed)["log"] == ""
    closed = run(
        b'{"method":"info","arguments":[],"context":{}}',
        argv=["sh", "-c", 'exec "$@" 2>&-', "sh", *CPI],
    )
    assert response_of(closed)["log"].count("INFO info done in") == 1


@pytest.mark.parametrize(
    ("stdin", "reason"),
    [
        (b"", "the request is empty"),
        (b" \n\t ", "the request is empty"),
        (b"not json", "not JSON: Expecting value: line 1"),
        (b'{"method":', "not JSON"),
        (b'{"method":"info"} {}', "not JSON: Extra data"),
        (b'\xef\xbb\xbf{"method":"info"}', "not JSON: Unexpected UTF-8 BOM"),
        (b'{"method":"info","arguments":[NaN]}', "NaN is no JSON number"),
        (b'{"method":"info","arguments":[' + b"9" * 9999 + b"]}", "not JSON"),
        (b'{"method":"in\xff"}', "not UTF-8: invalid start byte at byte 13"),
        (b"\x00\x01\x02", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[]", "must be a JSON object, got a list"),
        (b"null", "must be a JSON object, got null"),
        (b'"info"', "must be a JSON object, got a string"),
        (b'{"arguments":[]}', "method must be a string, got none"),
        (b'{"method":"' + b"x" * 10_000_000 + b'"}', "larger than 8388608 bytes (8 MiB)"),
    ],
)
def test_garbage_is_an_invalid_call(stdin: bytes, reason: str) -> None:
    error_type, message = error_of(run(stdin))
    assert error_type == "InvalidCall"
    assert reason in message
    assert len(message) < 300


def test_the_largest_request_is_read() -> None:
    head = b'{"method":"ping","arguments":[],"context":{"x":"'
    stdin = head + b"x" * (REQUEST_LIMIT - len(head) - 3) + b'"}}'
    assert len(stdin) == REQUEST_LIMIT
    assert error_of(run(stdin))[0] == "Bosh::Clouds::NotImplemented"


@pytest.mark.parametrize(
    ("options", "error_type", "reason"),
    [
        (["--verbose"], "InvalidCall", "does not know the option '--verbose'"),
        (["cpi.json"], "InvalidCall", "does not know the option 'cpi.json'"),
        (["-c"], "InvalidCall", "-c needs a file"),
        (["-c", "/nowhere/cpi.json"], "Bosh::Clouds::CpiError", "'/nowhere/cpi.json': No such"),
        (["-c", "/"], "Bosh::Clouds::CpiError", "'/': Is a directory"),
    ],
)
def test_bad_command_lines_are_errors(options: list[str], error_type: str, reason: str) -> None:
    got, message = error_of(run(b"{}", *options))
    assert got == error_type
    assert reason in message


@pytest.mark.parametrize("option", ["-c", "--config", "--configPath", "-configPath"])
def test_every_spelling_of_the_config_option(option: str, tmp_path: Path) -> None:
    file = tmp_path / "cpi.json"
    file.write_text('{"no_such_key": 1}')
    for options in ([option, str(file)], [f"{option}={file}"]):
        error_type, message = error_of(run(HAS_VM, *options))
        assert error_type == "Bosh::Clouds::CpiError"
        assert f"{str(file)!r} has unknown keys: 'no_such_key'" in message


def test_help_teaches_with_a_request_that_works() -> None:
    text = run(b"", "--help").stdout.decode()
    example = re.search(r"echo '(.*)' \| cpi$", text, re.MULTILINE)
    assert example is not None
    assert response_of(run(example[1].encode()))["error"] is None


def test_version_is_the_projects() -> None:
    assert run(b"", "--version").stdout == f"cpi {VERSION}\n".encode()
    assert f'version = "{VERSION}"' in (REPOSITORY / "pyproject.toml").read_text()


def test_stdout_is_ours_alone() -> None:
    body = """\
print("printed by python")
os.write(1, b"written by a C library\\n")
subprocess.run(["echo", "echoed by a child"])
sys.stdout.write("left in a buffer")
return True"""
    ran = run(HAS_VM, argv=own_runtime(body))
    assert response_of(ran)["result"] is True
    for line in (b"by python", b"by a C library", b"by a child", b"in a buffer"):
        assert line in ran.stderr


def test_child_processes_do_not_inherit_the_answer() -> None:
    listing = "subprocess.run(['ls', '/proc/self/fd'], stdout=-1, close_fds=False).stdout"
    ran = run(HAS_VM, argv=own_runtime(f"return {listing}.decode().split()"))
    # Its own three, and the folder that ls has open.
    assert response_of(ran)["result"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("body", "error_type", "reason", "retry"),
    [
        ("raise MemoryError", "CpiError", "has_vm: MemoryError", False),
        ("return self.has_vm(vm_cid)", "CpiError", "has_vm: RecursionError", False),
        ("raise KeyboardInterrupt", "CpiError", "interrupted by KeyboardInterrupt", True),
        ("sys.exit(3)", "CpiError", "interrupted by 3", True),
        ("return object()", "CpiError", "cannot be written as JSON", False),
        ("return float('nan')", "CpiError", "cannot be written as JSON", False),
        ("raise OSError(28, 'full')", "NoDiskSpace", "has_vm: OSError: [Errno 28] full", False),
    ],
)
def test_nothing_gets_past(body: str, error_type: str, reason: str, retry: bool) -> None:
    error = response_of(run(HAS_VM, argv=own_runtime(body)))["error"]
    assert error["type"] == f"Bosh::Clouds::{error_type}"
    assert reason in error["message"]
    assert error["ok_to_retry"] is retry


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_undo_and_answer(name: str) -> None:
    body = """\
try:
    os.write(2, b"at work\\n")
    time.sleep(3600)  # until the signal
finally:
    os.kill(os.getpid(), signal.SIGTERM)  # a second one does not interrupt the undoing
    os.write(2, b"undone\\n")"""
    # Whoever runs the tests may ignore signals (nohup), and then so would the CPI.
    default = ("env", "--default-signal=TERM,INT,HUP")
    with ended(
        subprocess.Popen(
            [*default, *own_runtime(body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(HAS_VM)
        process.stdin.close()
        while process.stderr.readline() != b"at work\n":
            assert process.poll() is None
        process.send_signal(getattr(signal, name))
        stderr = process.stderr.read()
        stdout = process.stdout.read()
    ran = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
    error = response_of(ran)["error"]
    assert error["message"] == f"interrupted by {name}"
    assert error["ok_to_retry"] is True
    assert b"undone" in stderr


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_closed_standard_streams(closed: str) -> None:
    close = " ".join(f"{number}>&-" for number in closed.split())
    command = f"exec {sys.executable} -m cpi.main {close}"
    ran = run(HAS_VM.replace(b"fake", b"other"), argv=["sh", "-c", command])
    assert ran.returncode == 0
    if "1" not in closed:
        assert response_of(ran)["error"] is not None or closed == "2"
    if closed == "0":
        assert error_of(ran) == ("InvalidCall", "stdin cannot be read: Bad file descriptor")


def test_reader_that_has_gone_changes_no_status() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(CPI, input=HAS_VM, stdout=writing, stderr=writing, cwd=REPOSITORY)
    finally:
        os.close(writing)
    assert ran.returncode == 0


def test_info_imports_next_to_nothing() -> None:
    """Of the standard library, only what json and the few modules beside it need."""
    code = textwrap.dedent("""\
        import os, sys
        sys.path.insert(0, os.getcwd())
        before = set(sys.modules)
        def report(status):
            sys.stderr.write("LOADED " + " ".join(sorted(set(sys.modules) - before)))
        os._exit = report
        from cpi.main import main
        main()
        """)
    # -S: what the machine's site-packages load by themselves is not ours.
    ran = run(request("info"), argv=[sys.executable, "-S", "-c", code])
    assert json.loads(ran.stdout)["error"] is None
    loaded = ran.stderr.decode().split("LOADED ")[1].split()
    ours = {name for name in loaded if name.split(".")[0] in ("cpi", "runtimes")}
    assert ours == {
        "cpi",
        "cpi.config",
        "cpi.contract",
        "cpi.text",
        "cpi.validate",
        "cpi.contract.values",
        "cpi.cid",
        "cpi.config.config",
        "cpi.config.key",
        "cpi.config.load",
        "cpi.config.overrides",
        "cpi.documents",
        "cpi.errors",
        "cpi.contract.handle",
        "cpi.config.general_keys",
        "cpi.log",
        "cpi.main",
        "cpi.contract.methods",
        "runtimes",
        "runtimes.containerd",
        "runtimes.containerd.keys",
        "runtimes.libvirt",
        "runtimes.libvirt.keys",
        "runtimes.catalog",
    }
    heavy = (
        "argparse asyncio ctypes dataclasses difflib email google grpc hashlib http inspect"
        " ipaddress libvirt locale logging pathlib random secrets select shutil socket ssl"
        " subprocess tempfile threading traceback typing urllib uuid"
    )
    assert {name.split(".")[0] for name in loaded} & set(heavy.split()) == set()
    assert len(loaded) < 60
