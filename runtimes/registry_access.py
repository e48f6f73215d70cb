"""How the configuration says that registries are reached, for runtimes and `bosh-cpi stemcell`."""

from typing import TYPE_CHECKING

from cpi.config.config import Config

if TYPE_CHECKING:
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
    )
