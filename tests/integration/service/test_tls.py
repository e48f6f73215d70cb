"""Mutual TLS from another network namespace: accepted and refused clients."""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import SYSTEM_PYTHON, Service
from tests.integration.service.conftest import ADDRESS, APART, PORT
from tests.support.certificates import CA, Pair
from tests.support.processes import ended

ENDPOINT = f"https://{ADDRESS}:{PORT}"
HAS_VM = ("has_vm", "containerd-vm-0")

Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def good(authority: CA) -> Pair:
    return authority.client("director-1")


@pytest.fixture
def call(service: Service, authority: CA) -> Call:
    """Return a function that calls has_vm with a pair; `tls` changes the section."""

    def has_vm(pair: Pair, endpoint: str = ENDPOINT, **tls: str) -> dict[str, Any]:
        given = {**authority.settings(pair), **tls}
        return service.client(*APART, endpoint=endpoint, tls=given)(*HAS_VM)

    return has_vm


def test_a_known_client_is_accepted_and_named(call: Call, good: Pair, service: Service) -> None:
    assert call(good)["result"] is False
    assert "[director-1] " in service.log.read_text()
    assert 'client="director-1",method="has_vm",outcome="success"' in service.get("/metrics")


def test_a_stranger_is_refused(call: Call, host: PrivateHost, authority: CA) -> None:
    stranger = CA(host.folder / "strangers").client("director-1")
    error = call(stranger)["error"]
    assert "does not take our certificate" in error["message"]
    assert "service.tls_client_ca" in error["message"]
    assert ENDPOINT in error["message"]
    assert error["ok_to_retry"] is False


def test_an_expired_certificate_is_not_taken(call: Call, authority: CA) -> None:
    error = call(authority.client("late", days=-1))["error"]
    assert "expired" in error["message"]
    assert error["ok_to_retry"] is False


@pytest.mark.parametrize("name", ["local", "guest", "../../etc", "a b"])
def test_a_certificate_cannot_have_the_name_of_a_socket_or_a_path(
    call: Call, authority: CA, name: str
) -> None:
    error = call(authority.client(name))["error"]
    assert "needs one common name" in error["message"]


def test_a_client_without_a_certificate_is_refused(service: Service, host: PrivateHost) -> None:
    script = (
        "import socket, ssl, sys; c = ssl._create_unverified_context()\n"
        "try:\n"
        " s = c.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2]))))\n"
        " print(s.recv(100))\n"
        "except OSError as error: print(error)\n"
    )
    output = host.run(*APART, SYSTEM_PYTHON, "-c", script, ADDRESS, str(PORT)).stdout
    assert "certificate required" in output.lower().replace("_", " ")
    assert "is not served" in service.log.read_text()


def test_a_service_of_another_ca_is_not_trusted(call: Call, host: PrivateHost, good: Pair) -> None:
    other = CA(host.folder / "others")
    error = call(good, ca=str(other.certificate))["error"]
    assert "its certificate is not to be trusted" in error["message"]
    assert "tls.ca" in error["message"]


def test_a_service_by_another_name_is_not_trusted(
    call: Call, host: PrivateHost, good: Pair
) -> None:
    forward = ("-p", "tcp", "-d", "192.0.2.9", "-j", "DNAT", "--to-destination", ADDRESS)
    host.run(*APART, "iptables", "-t", "nat", "-A", "OUTPUT", *forward)
    try:
        error = call(good, endpoint=f"https://192.0.2.9:{PORT}")["error"]
    finally:
        host.run(*APART, "iptables", "-t", "nat", "-D", "OUTPUT", *forward)
    assert "not to be trusted" in error["message"]
    assert "192.0.2.9" in error["message"]


def test_key_and_certificate_that_do_not_belong_together(
    call: Call, good: Pair, authority: CA
) -> None:
    other = authority.client("other")
    error = call(good, private_key=str(other.key))["error"]
    assert "tls.certificate and tls.private_key cannot be used" in error["message"]


@contextmanager
def silent(host: PrivateHost, count: int) -> Iterator[None]:
    """Hold connections that send no TLS hello, or a part of one."""
    script = (
        "import socket, sys\n"
        "held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range("
        f"{count})]\n"
        "for one in held[::2]: one.sendall(bytes([0x16, 3, 1, 2, 0]))\n"
        "print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        host.enter(*APART, SYSTEM_PYTHON, "-c", script, ADDRESS, str(PORT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with ended(process):
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate(b"\n")


def test_clients_without_a_hello_do_not_block_others(
    call: Call, good: Pair, service: Service, host: PrivateHost
) -> None:
    with silent(host, 30):
        assert call(good)["result"] is False
    # Even when they have all of this socket's threads, the other socket has its own.
    with silent(host, 100):
        assert service.client()(*HAS_VM)["result"] is False
    assert call(good)["result"] is False


def test_plain_http_is_refused(service: Service, host: PrivateHost) -> None:
    script = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "s.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n'); print(s.recv(100))"
    )
    answer = host.run(*APART, SYSTEM_PYTHON, "-c", script, ADDRESS, str(PORT), check=False).stdout
    assert "bosh_cpi" not in answer
    assert json.loads(service.get("/healthz"))["status"] == "ok"


def test_a_host_that_does_not_answer_is_named(call: Call, good: Pair) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"https://127.0.0.1:{closed.getsockname()[1]}"
        error = call(good, endpoint=endpoint)["error"]
    assert endpoint in error["message"]
    assert "Connection refused" in error["message"]
    assert error["ok_to_retry"] is True
