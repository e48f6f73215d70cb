"""Push and pull, with registries that require log-ins, and connections that break."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.containerd.machine import Machine, failing
from tests.support.registries.cutting_proxy import DOWN, UP, cutting
from tests.support.registries.docker_registry import Registry
from tests.support.registries.registry_user import User


def test_a_pull_gives_what_was_pushed(user: User, small: Path, tmp_path: Path) -> None:
    digest = user.run("convert", small, f"oci-archive:{tmp_path}/a.tar")
    pushed = user.run("push", f"oci-archive:{tmp_path}/a.tar", user.name("pulled:1"))
    assert pushed.endswith(digest)
    assert user.run("pull", user.name("pulled:1"), f"oci:{tmp_path}/b:x") == digest
    by_digest = user.name(f"pulled@{digest}")
    assert user.run("pull", by_digest, f"oci-archive:{tmp_path}/c.tar:latest") == digest
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()
    inspected = json.loads(user.run("inspect", by_digest, "--json"))
    assert (inspected["digest"], inspected["version"]) == (digest, "1.2")


def test_existing_blobs_are_not_sent_again(user: User, small: Path) -> None:
    user.run("push", small, user.name("twice:1"))
    sent = user.registry.log().count('"PUT /v2/twice/blobs')
    assert sent == 3
    user.run("push", small, user.name("twice:2"))
    assert user.registry.log().count('"PUT /v2/twice/blobs') == sent
    assert user.registry.log().count('"PUT /v2/twice/manifests') == 2


# Log-ins and certificates


@pytest.mark.parametrize("named", ["secure_registry", "token_registry"], indirect=True)
def test_a_log_in_that_fails_says_what_to_do(
    machine: Machine, named: Registry, small: Path, untouched: None
) -> None:
    for user in (
        User(machine, named, password="wrong"),  # noqa: S106
        User(machine, replace(named, username="", password="")),
    ):
        problem = user.run("push", small, user.name("closed:1"), check=False)
        assert f"docker login {named.address}" in problem
        assert "wrong" not in problem
        error = failing(lambda user=user: user.create({"image_reference": user.name("closed:1")}))  # type: ignore[misc]
        assert "docker login" in error.message


def test_an_unknown_certificate_is_refused(
    machine: Machine, secure_registry: Registry, registry: Registry, small: Path
) -> None:
    unknown = User(machine, secure_registry, ca_file="/etc/ssl/certs/ca-certificates.crt")
    problem = unknown.run("push", small, unknown.name("a:1"), check=False)
    assert "its certificate is not trusted" in problem
    assert "registry.ca_file" in problem
    plain = User(machine, secure_registry, plain_http=[secure_registry.address])
    assert "speaks TLS" in plain.run("push", small, plain.name("a:1"), check=False)
    tls = User(machine, registry, plain_http=[])
    assert "--plain-http" in tls.run("push", small, tls.name("a:1"), check=False)
    tls.run("push", small, tls.name("a:1"), "--plain-http")


# Connections that break


def test_a_download_goes_on_where_it_broke(
    machine: Machine, registry: Registry, small: Path, untouched: None
) -> None:
    direct = User(machine, registry)
    digest = direct.run("push", small, direct.name("broken:1")).partition("@")[2]
    with cutting(machine.host, registry.address, DOWN, after=1 << 20, times=3) as proxy:
        user = User(machine, replace(registry, address=proxy.address))
        stemcell = user.create({"image_reference": user.name("broken"), "digest": digest})
        assert proxy.cuts() == 3
    assert stemcell.rsplit("-", 1)[1] in digest
    # Partial content: what had come was not asked for again.
    assert '" 206 ' in registry.log()
    machine.call("delete_stemcell", stemcell)


def test_an_upload_is_sent_again(machine: Machine, registry: Registry, small: Path) -> None:
    with cutting(machine.host, registry.address, UP, after=1 << 20, times=1) as proxy:
        user = User(machine, replace(registry, address=proxy.address))
        user.run("push", small, user.name("again:1"))
        assert proxy.cuts() == 1
    user = User(machine, registry)
    assert json.loads(user.run("inspect", user.name("again:1"), "--json"))["version"] == "1.2"


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_connection_that_always_breaks_is_reported(
    machine: Machine, registry: Registry, small: Path, direction: str, tmp_path: Path
) -> None:
    direct = User(machine, registry)
    direct.run("push", small, direct.name("never:1"))
    with cutting(machine.host, registry.address, direction, after=2000, times=99) as proxy:
        user = User(machine, replace(registry, address=proxy.address))
        if direction == UP:
            problem = user.run("push", small, user.name("new:1"), check=False)
        else:
            problem = user.run("pull", user.name("never:1"), f"oci:{tmp_path}/x", check=False)
            error = failing(lambda: user.create({"image_reference": user.name("never:1")}))
            assert error.ok_to_retry
        assert proxy.address in problem
        assert proxy.cuts() >= 3
    assert [path.name for path in tmp_path.iterdir()] == ["small.tgz"]


def test_a_registry_that_is_down_may_be_tried_again(
    user: User, registry: Registry, untouched: None
) -> None:
    registry.stop()
    try:
        error = failing(lambda: user.create({"image_reference": user.name("any:1")}))
    finally:
        registry.start()
    assert error.ok_to_retry
    assert f"{registry.address}: Connection refused" in error.message
