"""Registries that a client of the service chooses lead nowhere inside, and to no others' images."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_service import Service, ThinClient
from tests.support.containerd.machine import CallFailed, Machine
from tests.support.registries.docker_registry import Authority, Registry
from tests.support.registries.misleading_registry import TOKEN, MisleadingRegistry, misleading
from tests.support.registries.registry_user import User


@pytest.fixture(scope="module")
def inside(machine: Machine, authority: Authority) -> Iterator[dict[str, MisleadingRegistry]]:
    """Yield servers that only this host should reach, by scheme."""
    with (
        misleading(machine.host) as plain,
        misleading(machine.host, authority=authority) as secure,
    ):
        yield {"http": plain, "https": secure}


@pytest.fixture(scope="module", params=["http", "https"])
def outside(
    request: pytest.FixtureRequest,
    machine: Machine,
    authority: Authority,
    inside: dict[str, MisleadingRegistry],
) -> Iterator[tuple[MisleadingRegistry, MisleadingRegistry]]:
    """Yield an attacker's registry, and the server inside that it leads to."""
    target = inside[request.param]
    url = f"{request.param}://{target.address}/inside"
    with misleading(machine.host, url, authority) as registry:
        yield registry, target


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.touch()
    return path


def served(machine: Machine, stack: ExitStack, **registry: Any) -> ThinClient:
    """Run a service until the stack ends; return a client of it."""
    rules = registry.pop("rules", {})
    settings = {"clients": {"local": rules}}
    return stack.enter_context(Service(machine.host, settings, registry=registry)).client()


@pytest.mark.parametrize("way", ["realm", "redirect"])
def test_a_registry_does_not_lead_inside(
    machine: Machine,
    authority: Authority,
    outside: tuple[MisleadingRegistry, MisleadingRegistry],
    image: Path,
    way: str,
) -> None:
    registry, target = outside
    before = len(target.requests())
    light = {"image_reference": f"{registry.address}/{way}/image:1"}
    with ExitStack() as stack:
        client = served(machine, stack, ca_file=str(authority.ca), allowed=[registry.address])
        error = client("create_stemcell", str(image), light)["error"]
    assert registry.requests(), "the registry itself may be asked"
    assert target.requests()[before:] == []
    assert not [line for line in registry.requests() if TOKEN in line]
    assert target.address not in error["message"]


def test_root_is_led_inside_but_never_without_tls(
    machine: Machine,
    authority: Authority,
    inside: dict[str, MisleadingRegistry],
    outside: tuple[MisleadingRegistry, MisleadingRegistry],
    image: Path,
) -> None:
    registry, target = outside
    before = len(target.requests())
    config = machine.host.write_config("root.json", registry={"ca_file": str(authority.ca)})
    light = {"image_reference": f"{registry.address}/realm/image:1"}
    with pytest.raises(CallFailed) as raised:
        machine.call("create_stemcell", str(image), light, config=config)
    is_plain = target is inside["http"]
    assert bool(target.requests()[before:]) == (not is_plain)
    assert ("without TLS" in raised.value.message) == is_plain


def test_a_client_reaches_no_registry_inside(
    machine: Machine, authority: Authority, inside: dict[str, MisleadingRegistry], image: Path
) -> None:
    """What listens and what does not are told apart neither by the text nor by its class."""
    server = inside["https"]
    before = len(server.requests())
    errors = []
    with ExitStack() as stack:
        client = served(machine, stack, ca_file=str(authority.ca))
        for address in (server.address, "127.0.0.1:9", "10.0.0.1"):
            light = {"image_reference": f"{address}/image:1"}
            error = client("create_stemcell", str(image), light)["error"]
            errors.append({**error, "message": error["message"].replace(address, "HOST")})
    assert errors[0] == errors[1] == errors[2]
    assert "registry.allowed" in errors[0]["message"]
    assert server.requests()[before:] == []


def test_a_private_image_is_only_for_who_may_read_it(
    machine: Machine,
    secure_registry: Registry,
    authority: Authority,
    small: Path,
    image: Path,
    untouched: None,
) -> None:
    """Also when another has imported it."""
    user = User(machine, secure_registry)
    user.run("push", small, user.name("private:1"))
    light = {"image_reference": user.name("private:1")}
    stemcell = user.create(light)
    settings: dict[str, Any] = {
        "ca_file": str(authority.ca),
        "allowed": [secure_registry.address],
        "docker_config": str(machine.host.folder / "user" / "docker.json"),
    }
    with ExitStack() as stack:
        client = served(machine, stack, **settings)
        error = client("create_stemcell", str(image), light)["error"]
        assert error is not None, "the client has no credentials"
        assert "not logged in" in error["message"]
    with ExitStack() as stack:
        rules = {"registry_credentials": True}
        client = served(machine, stack, rules=rules, **settings)
        assert client("create_stemcell", str(image), light)["result"] == stemcell
        assert client("delete_stemcell", stemcell)["error"] is None
    machine.call("delete_stemcell", stemcell)  # which root holds as well
