"""skopeo, umoci, Docker and ctr accept and boot images made of stemcells."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_docker import Docker
from testing.patience import wait_for
from testing.stemcells import stemcell_source
from tests.support.containerd.machine import Machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def archive(machine: Machine, folder: Path) -> Path:
    path = folder / "stemcell.tar"
    tarball = str(stemcell_source.stand_in("runit"))
    machine.bosh_cpi("stemcell", "convert", tarball, f"oci-archive:{path}:1")
    return path


@pytest.fixture
def loaded(docker: Docker, archive: Path, clean: None) -> Iterator[Any]:
    image = docker.load(archive)
    yield docker.client.images.get(image)
    docker.client.images.remove(image, force=True)


def test_skopeo_and_umoci_take_it(machine: Machine, archive: Path, folder: Path) -> None:
    output = machine.host.run("skopeo", "inspect", f"oci-archive:{archive}:1").stdout
    inspected = json.loads(output)
    assert inspected["Architecture"] == "amd64"
    assert inspected["Labels"]["bosh.stemcell.init"] == "runit"
    layout, bundle = folder / "layout", folder / "bundle"
    machine.bosh_cpi("stemcell", "convert", f"oci-archive:{archive}", f"oci:{layout}:1")
    machine.host.run("umoci", "unpack", "--image", f"{layout}:1", str(bundle))
    config = json.loads((bundle / "config.json").read_text())
    assert config["process"]["args"] == ["/usr/sbin/runsvdir-start"]
    assert (bundle / "rootfs/warden-cpi-dev").is_dir()


def test_docker_boots_it(docker: Docker, loaded: Any) -> None:
    """`docker run` of it is a running stemcell: its init is the first process."""
    assert loaded.labels["bosh.stemcell.operating_system"].startswith("debian-")
    (tag,) = loaded.tags
    assert tag.startswith("bosh-warden-boshlite-debian-")
    options = {"detach": True, "privileged": True, "network_mode": "none"}
    container = docker.client.containers.run(loaded.id, **options)

    def runs(words: str) -> bool:
        return bool(container.exec_run(shlex.split(words)).exit_code == 0)

    try:
        wait_for(lambda: runs("pgrep runsv"), "runit's services")
        # Docker gives it no settings, and the agent has come far enough to miss them.
        wait_for(lambda: runs("grep -q 'settings fetcher' /var/vcap/bosh/log/current"), "the agent")
        assert runs("grep -q runsvdir /proc/1/cmdline")
    finally:
        container.remove(force=True)


def test_ctr_imports_and_runs_it(machine: Machine, archive: Path, clean: None) -> None:
    name = machine.ctr("images", "import", "--base-name", "imported", str(archive)).split()[1]
    cgroup = f"{machine.host.cgroup}/by-hand"
    try:
        out = machine.ctr("run", "--rm", "--cgroup", cgroup, name, "by-hand", "ls", "/")
    finally:
        machine.ctr("images", "rm", "--sync", name)
    assert "warden-cpi-dev" in out.split()


def test_the_cpi_makes_the_same_image(machine: Machine, archive: Path, stemcell: str) -> None:
    """One core: what create_stemcell stores is what `convert` writes."""
    shown = machine.bosh_cpi("stemcell", "inspect", f"oci-archive:{archive}", "--json").stdout
    assert stemcell.rsplit("-", 1)[1] in json.loads(shown)["digest"]
