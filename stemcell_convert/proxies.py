"""Which proxy a request to a registry goes through: the configured one, or the environment's."""

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
import requests.adapters

# Registries on this machine, which a proxy elsewhere would look for on its own.
LOOPBACK = ("localhost", "127.0.0.0/8", "::1")

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Proxies:
    """Proxies by the scheme of the request; without any, those of the environment count.

    http, https: URLs of proxies, or "". without: hosts, domains and subnets to reach directly,
    whichever proxies count.
    """

    http: str = ""
    https: str = ""
    without: tuple[str, ...] = LOOPBACK

    def of(self, url: str, environment: Mapping[str, str] = os.environ) -> str:
        """Return the URL of the proxy for a request, "" for none."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
        if _is_excepted(host, port, self.without):
            return ""
        if self.http or self.https:
            return {"http": self.http, "https": self.https}.get(parts.scheme, "")
        if _is_excepted(host, port, _variable(environment, "no_proxy").split(",")):
            return ""
        return _variable(environment, f"{parts.scheme}_proxy") or _variable(
            environment, "all_proxy"
        )


class ProxyAdapter(requests.adapters.HTTPAdapter):
    """Sends each request, also one that follows a redirect, through its own proxy."""

    def __init__(self, proxies: Proxies) -> None:
        super().__init__()
        self._proxies = proxies

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        url = request.url or ""
        proxy = self._proxies.of(url)
        options["proxies"] = {urlsplit(url).scheme: proxy} if proxy else {}
        # requests puts the environment's credentials there, which may be of another proxy.
        request.headers.pop("Proxy-Authorization", None)
        return super().send(request, **options)


def without_credentials(proxy: str) -> str:
    """Return a proxy's URL as messages may show it."""
    scheme, _, rest = proxy.rpartition("://")
    return f"{scheme or 'http'}://{rest.rpartition('@')[2]}"


def redacted(text: str, proxy: str) -> str:
    """Return text without a proxy's user and password."""
    credentials = proxy.rpartition("://")[2].rpartition("@")[0]
    user, _, password = credentials.partition(":")
    for secret in (credentials, password, unquote(password), user):
        text = text.replace(secret, "***") if len(secret) > 3 else text
    return text


def _variable(environment: Mapping[str, str], name: str) -> str:
    return (environment.get(name) or environment.get(name.upper()) or "").strip()


def _is_excepted(host: str, port: int, entries: Iterable[str]) -> bool:
    """Tell whether a host is among the entries, as curl and Go take NO_PROXY.

    An entry is `*`, an address, a subnet, or a domain, which its subdomains belong to; a port after
    it limits it to that.
    """
    address = _network(host)
    for entry in (entry.strip().lower() for entry in entries):
        name, colon, number = entry.rpartition(":")
        if colon and ":" not in name and number.isdecimal():
            if int(number) != port:
                continue
            entry = name
        network = _network(re.sub(r"[][]", "", entry))
        if network is None:
            domain = entry.lstrip("*").lstrip(".")
            if entry == "*" or (domain and f".{host}".endswith(f".{domain}")):
                return True
        elif address is not None and address.network_address in network:
            return True
    return False


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
