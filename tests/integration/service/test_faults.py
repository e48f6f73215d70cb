"""Faulty and malicious clients: the service stays up and answers the others."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cpi.client.endpoint import Endpoint
from cpi.client.forward import forward
from cpi.log import Log
from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import Service
from testing.patience import PATIENCE, wait_for
from tests.integration.service.conftest import GROUP
from tests.support.containerd.machine import Machine
from tests.support.processes import ended, wait_for_writer, write_end

GIB = 1 << 30
HAS_VM = {"method": "has_vm", "arguments": ["containerd-vm-0"], "context": {}, "api_version": 2}


def post(size: int, parts: str, body: bytes = b"") -> bytes:
    """Return a call's head, and the part of its body that is sent."""
    head = f"POST /v1/call HTTP/1.0\r\nContent-Length: {size}\r\nCpi-Parts: {parts}\r\n\r\n"
    return head.encode() + body


def connect(service: Service) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(service.socket))
    return connection


def answer_to(service: Service, sent: bytes) -> dict[str, Any]:
    """Return what the service answers to these bytes."""
    with connect(service) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    answered: dict[str, Any] = json.loads(received.partition(b"\r\n\r\n")[2])
    return answered


def works(service: Service) -> bool:
    """Return whether the service answers other clients."""
    return service.client()("has_vm", "containerd-vm-0")["result"] is False


def test_incomplete_requests_do_not_block_others(service: Service) -> None:
    halves = (
        b"",
        b"P",
        b"POST /v1/call HTTP/1.0\r\nContent-Le",
        post(100, "call=100"),
        post(100, "call=100", b"{"),
        post(GIB, f"call=2 image={GIB - 2}", b"{}"),
    )
    with ExitStack() as stack:
        for half in halves * 3:
            connection = stack.enter_context(connect(service))
            connection.sendall(half)
        assert works(service)
    assert works(service)


def test_a_gigabyte_of_garbage_is_not_kept(service: Service) -> None:
    before = _resident(service.pid)
    zeros = bytes(1 << 20)
    for head in (b"", post(GIB, f"call={GIB}"), post(GIB, f"call=9 junk={GIB - 9}")):
        with connect(service) as connection, suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head)
            for _ in range(1024):
                connection.sendall(zeros)
    assert works(service)
    assert _resident(service.pid) - before < 64 << 20


def _resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"POST /v2/call HTTP/1.0\r\n\r\n", "knows /v1/call, and not /v2/call"),
        (b"GET /v1/call HTTP/1.0\r\n\r\n", "knows /v1/call"),
        (b"POST /v1/call HTTP/1.0\r\n\r\n", "needs the headers"),
        (post(5, "call=6"), "they must agree"),
        (post(5, "call=2 ../etc=3"), "they must agree"),
        (post(5, "image=3 call=2", b"aaa{}"), "not one of this protocol"),
        (post(2, "image=2", b"{}"), "not one of this protocol"),
        (post(2, "call=2", b"[]"), "must be a JSON object"),
        (post(2, "call=2", b"{}"), "must be a JSON object"),
        (post(3, "call=3", b"{x}"), "not JSON"),
        (post(1 << 24, f"call={1 << 24}"), "is the most"),
        (post(1 << 45, f"call=2 image={(1 << 45) - 2}"), "service.upload_limit"),
    ],
)
def test_a_wrong_request_gets_an_error(service: Service, sent: bytes, message: str) -> None:
    error = answer_to(service, sent)["error"]
    assert error["type"] == "InvalidCall"
    assert message in error["message"]


def test_half_a_request_is_the_clients_fault(service: Service) -> None:
    """One way of the connection is closed, and the other waits for the answer."""
    call = json.dumps({"request": HAS_VM}).encode()
    with_image = post(len(call) + 9, f"call={len(call)} image=9", call + b"abc")
    for sent in (post(100, "call=100", b"{"), with_image):
        with connect(service) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"the request is incomplete" in answer


def test_two_hundred_calls_at_once_are_all_answered_by_few_processes(service: Service) -> None:
    endpoint = Endpoint(f"unix://{service.socket}", {})
    together = threading.Barrier(200)

    def call() -> object:
        together.wait()
        return forward(endpoint, HAS_VM, {}, Log(quiet=True))["result"]

    with ThreadPoolExecutor(200) as pool:
        answers = [future.result() for future in [pool.submit(call) for _ in range(200)]]
    assert answers == [False] * 200
    assert len(_workers(service)) <= 16


def _workers(service: Service) -> list[int]:
    tasks = Path(f"/proc/{service.pid}/task").glob("*/children")
    return [int(pid) for children in tasks for pid in children.read_text().split()]


def test_a_worker_that_is_killed_costs_one_call_at_most(service: Service) -> None:
    for pid in _workers(service):
        os.kill(pid, signal.SIGKILL)
    assert works(service)


def test_a_client_cannot_use_a_file_of_the_host(service: Service, image: Path) -> None:
    document = {
        "method": "create_stemcell",
        "arguments": [str(image), {}],
        "context": {},
        "api_version": 2,
    }
    sent = json.dumps({"request": document, "config": {}}).encode()
    error = answer_to(service, post(len(sent), f"call={len(sent)}", sent))["error"]
    assert error is not None
    assert str(image) in error["message"]


class Slow:
    """A network whose plugin waits, to stop a create_vm in the middle."""

    def __init__(self, host: PrivateHost) -> None:
        self.networks = {"slow": {"type": "dynamic", "cloud_properties": {"name": "slow"}}}
        self.plugins = host.folder / "slow-plugins"
        self._came, self._go = self.plugins / "came", self.plugins / "go"
        self.plugins.mkdir(exist_ok=True)
        for fifo in (self._came, self._go):
            if not fifo.exists():
                os.mkfifo(fifo)
        plugin = self.plugins / "slow"
        plugin.write_text(
            f'#!/bin/sh\n[ "$CNI_COMMAND" = ADD ] || exit 0\necho >{self._came}\ncat {self._go}\n'
        )
        plugin.chmod(0o755)
        folder = host.folder / "cni"
        folder.mkdir(exist_ok=True)
        (folder / "slow.conf").write_text(json.dumps({"name": "slow", "type": "slow"}))

    def wait(self) -> None:
        """Wait until a create_vm is in the middle."""
        wait_for_writer(self._came)

    def go_on(self) -> None:
        """Let it go on; the plugin's answer is an interface with an address."""
        result = {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "x"}],
            "ips": [{"address": "198.51.100.2/24", "interface": 0}],
        }
        with write_end(self._go) as plugin:
            plugin.write(json.dumps(result).encode())


@pytest.fixture
def slow(host: PrivateHost) -> Slow:
    return Slow(host)


@pytest.fixture
def slow_service(
    host: PrivateHost, slow: Slow, service: Service, settings: dict[str, object]
) -> Iterator[Service]:
    """Yield a separate service whose VMs may use the slow network."""
    service.stop()
    defaults = host.config()["network"]
    network = {**defaults, "cni_plugin_dirs": [str(slow.plugins), "/usr/lib/cni"]}
    clients = {"local": {"networks": ["slow"]}}
    own = Service(host, {"socket_group": GROUP, "clients": clients}, network=network)
    try:
        with own:
            yield own
    finally:
        Service(host, settings)  # writes its configuration back
        service.start()


def _creating(service: Service, slow: Slow, stemcell: str) -> "subprocess.Popen[str]":
    """Start a create_vm that waits for its network."""
    return service.client().started("create_vm", "a", stemcell, {}, slow.networks, [], {})


def test_what_is_created_for_a_client_that_goes_away_is_undone(
    slow_service: Service, slow: Slow, machine: Machine, image: Path
) -> None:
    stemcell = slow_service.client()("create_stemcell", str(image), {})["result"]
    before = machine.leftovers()
    with ended(_creating(slow_service, slow, stemcell)) as calling:
        slow.wait()
        _kill_client(calling)
        slow.go_on()
        wait_for(
            lambda: "nobody waits for the answer" in slow_service.log.read_text(), "the undoing"
        )
        wait_for(lambda: "bosh_cpi_calls_running 0.0" in slow_service.get("/metrics"), "its end")
        assert machine.leftovers() == before


def _kill_client(calling: "subprocess.Popen[str]") -> None:
    """Kill a client itself, not its parent, nsenter."""
    children = Path(f"/proc/{calling.pid}/task/{calling.pid}/children")
    os.kill(int(wait_for(children.read_text, "the client")), signal.SIGKILL)
    calling.communicate()


def test_sigterm_finishes_what_runs_and_takes_no_more(
    slow_service: Service, slow: Slow, machine: Machine, image: Path
) -> None:
    stemcell = slow_service.client()("create_stemcell", str(image), {})["result"]
    with ended(_creating(slow_service, slow, stemcell)) as calling:
        slow.wait()
        stopping = threading.Thread(target=slow_service.stop)
        pid = slow_service.pid
        stopping.start()
        wait_for(lambda: "1 calls still run" in slow_service.log.read_text(), "the service to stop")

        def refused() -> bool:
            """What was accepted before the socket closed is still answered."""
            error = slow_service.client()("has_vm", "containerd-vm-0")["error"]
            return error is not None and error["ok_to_retry"] is True

        wait_for(refused, "the socket to close")
        assert Path(f"/proc/{pid}").exists()
        slow.go_on()
        answered, _ = calling.communicate(timeout=PATIENCE)
        vm = json.loads(answered)["result"][0]
        stopping.join()
        assert not Path(f"/proc/{pid}").exists()
        assert machine.call("has_vm", vm) is True
        slow_service.start()
        slow_service.client()("delete_vm", vm)


def test_a_service_that_is_killed_leaves_no_half_vm(
    slow_service: Service, slow: Slow, machine: Machine, image: Path
) -> None:
    stemcell = slow_service.client()("create_stemcell", str(image), {})["result"]
    before = machine.leftovers()
    with ended(_creating(slow_service, slow, stemcell)) as calling:
        slow.wait()
        workers = _workers(slow_service)
        os.kill(slow_service.pid, signal.SIGKILL)
        answered, _ = calling.communicate(timeout=PATIENCE)
        error = json.loads(answered)["error"]
        assert "ended the connection without an answer" in error["message"]
        assert error["ok_to_retry"] is True
        slow.go_on()
        wait_for(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers' end"
        )
        assert machine.leftovers() == before
        slow_service.stop()
        slow_service.start()
        assert works(slow_service)


@contextmanager
def held(host: PrivateHost, cid: str) -> Iterator[Callable[[], None]]:
    """Hold a CID's lock as another call would; yield a function that releases it."""
    script = (
        "import sys; from cpi.host import locks; from cpi.log import Log\n"
        "with locks.hold(sys.argv[1], sys.argv[2], log=Log()):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        host.enter(sys.executable, "-c", script, str(host.folder / "run"), cid),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with ended(process) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.stdin.close


def test_a_waiting_call_does_not_block_others(service: Service, host: PrivateHost) -> None:
    disk = service.client()("create_disk", 16, {}, None)["result"]
    with (
        held(host, disk) as release,
        ended(service.client().started("delete_disk", disk)) as waiting,
    ):
        line = f"waiting for another call on {disk}"
        wait_for(lambda: line in service.log.read_text(), "it waits")
        assert works(service)
        release()
        answered, _ = waiting.communicate(timeout=PATIENCE)
    assert json.loads(answered)["error"] is None
