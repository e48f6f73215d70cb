"""Registries behind a proxy: plain and with TLS, by the configuration and by the environment."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.containerd.machine import Machine, failing
from tests.support.registries.docker_registry import Registry
from tests.support.registries.forward_proxy import ForwardProxy, forwarding
from tests.support.registries.registry_user import User

PASSWORD = "pass%2Fword"  # noqa: S105 - of a proxy that lives for a test


@pytest.fixture(scope="module")
def proxy(machine: Machine) -> Iterator[ForwardProxy]:
    with forwarding(machine.host, "somebody:pass/word") as running:
        yield running


def settings(proxy: ForwardProxy, password: str = PASSWORD) -> dict[str, str]:
    url = f"http://somebody:{password}@{proxy.address}"
    return {"http_proxy": url, "https_proxy": url}


def test_a_registry_that_only_the_proxy_reaches(
    machine: Machine, registry: Registry, proxy: ForwardProxy, small: Path, untouched: None
) -> None:
    name = registry.address.replace("127.0.0.1", "registry.test")
    hidden = replace(registry, address=name)
    direct = User(machine, hidden)
    assert "GET to the registry registry.test" in direct.run(
        "push", small, direct.name("hidden:1"), check=False
    )
    user = User(machine, hidden, **settings(proxy))
    user.run("push", small, user.name("hidden:1"))
    stemcell = user.create({"image_reference": user.name("hidden:1")})
    machine.call("delete_stemcell", stemcell)
    assert f"PUT {name}" in proxy.requests()


@pytest.mark.parametrize("named", ["secure_registry", "token_registry"], indirect=True)
def test_a_registry_with_tls_and_a_log_in(
    machine: Machine, named: Registry, proxy: ForwardProxy, small: Path, untouched: None
) -> None:
    before = len(proxy.requests())
    user = User(machine, named, **settings(proxy), no_proxy=[])
    user.run("push", small, user.name("tunnelled:1"))
    stemcell = user.create({"image_reference": user.name("tunnelled:1")})
    machine.call("delete_stemcell", stemcell)
    requests = proxy.requests()[before:]
    assert {line.split()[0] for line in requests} == {"CONNECT"}
    assert f"CONNECT {named.address}" in requests


def test_registries_on_this_host_need_no_proxy(
    machine: Machine, registry: Registry, proxy: ForwardProxy, small: Path
) -> None:
    before = proxy.requests()
    user = User(machine, registry, **settings(proxy))
    user.run("push", small, user.name("near:1"))
    assert proxy.requests() == before


def test_the_environments_proxy(
    machine: Machine, secure_registry: Registry, proxy: ForwardProxy, small: Path
) -> None:
    user = User(machine, secure_registry, no_proxy=[])
    before = len(proxy.requests())
    words = ("stemcell", "push", str(small), user.name("environment:1"))
    url = settings(proxy)["https_proxy"]
    done = machine.bosh_cpi(*words, config=user.config, env={"HTTPS_PROXY": url})
    assert done.returncode == 0
    assert proxy.requests()[before:]
    after = len(proxy.requests())
    machine.bosh_cpi(
        *words, config=user.config, env={"HTTPS_PROXY": url, "NO_PROXY": secure_registry.address}
    )
    assert not proxy.requests()[after:]


@pytest.mark.parametrize("named", ["registry", "secure_registry"], indirect=True)
def test_a_wrong_password_is_named_and_not_shown(
    machine: Machine, named: Registry, proxy: ForwardProxy, untouched: None
) -> None:
    user = User(machine, named, **settings(proxy, "hunter22"), no_proxy=[])
    error = failing(lambda: user.create({"image_reference": user.name("refused:1")}))
    assert f"the proxy http://{proxy.address} rejected the credentials" in error.message
    assert "hunter22" not in str(error)


def test_a_proxy_that_is_not_there(machine: Machine, registry: Registry) -> None:
    gone = "http://somebody:hunter22@127.0.0.1:9"
    user = User(machine, registry, http_proxy=gone, no_proxy=[])
    error = failing(lambda: user.create({"image_reference": user.name("refused:1")}))
    assert "through the proxy http://127.0.0.1:9: " in error.message
    assert "hunter22" not in str(error)
