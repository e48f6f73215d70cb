"""Push, pull and light stemcells, with real registries that want what real ones want."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containerd.cutting_proxy import DOWN, UP, cutting
from tests.containerd.docker import Docker
from tests.containerd.machine import Machine, failing, sha_of
from tests.containerd.registries import Registry
from tests.stemcell_convert.stemcells import MANIFEST, ROOTFS, tar, tarball, zipped
from tools import stemcell_source

ALL = ("registry", "secure_registry", "token_registry")


class User:
    """Somebody on the host who has logged in to a registry."""

    def __init__(self, machine: Machine, registry: Registry, **changes: Any) -> None:
        self.machine = machine
        self.registry = registry
        self._folder = machine.host.folder / "user"
        self._folder.mkdir(exist_ok=True)
        docker = self._folder / "docker.json"
        secret = f"{registry.username}:{changes.pop('password', registry.password)}"
        auth = {"auth": base64.b64encode(secret.encode()).decode()}
        docker.write_text(
            json.dumps({"auths": {registry.address: auth} if len(secret) > 1 else {}})
        )
        settings: dict[str, Any] = {"docker_config": str(docker)}
        if registry.ca:
            settings["ca_file"] = str(registry.ca)
        else:
            settings["plain_http"] = [registry.address]
        self.config = machine.host.write_config("user.json", registry={**settings, **changes})

    def run(self, *words: object, check: bool = True) -> str:
        """`bosh-cpi stemcell …`; returns stdout, or without `check` what it complains of."""
        texts = ["stemcell", *map(str, words)]
        done = self.machine.bosh_cpi(*texts, check=check, config=self.config)
        assert check or done.returncode == 1
        return str(done.stdout if check else done.stderr).strip()

    def name(self, name: str) -> str:
        return f"{self.registry.address}/{name}"

    def light(self, tgz: Path) -> tuple[str, dict[str, Any]]:
        """Unpack a light stemcell as BOSH does: its image, and cloud_properties."""
        folder = self._folder / "light"
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(tgz) as tgz_file:
            tgz_file.extractall(folder, filter="data")
        document = yaml.safe_load((folder / "stemcell.MF").read_text())
        return str(folder / "image"), document["cloud_properties"]

    def create(self, properties: dict[str, Any]) -> str:
        """create_stemcell of a light stemcell."""
        image = self._folder / "image"
        image.touch()
        return str(self.machine.call("create_stemcell", str(image), properties, config=self.config))


@pytest.fixture
def user(machine: Machine, registry: Registry) -> User:
    return User(machine, registry)


@pytest.fixture
def named(request: pytest.FixtureRequest) -> Registry:
    """The registry that the test is parametrized with."""
    found: Registry = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A stemcell of some MiB, which no other test has."""
    members = {"image": zipped(tar({**ROOTFS, "./var/more": os.urandom(4 << 20)}))}
    return tarball(tmp_path / "small.tgz", {**members, "stemcell.MF": MANIFEST})


@pytest.fixture
def untouched(machine: Machine) -> Iterator[None]:
    """Fail a test that leaves anything in containerd, or on its way there."""
    before = _stored(machine)
    yield
    assert _stored(machine) == before


def _stored(machine: Machine) -> list[str]:
    content = [line.split()[0] for line in machine.ctr("content", "ls").splitlines()[1:]]
    snapshots = [line.split()[0] for line in machine.ctr("snapshots", "ls").splitlines()[1:]]
    active = machine.ctr("content", "active").splitlines()[1:]
    imports = machine.host.state / "imports"
    files = [str(path) for path in imports.iterdir()] if imports.exists() else []
    return [*machine.ctr("images", "ls", "-q").split(), *content, *snapshots, *active, *files]


# The loop: stemcell, registry, light stemcell, VM


@pytest.mark.parametrize("named", ALL, indirect=True)
def test_a_light_stemcell_is_the_stemcell_it_was_made_of(
    machine: Machine, named: Registry, small: Path, tmp_path: Path, untouched: None
) -> None:
    user, light = User(machine, named), tmp_path / "light.tgz"
    reference = user.name("team/stemcell:1")
    pushed = user.run("push", small, reference, "--light-stemcell", light)
    assert pushed.startswith(f"{reference}@sha256:")
    image, properties = user.light(light)
    assert pushed == f"{properties['image_reference']}@{properties['digest']}"
    stemcell = machine.call("create_stemcell", image, properties, config=user.config)
    again = machine.call("create_stemcell", image, properties, config=user.config)
    imported = user.run("convert", small, "containerd")
    assert stemcell == again == imported
    assert stemcell.rsplit("-", 1)[1] in properties["digest"]
    machine.call("delete_stemcell", stemcell)


def test_a_vm_of_a_light_stemcell_runs(
    machine: Machine, user: User, tmp_path: Path, clean: None, untouched: None
) -> None:
    light = tmp_path / "light.tgz"
    tgz = stemcell_source.stand_in("runit")
    user.run("push", tgz, user.name("runit:1"), "--light-stemcell", light)
    image, properties = user.light(light)
    stemcell = machine.call("create_stemcell", image, properties, config=user.config)
    vm = machine.create_vm(stemcell, agent_id="the-agent")
    vm.wait_for_agent()
    assert '"the-agent"' in vm.sh("cat /var/vcap/bosh/warden-cpi-agent-env.json")
    vm.delete()
    machine.call("delete_stemcell", stemcell)


def test_somebody_elses_image_is_adapted_and_runs(
    machine: Machine, user: User, tmp_path: Path, clean: None, untouched: None
) -> None:
    """A docker-light stemcell as others push it: Docker's media types, and layers that hide."""
    layout, digest = _foreign(stemcell_source.stand_in("runit"), tmp_path)
    to = user.name("foreign:1")
    flags = ["--dest-tls-verify=0", "--format", "v2s2"]
    copy = ["skopeo", "--insecure-policy", "copy", *flags, f"oci:{layout}:x", f"docker://{to}"]
    machine.host.run(*copy)
    stemcell = user.create({"name": "foreign", "version": "7", "image_reference": to})
    assert stemcell.rsplit("-", 1)[1] not in digest, "it has a layer more"
    vm = machine.create_vm(stemcell)
    vm.wait_for_agent()
    assert vm.sh("cat /opt/added") == "added"
    assert vm.sh("ls /usr/share/doc 2>&1 || true").endswith("No such file or directory")
    assert vm.sh("ls -d /warden-cpi-dev") == "/warden-cpi-dev"
    vm.delete()
    machine.call("delete_stemcell", stemcell)


def _foreign(tgz: Path, folder: Path) -> tuple[Path, str]:
    """A layout with the stemcell's root file system, another layer, and none of ours."""
    opened = stemcell_source.opened(tgz, folder).image
    layout, upper = folder / "layout", folder / "upper.tar"
    upper.write_bytes(tar({"./opt/added": b"added", "./usr/share/.wh.doc": b""}))
    for words in (
        ["init", "--layout", str(layout)],
        ["new", "--image", f"{layout}:x"],
        ["raw", "add-layer", "--image", f"{layout}:x", str(_gunzipped(opened, folder))],
        ["raw", "add-layer", "--image", f"{layout}:x", str(upper)],
    ):
        subprocess.run(["umoci", *words], check=True, capture_output=True)
    index = json.loads((layout / "index.json").read_text())
    return layout, str(index["manifests"][0]["digest"])


def _gunzipped(image: Path, folder: Path) -> Path:
    path = folder / "rootfs.tar"
    with path.open("wb") as file:
        subprocess.run(["gzip", "-dc", str(image)], check=True, stdout=file)
    return path


def test_a_pull_gives_what_was_pushed(user: User, small: Path, tmp_path: Path) -> None:
    digest = user.run("convert", small, f"oci-archive:{tmp_path}/a.tar")
    pushed = user.run("push", f"oci-archive:{tmp_path}/a.tar", user.name("pulled:1"))
    assert pushed.endswith(digest)
    assert user.run("pull", user.name("pulled:1"), f"oci:{tmp_path}/b:x") == digest
    by_digest = user.name(f"pulled@{digest}")
    assert user.run("pull", by_digest, f"oci-archive:{tmp_path}/c.tar:latest") == digest
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()
    found = json.loads(user.run("inspect", by_digest, "--json"))
    assert (found["digest"], found["version"]) == (digest, "1.2")


def test_an_image_for_several_platforms(
    machine: Machine, user: User, small: Path, tmp_path: Path, untouched: None
) -> None:
    user.run("convert", small, f"oci:{tmp_path}/layout:x")
    layout = tmp_path / "layout"
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    other = {**entry, "platform": {"os": "linux", "architecture": "riscv64"}}
    index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [other, entry]})
    path = tmp_path / "index"
    path.write_text(index)
    name = f"layout/blobs/sha256/{sha_of(path)}"
    path.rename(tmp_path / name)
    outer = {"mediaType": _INDEX, "digest": f"sha256:{name[-64:]}", "size": len(index)}
    outer["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [outer]}))
    to = user.name("several")
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--dest-tls-verify=0"]
    machine.host.run(*copy, f"oci:{layout}:x", f"docker://{to}:1")
    look = ["skopeo", "inspect", "--raw", "--tls-verify=0", f"docker://{to}:1"]
    raw = str(machine.host.run(*look).stdout)
    ours = json.loads(raw)["manifests"][1]["digest"]  # skopeo compresses a layer on the way
    index_digest = f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}"
    stemcell = user.create({"image_reference": to, "digest": index_digest})
    assert stemcell.rsplit("-", 1)[1] in ours
    machine.call("delete_stemcell", stemcell)


_INDEX = "application/vnd.oci.image.index.v1+json"


def test_what_is_there_is_not_sent_again(user: User, small: Path) -> None:
    user.run("push", small, user.name("twice:1"))
    sent = user.registry.log().count('"PUT /v2/twice/blobs')
    assert sent == 3
    user.run("push", small, user.name("twice:2"))
    assert user.registry.log().count('"PUT /v2/twice/blobs') == sent
    assert user.registry.log().count('"PUT /v2/twice/manifests') == 2


# Tags and digests


def test_a_tag_is_resolved_once(
    machine: Machine, user: User, small: Path, tmp_path: Path, untouched: None
) -> None:
    tag = {"image_reference": user.name("moving:latest")}
    user.run("push", small, user.name("moving"))
    first = user.create(tag)
    other = tarball(tmp_path / "other.tgz")
    user.run("push", other, user.name("moving:latest"))
    assert user.create(tag) == first
    machine.call("delete_stemcell", first)
    second = user.create({"image_reference": user.name("moving")})
    assert second != first
    machine.call("delete_stemcell", second)


def test_tags_alone_can_be_forbidden(machine: Machine, registry: Registry, untouched: None) -> None:
    user = User(machine, registry, require_digest=True)
    error = failing(lambda: user.create({"image_reference": user.name("any:1")}))
    assert "registry.require_digest" in error.message


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({}, "no image_reference"),
        ({"image_reference": "../../etc"}, "no image reference"),
        ({"image_reference": "127.0.0.1:5000/a", "digest": "sha256:12"}, "should be sha256:<hex>"),
        ({"image_reference": "127.0.0.1:5000/a", "digest": "sha256:" + "a" * 64}, "404"),
        ({"image_reference": "127.0.0.1:5000/none:1"}, "127.0.0.1:5000/none"),
    ],
)
def test_what_cannot_be_fetched_is_named(
    user: User, properties: dict[str, Any], words: str, untouched: None
) -> None:
    error = failing(lambda: user.create(properties))
    assert error.type == "CloudError"
    assert words in error.message
    assert not error.ok_to_retry


def _blob(docker: Docker, registry: Registry, digest: str) -> Path:
    """Where a registry keeps a blob (distribution's storage driver)."""
    port, name = registry.address.rsplit(":", 1)[1], digest.partition(":")[2]
    blobs = docker.folder / "registries" / port / "docker/registry/v2/blobs/sha256"
    return blobs / name[:2] / name / "data"


@pytest.mark.parametrize("what", ["layer", "config", "manifest"])
def test_what_is_not_its_digest_is_refused(
    docker: Docker, user: User, small: Path, what: str, tmp_path: Path, untouched: None
) -> None:
    found = json.loads(user.run("push", small, user.name(f"forged-{what}:1"), "--json"))
    layout = f"oci:{tmp_path}/layout"
    user.run("convert", small, layout)
    manifest = (tmp_path / "layout/blobs/sha256" / found["digest"][7:]).read_text()
    digests = {
        "layer": found["layers"][0]["digest"],
        "config": json.loads(manifest)["config"]["digest"],
        "manifest": found["digest"],
    }
    path = _blob(docker, user.registry, digests[what])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"debian-test", b"debian-evil").replace(ROOTFS_MARK, EVIL_MARK))
    assert path.stat().st_size == len(data)
    assert path.read_bytes() != data
    properties = {"image_reference": user.name(f"forged-{what}"), "digest": found["digest"]}
    error = failing(lambda: user.create(properties))
    assert "digest" in error.message
    assert digests[what] in error.message
    named = user.name(f"forged-{what}@{found['digest']}")
    assert digests[what] in user.run("pull", named, f"oci:{tmp_path}/none", check=False)
    assert not (tmp_path / "none").exists()
    path.write_bytes(data)


ROOTFS_MARK, EVIL_MARK = b'PRETTY_NAME="Test"', b'PRETTY_NAME="Evil"'


# Log-ins and certificates


@pytest.mark.parametrize("named", ALL[1:], indirect=True)
def test_a_log_in_that_fails_says_what_to_do(
    machine: Machine, named: Registry, small: Path, untouched: None
) -> None:
    for user in (
        User(machine, named, password="wrong"),  # noqa: S106
        User(machine, replace(named, username="", password="")),
    ):
        told = user.run("push", small, user.name("closed:1"), check=False)
        assert f"docker login {named.address}" in told
        assert "wrong" not in told
        error = failing(lambda user=user: user.create({"image_reference": user.name("closed:1")}))  # type: ignore[misc]
        assert "docker login" in error.message


def test_a_certificate_nobody_knows_is_refused(
    machine: Machine, secure_registry: Registry, registry: Registry, small: Path
) -> None:
    unknown = User(machine, secure_registry, ca_file="/etc/ssl/certs/ca-certificates.crt")
    told = unknown.run("push", small, unknown.name("a:1"), check=False)
    assert "its certificate is not trusted" in told
    assert "registry.ca_file" in told
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
            told = user.run("push", small, user.name("new:1"), check=False)
        else:
            told = user.run("pull", user.name("never:1"), f"oci:{tmp_path}/x", check=False)
            error = failing(lambda: user.create({"image_reference": user.name("never:1")}))
            assert error.ok_to_retry
        assert proxy.address in told
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
