"""The thin client against servers of the tests: what it sends, and what it makes of answers."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.patience import PATIENCE
from tests.support.cpi_calls import request
from tools import client_zipapp

HAS_VM = request("has_vm", "fake-vm-1", context={"request_id": "cpi-1"})
GOOD = b'{"result": true, "error": null, "log": "said by the service\\n"}'


class Served:
    """A server on a unix socket that gives each client one answer, and keeps what it sent."""

    def __init__(self, path: Path, answer: bytes, wait_for: bytes = b"") -> None:
        self.path = path
        self.received = b""
        self._answer = answer
        self._wait_for = wait_for
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:  # it is stopped, and nobody has come
            return
        with connection:
            while not self._is_all():
                chunk = connection.recv(65536)
                if not chunk:
                    break
                self.received += chunk
            connection.sendall(self._answer)

    def _is_all(self) -> bool:
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return False
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        return len(body) == int(length.split()[1])

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listening.close()

    @property
    def head(self) -> str:
        return self.received.partition(b"\r\n\r\n")[0].decode()

    def parts(self) -> dict[str, bytes]:
        """Return what was sent, by name."""
        body = self.received.partition(b"\r\n\r\n")[2]
        line = next(line for line in self.head.split("\r\n") if line.startswith("Cpi-Parts: "))
        parts = {}
        for word in line.split()[1:]:
            name, size = word.split("=")
            parts[name], body = body[: int(size)], body[int(size) :]
        assert body == b""
        return parts


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[bytes], Served]]:
    running: list[Served] = []

    def start(answer: bytes) -> Served:
        running.append(Served(tmp_path / f"{len(running)}.sock", answer))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client") / "cpi.pyz"
    client_zipapp.build(path)
    return path


class Caller:
    """Runs the one-file client, with nothing of the checkout in sight."""

    def __init__(self, zipapp: Path, folder: Path) -> None:
        self._zipapp = zipapp
        self._folder = folder

    def __call__(self, stdin: bytes, **config: Any) -> dict[str, Any]:
        path = self._folder / "cpi.json"
        path.write_text(json.dumps(config))
        done = subprocess.run(
            [sys.executable, "-I", str(self._zipapp), "-c", str(path)],
            input=stdin,
            capture_output=True,
            cwd="/",
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        response: dict[str, Any] = json.loads(done.stdout)
        assert set(response) == {"result", "error", "log"}
        return response

    def error(self, stdin: bytes, **config: Any) -> dict[str, Any]:
        """Return the error of a call that has to fail."""
        error: dict[str, Any] = self(stdin, **config)["error"]
        assert error["type"].startswith(("Bosh::Clouds::", "InvalidCall"))
        return error


@pytest.fixture
def call(zipapp: Path, tmp_path: Path) -> Caller:
    return Caller(zipapp, tmp_path)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\r\n".encode() + body


def test_request_and_configuration_are_sent_and_the_answer_returned(
    call: Caller, serve: Callable[[bytes], Served]
) -> None:
    server = serve(http(GOOD))
    response = call(HAS_VM, endpoint=f"unix://{server.path}", agent={"ntp": ["a"]}, tls={"ca": "x"})
    assert response == {"result": True, "error": None, "log": "said by the service\n"}
    assert server.head.startswith("POST /v1/call HTTP/1.0\r\n")
    sent = json.loads(server.parts()["call"])
    assert sent["request"] == json.loads(HAS_VM)
    assert sent["config"] == {"agent": {"ntp": ["a"]}}


def test_the_context_names_the_service_and_its_keys_stay_here(
    call: Caller, serve: Callable[[bytes], Served]
) -> None:
    server = serve(http(GOOD))
    context = {
        "endpoint": f"unix://{server.path}",
        "tls": {"private_key": "PEM"},
        "agent": {"mbus": "x"},
    }
    stdin = request("has_vm", "fake-vm-1", context=context)
    assert call(stdin, endpoint="unix:///not/there")["result"] is True
    assert json.loads(server.parts()["call"])["request"]["context"] == {"agent": {"mbus": "x"}}
    assert b"PEM" not in server.received


def test_a_stemcell_comes_with_its_image_and_manifest(
    call: Caller, serve: Callable[[bytes], Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3 << 20))
    (tmp_path / "stemcell.MF").write_text("name: x\n")
    server = serve(http(GOOD))
    call(request("create_stemcell", str(image), {}), endpoint=f"unix://{server.path}")
    parts = server.parts()
    assert list(parts) == ["call", "stemcell.MF", "image"]
    assert parts["image"] == image.read_bytes()
    assert parts["stemcell.MF"] == b"name: x\n"


def test_an_image_that_is_not_there_is_named(call: Caller, tmp_path: Path) -> None:
    stdin = request("create_stemcell", f"{tmp_path}/gone", {})
    error = call.error(stdin, endpoint="unix:///not/there")
    assert error["type"] == "Bosh::Clouds::CloudError"
    assert f"{tmp_path}/gone" in error["message"]


def test_a_refusal_before_all_is_sent_is_heard(call: Caller, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\0" * (32 << 20))
    refusal = {"type": "Bosh::Clouds::NoDiskSpace", "message": "full", "ok_to_retry": False}
    answer = http(json.dumps({"result": None, "error": refusal, "log": ""}).encode())
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def refuse() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        stdin = request("create_stemcell", str(image), {})
        assert call.error(stdin, endpoint=f"unix://{path}") == refusal
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("answer", "reason", "retry"),
    [
        (b"", "without an answer", True),
        (http(b"", "503 Service Unavailable"), "it is busy", True),
        (http(b"gone", "404 Not Found"), "it is too old for this client", False),
        (http(b"<html>"), "does something else listen there", False),
        (http(b'{"result": 1}'), "does something else listen there", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does something else listen there", False),
    ],
)
def test_what_is_no_answer_is_an_error_that_names_the_endpoint(
    call: Caller, serve: Callable[[bytes], Served], answer: bytes, reason: str, retry: bool
) -> None:
    server = serve(answer)
    error = call.error(HAS_VM, endpoint=f"unix://{server.path}")
    assert str(server.path) in error["message"]
    assert reason in error["message"]
    assert error["ok_to_retry"] is retry


def test_a_service_that_is_not_there(call: Caller, tmp_path: Path) -> None:
    error = call.error(HAS_VM, endpoint=f"unix://{tmp_path}/gone.sock")
    assert f"{tmp_path}/gone.sock" in error["message"]
    assert "there is no such socket" in error["message"]
    assert "systemctl start bosh-containerd-cpi" in error["message"]
    assert error["ok_to_retry"] is True
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead.sock")
    error = call.error(HAS_VM, endpoint=f"unix://{tmp_path}/dead.sock")
    assert "Connection refused" in error["message"]
    assert error["ok_to_retry"] is True


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"endpoint": 5}, "endpoint must be a string"),
        ({"endpoint": "http://host:80"}, "https://host:port"),
        ({"endpoint": "unix://relative"}, "unix:///path"),
        ({"endpoint": "https://host:99999"}, "https://host:port"),
        ({"endpoint": "https://a:1"}, "needs tls.ca"),
        ({"endpoint": "https://a:1", "tls": {"ca": "x", "certificate": "x"}}, "tls.private_key"),
    ],
)
def test_a_wrong_endpoint_is_named(call: Caller, config: dict[str, Any], reason: str) -> None:
    assert reason in call.error(HAS_VM, **config)["message"]


def test_certificates_that_are_none_are_named(call: Caller, tmp_path: Path) -> None:
    junk = "-----BEGIN CERTIFICATE-----\nsecret\n-----END CERTIFICATE-----\n"
    tls = {"ca": junk, "certificate": junk, "private_key": f"{tmp_path}/gone"}
    error = call.error(HAS_VM, endpoint="https://127.0.0.1:1", tls=tls)
    assert "tls.ca cannot be used" in error["message"]
    assert "secret" not in error["message"]


def test_without_an_endpoint_the_installed_cpi_answers(call: Caller, tmp_path: Path) -> None:
    program = tmp_path / "cpi"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "reason = json.dumps([sys.argv[1], json.loads(sys.stdin.read())['method']])\n"
        "print(json.dumps({'result': reason, 'error': None, 'log': ''}))\n"
    )
    program.chmod(0o755)
    assert json.loads(call(HAS_VM, program=str(program))["result"]) == ["-c", "has_vm"]


def test_without_an_installed_cpi_the_error_says_how_to_install_it(call: Caller) -> None:
    error = call.error(HAS_VM, program="/nowhere/cpi")
    assert "/nowhere/cpi" in error["message"]
    assert "make install" in error["message"]
    assert "must be the absolute path" in call.error(HAS_VM, program="cpi")["message"]


def test_an_installed_cpi_that_does_not_run_is_named(call: Caller, tmp_path: Path) -> None:
    program = tmp_path / "cpi"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    assert str(program) in call.error(HAS_VM, program=str(program))["message"]


def test_the_same_sources_make_the_same_file(zipapp: Path, tmp_path: Path) -> None:
    client_zipapp.build(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == zipapp.read_bytes()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_file_tells_what_it_is(zipapp: Path, option: str) -> None:
    done = subprocess.run([sys.executable, "-I", str(zipapp), option], capture_output=True)
    assert b"cpi" in done.stdout


def test_garbage_is_refused_before_it_is_sent(call: Caller) -> None:
    assert call.error(b"not json", endpoint="unix:///not/there")["type"] == "InvalidCall"
    assert call.error(b"[]", endpoint="unix:///not/there")["type"] == "InvalidCall"
