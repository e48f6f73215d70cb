"""Which addresses requests to registries may reach, and that nothing connects to others."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import requests

from stemcell_convert.destinations import Destinations, RegistryAdapter
from stemcell_convert.proxies import Proxies
from stemcell_convert.stemcell_errors import StemcellError

OWN = "9.9.9.9"


def destinations(*allowed: str) -> Destinations:
    return Destinations(allowed, lambda address: str(address) == OWN)


class Listener:
    """Counts the connections to a port of 127.0.0.1, which it closes at once, until it is asked."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._count = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                if connection.recv(1) == b"!":
                    return
            self._count += 1

    def connections(self) -> int:
        """Return how many there were; it takes no more."""
        self.stop()
        return self._count

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"!")
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    running = Listener()
    yield running
    running.stop()


def get(url: str, reach: Destinations | None, *, plain: bool = True, proxy: str = "") -> None:
    adapter = RegistryAdapter(Proxies(http=proxy, https=proxy, without=()), plain, reach)
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.get(url, timeout=10)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "0.1.2.3", "224.0.0.1", "255.255.255.255", OWN, "::1", "fe80::1", "fd00::1", "::",
     "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "fec0::2",
     "64:ff9b:1::a00:1", "::7f00:1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert destinations().addresses(address, 443) == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert destinations().addresses(address, 443) == [address]


def test_hosts_that_need_not_be_public() -> None:
    named = destinations("Registry.corp", "10.0.0.1:5000", "[fd00::1]:5000")
    assert named.is_named("registry.CORP", 443)
    assert named.is_named("10.0.0.1", 5000)
    assert named.is_named("fd00::1", 5000)
    assert not named.is_named("10.0.0.1", 443)
    assert not named.is_named("sub.registry.corp", 443)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nothing_connects_to_what_is_not_public(listener: Listener, scheme: str, host: str) -> None:
    with pytest.raises(requests.ConnectionError, match="is not public"):
        get(f"{scheme}://{host}:{listener.port}/", destinations())
    assert listener.connections() == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_named_host_is_reached(listener: Listener, scheme: str) -> None:
    with pytest.raises(requests.ConnectionError):
        get(f"{scheme}://127.0.0.1:{listener.port}/", destinations("127.0.0.1"))
    assert listener.connections() == 1


def test_without_destinations_all_are_reached(listener: Listener) -> None:
    with pytest.raises(requests.ConnectionError):
        get(f"http://127.0.0.1:{listener.port}/", None)
    assert listener.connections() == 1


def test_a_proxy_is_not_asked_for_what_is_not_public(listener: Listener) -> None:
    proxy = f"http://127.0.0.1:{listener.port}"
    for host in ("10.0.0.1", "localhost"):
        with pytest.raises(requests.ConnectionError, match="is not public"):
            get(f"http://{host}/", destinations(), proxy=proxy)
    with pytest.raises(requests.ConnectionError):
        get("http://name-only-the-proxy.invalid/", destinations("127.0.0.1"), proxy=proxy)
    assert listener.connections() == 1, "the last alone"


def test_nobody_is_led_from_tls_to_plain_http(listener: Listener) -> None:
    with pytest.raises(StemcellError, match="without TLS"):
        get(f"http://127.0.0.1:{listener.port}/", None, plain=False)
    assert listener.connections() == 0


def test_a_short_answer_without_an_end_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def endless() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    connection.sendall(bytes(1 << 16))

        thread = threading.Thread(target=endless)
        thread.start()
        adapter = RegistryAdapter(Proxies(), plain=True, destinations=None)
        with requests.Session() as session:
            session.mount("http://", adapter)
            answer = session.get(f"http://127.0.0.1:{server.getsockname()[1]}/v2/", timeout=10)
            assert len(answer.content) == 1 << 20
            answer.close()
        thread.join(30)
        assert not thread.is_alive()
