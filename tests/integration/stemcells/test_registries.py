"""The registries and the Docker of the tests are real, and refuse what they should."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from testing.hosts.private_docker import Docker, packed
from testing.hosts.private_host import PrivateHost
from tests.support.containerd.machine import Machine, sha_of
from tests.support.registries import cutting_proxy
from tests.support.registries.cutting_proxy import DOWN, UP
from tests.support.registries.docker_registry import Registry

BOTH = ("secure_registry", "token_registry")
ALL = ("registry", *BOTH)
SIZE = 4 << 20


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an OCI layout with one image, latest, of /bin/cat and a file."""
    folder = tmp_path_factory.mktemp("oci")
    root, path = folder / "root", folder / "layout"
    root.mkdir()
    subprocess.run(["tar", "-x", "-C", str(root)], input=packed("/bin/cat"), check=True)
    (root / "greeting").write_text("hello")
    (root / "content").write_bytes(os.urandom(SIZE))
    for words in (
        ["init", "--layout", str(path)],
        ["new", "--image", f"{path}:latest"],
        ["insert", "--image", f"{path}:latest", str(root), "/"],
    ):
        subprocess.run(["umoci", *words], check=True, capture_output=True)
    return path


def push(host: PrivateHost, layout: Path, registry: Registry, name: str, **options: str) -> None:
    to = f"docker://{registry.address}/{name}"
    flags = registry.skopeo("dest", **options)
    host.run("skopeo", "--insecure-policy", "copy", *flags, f"oci:{layout}:latest", to)


def layers(host: PrivateHost, registry: Registry, name: str, **options: str) -> list[str]:
    flags = registry.skopeo(**options)
    done = host.run("skopeo", "inspect", *flags, f"docker://{registry.address}/{name}")
    digests: list[str] = json.loads(done.stdout)["Layers"]
    return digests


@contextmanager
def refused(words: str) -> Iterator[None]:
    """Expect a program to fail with these words on stderr."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        yield
    assert re.search(words, caught.value.stderr), caught.value.stderr


def blobs(layout: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").iterdir()}


@pytest.mark.parametrize("named", ALL, indirect=True)
def test_what_is_pushed_can_be_inspected(host: PrivateHost, layout: Path, named: Registry) -> None:
    push(host, layout, named, "some/image:1")
    digests = layers(host, named, "some/image:1")
    assert len(digests) == 1
    assert set(digests) <= blobs(layout)


@pytest.mark.parametrize("named", BOTH, indirect=True)
def test_a_wrong_password_is_refused(host: PrivateHost, layout: Path, named: Registry) -> None:
    with refused("unauthorized|authentication required"):
        push(host, layout, named, "refused:1", password="wrong")  # noqa: S106
    push(host, layout, named, "taken:1")
    with refused("unauthorized|authentication required"):
        layers(host, named, "taken:1", password="wrong")  # noqa: S106


@pytest.mark.parametrize("named", BOTH, indirect=True)
def test_the_certificate_is_trusted_only_with_its_authority(
    host: PrivateHost, named: Registry
) -> None:
    with refused("certificate signed by unknown authority"):
        layers(host, dataclasses.replace(named, ca=Path("/nowhere/ca.crt")), "some/image:1")


@pytest.mark.parametrize(
    ("named", "scheme"),
    [("secure_registry", "Basic "), ("token_registry", 'Bearer realm="https://127.0.0.1:')],
    indirect=["named"],
)
def test_a_client_without_credentials_learns_the_scheme(
    host: PrivateHost, named: Registry, scheme: str
) -> None:
    done = host.run(sys.executable, "-c", _ASK, named.address, str(named.ca))
    assert done.stdout.startswith(f"401 {scheme}")


def test_a_registry_keeps_what_it_has_when_it_restarts(
    host: PrivateHost, layout: Path, registry: Registry, clean: None
) -> None:
    push(host, layout, registry, "kept:1")
    before = layers(host, registry, "kept:1")
    registry.stop()
    try:
        with refused("connection refused"):
            layers(host, registry, "kept:1")
    finally:
        registry.start()
    assert layers(host, registry, "kept:1") == before
    registry.restart()
    assert layers(host, registry, "kept:1") == before


@pytest.mark.parametrize("named", ALL, indirect=True)
def test_an_upload_is_cut(host: PrivateHost, layout: Path, named: Registry) -> None:
    name = f"cut/{named.address.replace(':', '-')}:1"
    with cutting_proxy.cutting(host, named.address, UP, after=1 << 20) as proxy:
        behind = dataclasses.replace(named, address=proxy.address)
        assert proxy.cuts() == 0
        with refused("writing blob"):
            push(host, layout, behind, name)
        assert proxy.cuts() == 1
        push(host, layout, behind, name)
        assert proxy.cuts() == 1
    assert set(layers(host, named, name)) <= blobs(layout)


def test_downloads_are_cut(
    host: PrivateHost, layout: Path, registry: Registry, tmp_path: Path
) -> None:
    push(host, layout, registry, "down:1")
    with cutting_proxy.cutting(host, registry.address, DOWN, after=1 << 20, times=2) as proxy:
        fetch = ["skopeo", "--insecure-policy", "copy", *registry.skopeo("src")]
        fetch.append(f"docker://{proxy.address}/down:1")
        done = host.run(*fetch, f"dir:{tmp_path}", check=False)
        while done.returncode:
            assert "connection reset by peer" in done.stderr
            done = host.run(*fetch, f"dir:{tmp_path}", check=False)
        assert proxy.cuts() == 2
    (digest,) = layers(host, registry, "down:1")
    assert sha_of(tmp_path / digest.removeprefix("sha256:")) == digest.removeprefix("sha256:")


def test_docker_loads_an_archive_and_runs_it(
    docker: Docker, layout: Path, tmp_path: Path, clean: None
) -> None:
    archive = tmp_path / "image.tar"
    words = ["copy", f"oci:{layout}:latest", f"docker-archive:{archive}:loaded:1"]
    subprocess.run(["skopeo", "--insecure-policy", *words], check=True, capture_output=True)
    image = docker.load(archive)
    assert docker.client.images.get("loaded:1").id == image
    container = docker.client.containers.run(
        image, ["/bin/cat", "/greeting"], detach=True, privileged=True, network_mode="host"
    )
    try:
        assert container.wait()["StatusCode"] == 0
        assert container.logs() == b"hello"
    finally:
        container.remove()
        docker.client.images.remove(image)


def test_docker_runs_an_image_of_programs(docker: Docker) -> None:
    image = docker.pack("echo", "/bin/echo", entrypoint=["/bin/echo", "hello"])
    try:
        assert docker.run(image, "there") == "hello there\n"
    finally:
        docker.client.images.remove(image)


def test_docker_leaves_nothing_behind() -> None:
    with PrivateHost() as host:
        machine = Machine(host)
        before = left(machine)
        with Docker(host) as docker:
            image = docker.pack("sleep", "/bin/sleep", entrypoint=["/bin/sleep", "600"])
            docker.client.containers.run(image, detach=True, privileged=True, network_mode="none")
            during = left(machine)
            assert "sleep" in during["processes"]
        assert {what for what in before if during[what] != before[what]} == set(before)
        assert left(machine) == before


def test_a_docker_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Docker, "_config", lambda docker: {"nonsense": True})
    with PrivateHost() as host:
        machine = Machine(host)
        before = left(machine)
        with pytest.raises(RuntimeError, match=r"has ended:\n(.*\n)*.*nonsense"), Docker(host):
            pass
        assert left(machine) == before


_ASK = """
import http.client, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
connection = http.client.HTTPSConnection(sys.argv[1], context=context)
connection.request("GET", "/v2/")
answer = connection.getresponse()
print(answer.status, answer.headers["WWW-Authenticate"])
"""


def left(machine: Machine) -> dict[str, Sequence[str]]:
    """Return what Docker could leak on a host."""
    show = {
        "processes": "ps -e -o comm=",
        "mounts": "cut -d ' ' -f 5 /proc/self/mountinfo",
        "namespaces": f"ctr --address {machine.host.address} namespaces ls -q",
        "files": f"ls {machine.host.folder}",
        "cgroups": f"find /sys/fs/cgroup -type d -path '*{machine.host.cgroup}/*'",
    }
    listings = {what: machine.host.run(*shlex.split(words)) for what, words in show.items()}
    return {what: sorted(done.stdout.split("\n")) for what, done in listings.items()}
