"""Light stemcells, with real registries."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_docker import Docker
from testing.stemcells import stemcell_source
from tests.support.containerd.broken_calls import broken, drop_leases, fails
from tests.support.containerd.machine import Machine, failing, sha_of
from tests.support.registries.docker_registry import Registry
from tests.support.registries.registry_user import User
from tests.support.stemcells.small_stemcells import MANIFEST, tar, tarball

ALL = ("registry", "secure_registry", "token_registry")


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
    machine: Machine, user: User, runit_image: Path, tmp_path: Path, clean: None, untouched: None
) -> None:
    # With its own manifest, so that it is not the stemcell of other tests.
    members = {"image": runit_image.read_bytes(), "stemcell.MF": MANIFEST}
    light, tgz = tmp_path / "light.tgz", tarball(tmp_path / "runit.tgz", members)
    user.run("push", tgz, user.name("runit:1"), "--light-stemcell", light)
    image, properties = user.light(light)
    stemcell = machine.call("create_stemcell", image, properties, config=user.config)
    vm = machine.create_vm(stemcell, agent_id="the-agent")
    vm.wait_for_agent()
    assert '"the-agent"' in vm.sh("cat /var/vcap/bosh/warden-cpi-agent-env.json")
    vm.delete()
    machine.call("delete_stemcell", stemcell)


def test_a_foreign_image_is_adapted_and_runs(
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
    """Return a layout with the stemcell's root file system and another layer, but not ours."""
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


def test_tags_can_be_forbidden(machine: Machine, registry: Registry, untouched: None) -> None:
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
    """Return where a registry keeps a blob (distribution's storage driver)."""
    port, name = registry.address.rsplit(":", 1)[1], digest.partition(":")[2]
    blobs = docker.folder / "registries" / port / "docker/registry/v2/blobs/sha256"
    return blobs / name[:2] / name / "data"


@pytest.mark.parametrize("what", ["layer", "config", "manifest"])
def test_what_is_not_its_digest_is_refused(
    docker: Docker, user: User, small: Path, what: str, tmp_path: Path, untouched: None
) -> None:
    pushed = json.loads(user.run("push", small, user.name(f"forged-{what}:1"), "--json"))
    layout = f"oci:{tmp_path}/layout"
    user.run("convert", small, layout)
    manifest = (tmp_path / "layout/blobs/sha256" / pushed["digest"][7:]).read_text()
    digests = {
        "layer": pushed["layers"][0]["digest"],
        "config": json.loads(manifest)["config"]["digest"],
        "manifest": pushed["digest"],
    }
    path = _blob(docker, user.registry, digests[what])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"debian-test", b"debian-evil").replace(ROOTFS_MARK, EVIL_MARK))
    assert path.stat().st_size == len(data)
    assert path.read_bytes() != data
    properties = {"image_reference": user.name(f"forged-{what}"), "digest": pushed["digest"]}
    error = failing(lambda: user.create(properties))
    assert "digest" in error.message
    assert digests[what] in error.message
    named = user.name(f"forged-{what}@{pushed['digest']}")
    assert digests[what] in user.run("pull", named, f"oci:{tmp_path}/none", check=False)
    assert not (tmp_path / "none").exists()
    path.write_bytes(data)


ROOTFS_MARK, EVIL_MARK = b'PRETTY_NAME="Test"', b'PRETTY_NAME="Evil"'


# Calls that break

STEPS = [
    "stemcell_convert.registry:Registry.manifest",
    "stemcell_convert.registry:Registry.pull",
    "runtimes.containerd.image_writer:ImageWriter.rootfs",
    "runtimes.containerd.image_writer:ImageWriter.layer",
    "runtimes.containerd.image_store:ImageStore.create_image",
]


@pytest.mark.parametrize("target", STEPS)
def test_a_broken_or_killed_import_does_not_block_the_next(
    machine: Machine, user: User, small: Path, target: str, untouched: None
) -> None:
    user.run("push", small, user.name("killed:1"))
    properties = {"image_reference": user.name("killed:1")}
    image = str(user.empty_image())
    before = machine.stored()
    fails(machine, target, "after", "create_stemcell", image, properties, config=user.config)
    assert machine.stored() == before
    broken(machine, target, "kill", "create_stemcell", image, properties, config=user.config)
    machine.call("delete_stemcell", user.create(properties))
    drop_leases(machine)
