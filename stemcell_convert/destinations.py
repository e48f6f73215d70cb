"""Where requests for an image may go: to a registry, and to where it sends its clients.

A registry names realms for log-ins and redirects to stores, so whoever chooses the registry chooses
what this host connects to. The check is made where a connection is made, on the address that the
name was resolved to: a name that is resolved twice may have two answers.
"""

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from stemcell_convert.proxies import PORTS, Proxies, ProxyAdapter
from stemcell_convert.stemcell_errors import StemcellError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_BODY = 1 << 20  # bytes of what is no layer: log-ins, redirects, the first answer
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; the last 32 bits are an IPv4 address

# They lead into networks of the host's own, and Python takes them for public: local NAT64
# (RFC 8215), site-local addresses (RFC 3879), IPv4 addresses in IPv6's form.
_CLOSED = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "fec0::/10", "::/96")))


@dataclass(frozen=True)
class Destinations:
    """Public addresses, and the hosts that are named.

    allowed: hosts that may have any address, as `host`, or `host:port` for that port alone.
    is_own: whether a public address is this host's own.
    """

    allowed: tuple[str, ...]
    is_own: Callable[[IPAddress], bool]

    def is_named(self, host: str, port: int) -> bool:
        """Return whether a host is one that may have any address."""
        host = host.lower()
        shown = f"[{host}]" if ":" in host else host
        return any(entry.lower() in (host, shown, f"{shown}:{port}") for entry in self.allowed)

    def addresses(self, host: str, port: int) -> list[str]:
        """Resolve a host; return its public addresses. Raises OSError if it has no address."""
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in answers)
        return [text for text in texts if self._is_open(ipaddress.ip_address(text))]

    def _is_open(self, address: IPAddress) -> bool:
        address = _embedded(address)
        closed = address.is_multicast or any(address in network for network in _CLOSED)
        public = address.is_global and not closed
        return public and not self.is_own(address)


def _embedded(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 one leads to, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


class RegistryAdapter(ProxyAdapter):
    """Sends all requests of one registry's client, those for log-ins and redirects included.

    plain: the registry is one without TLS; from others nobody is led to plain HTTP.
    destinations: where connections may go; None: anywhere.
    """

    def __init__(self, proxies: Proxies, plain: bool, destinations: Destinations | None) -> None:
        super().__init__(proxies)
        self._plain = plain
        self._destinations = destinations
        if destinations is not None:
            self.poolmanager.pool_classes_by_scheme = _pools(destinations)

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        url = urlsplit(request.url or "")
        if url.scheme != "https" and not self._plain:
            raise StemcellError(
                f"the registry leads to {url.hostname} without TLS; only one that is reached "
                "without TLS itself may do that (registry.plain_http, --plain-http)"
            )
        if self._destinations is not None and self._proxies.of(request.url or ""):
            self._require_open(
                self._destinations, url.hostname or "", url.port or PORTS[url.scheme]
            )
        response = super().send(request, **{**options, "stream": True})
        if response.is_redirect or not options.get("stream"):
            # requests would read all of it, however much a registry sends.
            response._content = response.raw.read(_MAX_BODY, decode_content=True)
            response._content_consumed = True  # type: ignore[attr-defined]
            response.raw.close()  # of no effect on a connection that has given all
        return response

    def _require_open(self, destinations: Destinations, host: str, port: int) -> None:
        """Refuse what is not open as far as this host knows it: the proxy resolves names itself."""
        if destinations.is_named(host, port):
            return
        try:
            is_open = bool(destinations.addresses(host, port))
        except OSError:
            is_open = True
        if not is_open:
            raise requests.ConnectionError(f"{host} is not public")


def _pools(destinations: Destinations) -> dict[str, type[HTTPConnectionPool]]:
    """Return urllib3's pools, whose connections go to open destinations only."""

    class Checked(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            host, port = self._dns_host, self.port or 0
            if destinations.is_named(host, port):
                return super()._new_conn()
            try:
                addresses = destinations.addresses(host, port)
            except OSError as error:
                raise NewConnectionError(self, str(error)) from None
            problem: Exception = NewConnectionError(self, f"{host} is not public")
            try:
                for address in addresses:
                    self._dns_host = address
                    try:
                        return super()._new_conn()
                    except (NewConnectionError, ConnectTimeoutError) as error:
                        problem = error
            finally:
                self._dns_host = host  # TLS checks the certificate against the name
            raise problem

    class CheckedTLS(Checked, HTTPSConnection):
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Checked

    class PoolTLS(HTTPSConnectionPool):
        ConnectionCls = CheckedTLS

    return {"http": Pool, "https": PoolTLS}
