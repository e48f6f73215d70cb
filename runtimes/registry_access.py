"""How the configuration says that registries are reached, for runtimes and `bosh-cpi stemcell`."""

import ipaddress
import socket
from typing import TYPE_CHECKING

from cpi.config.config import Config

if TYPE_CHECKING:
    from stemcell_convert.destinations import Destinations, IPAddress
    from stemcell_convert.registry_client import Access


def access(config: Config) -> "Access":
    """Return the keys below `registry` as the client of registries takes them."""
    from stemcell_convert.proxies import Proxies
    from stemcell_convert.registry_client import Access

    return Access(
        plain_http=config.strings("registry.plain_http"),
        ca_file=config.text("registry.ca_file"),
        docker_config=config.text("registry.docker_config"),
        proxies=Proxies(
            http=config.text("registry.http_proxy"),
            https=config.text("registry.https_proxy"),
            without=config.strings("registry.no_proxy"),
        ),
        destinations=_destinations(config) if config.flag("registry.public_only") else None,
    )


def _destinations(config: Config) -> "Destinations":
    from stemcell_convert.destinations import Destinations

    named = (*config.strings("registry.allowed"), *config.strings("registry.plain_http"))
    return Destinations(named, _is_own)


def _is_own(address: "IPAddress") -> bool:
    """Return whether an address is one of this host's: its own source, by the routing table."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))  # sends nothing
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:  # no route, or no such family here
        return False
