"""Which proxy counts for a registry, and that passwords of proxies are not shown."""

import pytest

from stemcell_convert.proxies import Proxies, redacted, without_credentials

PLAIN, TLS = "http://plain.proxy:3128", "http://tls.proxy:3128"
ENVIRONMENT = {
    "HTTP_PROXY": PLAIN,
    "https_proxy": TLS,
    "NO_PROXY": "10.0.0.0/8, .corp.example,[fd00::]/16,other:5000",
}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://r.example/v2/", PLAIN),
        ("https://r.example/v2/", TLS),
        ("https://localhost:5000/v2/", ""),
        ("https://127.3.2.1/v2/", ""),
        ("https://[::1]:5000/v2/", ""),
        ("https://[fd00::1]/v2/", ""),
        ("https://10.1.2.3/v2/", ""),
        ("https://11.1.2.3/v2/", TLS),
        ("https://r.corp.example/v2/", ""),
        ("https://corp.example/v2/", ""),
        ("https://mycorp.example/v2/", TLS),
        ("https://other:5000/v2/", ""),
        ("https://other/v2/", TLS),
    ],
)
def test_the_environments_proxies(url: str, proxy: str) -> None:
    assert Proxies().of(url, ENVIRONMENT) == proxy


def test_configured_proxies_replace_the_environments() -> None:
    proxies = Proxies(http="http://mine:1", without=("r.example:443", "*.near.example"))
    assert proxies.of("http://10.1.2.3/v2/", ENVIRONMENT) == "http://mine:1"
    assert proxies.of("http://localhost/v2/", ENVIRONMENT) == "http://mine:1"
    assert proxies.of("https://s.example/v2/", ENVIRONMENT) == ""
    assert proxies.of("http://r.example/v2/", {}) == "http://mine:1"
    assert proxies.of("http://r.example:443/v2/", {}) == ""
    assert proxies.of("http://r.near.example/v2/", {}) == ""
    assert Proxies(http="http://mine:1", without=("*",)).of("http://r/", {}) == ""


def test_one_proxy_for_all() -> None:
    assert Proxies().of("https://r.example/", {"ALL_PROXY": PLAIN}) == PLAIN
    assert Proxies().of("https://r.example/", {}) == ""


def test_credentials_are_not_shown() -> None:
    proxy = "http://somebody:p%40ssword@proxy:3128"
    assert without_credentials(proxy) == "http://proxy:3128"
    assert without_credentials("proxy:3128") == "http://proxy:3128"
    shown = redacted(f"{proxy} p@ssword p%40ssword somebody", proxy)
    assert shown == "http://***@proxy:3128 *** *** ***"
    assert redacted("text", PLAIN) == "text"
