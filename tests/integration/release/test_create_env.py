"""BOSH's own CLI makes, changes and deletes a VM with the release: deploy/first-try.yml.

Where BOSH_CLI names the CLI and BOSH_STEMCELL a warden stemcell with BOSH's real agent: in process
as root, and through the host's service as an unprivileged user. Needs ruby.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_host import CPI, PrivateHost
from testing.hosts.private_service import Service
from testing.repository import REPOSITORY
from tools import release_tarball
from tools.release_tarball import FIRST_TRY, RELEASE

CLI, STEMCELL = os.environ.get("BOSH_CLI"), os.environ.get("BOSH_STEMCELL")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (CLI and STEMCELL), reason="BOSH_CLI and BOSH_STEMCELL are not set"),
]

NOBODY = 65534
GROUP = "users"


class Environment:
    """A folder with the manifest's variables and state, and a host to create it on."""

    def __init__(self, host: PrivateHost, client: dict[str, Any], user: int) -> None:
        self.host = host
        self.folder = host.folder / "environment"
        self.folder.mkdir()
        self.stemcell = Path(str(STEMCELL))
        self.disk = 1024
        self.user = user
        for source, name in ((RELEASE, "cpi"), (FIRST_TRY, "first-try")):
            staged = release_tarball.stage(source, self.folder / name)
            release_tarball.write(staged, "1", self.folder / f"{name}.tgz")
        path = "/cloud_provider/properties/containerd_cpi?"
        change = [{"type": "replace", "path": path, "value": client}]
        (self.folder / "client.yml").write_text(json.dumps(change))
        os.chown(self.folder, user, -1)

    def run(self, verb: str) -> str:
        """Run create-env or delete-env and return what it printed."""
        size = [{"type": "replace", "path": "/disk_pools/name=disks/disk_size", "value": self.disk}]
        (self.folder / "disk.yml").write_text(json.dumps(size))
        variables = {
            "cpi_release": self.folder / "cpi.tgz",
            "first_try_release": self.folder / "first-try.tgz",
            "stemcell": self.stemcell,
            "internal_ip": "10.245.0.5",
            "internal_gw": "10.245.0.1",
            "internal_cidr": "10.245.0.0/16",
        }
        argv = [str(CLI), verb, str(REPOSITORY / "deploy" / "first-try.yml"), "--tty"]
        argv += [f"--state={self.folder}/state.json", f"--vars-store={self.folder}/creds.yml"]
        argv += [f"--ops-file={self.folder}/{name}.yml" for name in ("client", "disk")]
        argv += [f"--var={name}={value}" for name, value in variables.items()]
        drop = ["setpriv", f"--reuid={self.user}", f"--regid={GROUP}", "--clear-groups"]
        environment = {**os.environ, "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        done = self.host.run(*(drop if self.user else []), *argv, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def state(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return document

    def ctr(self, *words: str) -> str:
        ctr = ["ctr", "--address", str(self.host.address), "--namespace", "bosh"]
        return str(self.host.run(*ctr, *words).stdout)

    def inside(self, path: str) -> str:
        """Read a file in the VM."""
        vm = self.state()["current_vm_cid"]
        tasks = dict(line.split()[:2] for line in self.ctr("tasks", "list").splitlines())
        enter = ["nsenter", "--target", tasks[vm], "--mount", "--", "cat", path]
        return str(self.host.run(*enter).stdout)

    def disk_sizes(self) -> list[int]:
        """Return the disk's size in MiB at each start of the job."""
        notes = self.inside("/var/vcap/store/notebook/notes")
        return [int(size) for size in re.findall(r"started on .*, disk (\d+) MiB", notes)]


@pytest.fixture(params=["in process", "through the service"])
def environment(request: pytest.FixtureRequest) -> Iterator[Environment]:
    with PrivateHost() as host:
        if request.param == "in process":
            client = {"program": str(CPI), "config": host.config()}
            yield Environment(host, client, 0)
        else:
            with Service(host, {"socket_group": GROUP}) as service:
                yield Environment(host, {"endpoint": f"unix://{service.socket}"}, NOBODY)


def another_stemcell(folder: Path) -> Path:
    """Return the stemcell with one more file, as a later version."""
    unpacked = folder / "stemcell"
    with tarfile.open(str(STEMCELL)) as archive:
        archive.extractall(unpacked, filter="data")
    image, plain = unpacked / "image", unpacked / "plain"
    with gzip.open(image) as packed, plain.open("wb") as file:
        shutil.copyfileobj(packed, file)
    (folder / "later").write_text("later\n")
    with tarfile.open(plain, "a") as archive:
        archive.add(folder / "later", "./etc/later")
    with plain.open("rb") as file, gzip.open(image, "wb", compresslevel=1) as packed:
        shutil.copyfileobj(file, packed)
    plain.unlink()
    sha1 = hashlib.sha1(image.read_bytes(), usedforsecurity=False).hexdigest()
    manifest = unpacked / "stemcell.MF"
    text = re.sub("(?m)^sha1: .*$", f"sha1: {sha1}", manifest.read_text())
    manifest.write_text(re.sub("(?m)^version: .*$", 'version: "999999"', text))
    with tarfile.open(folder / "later.tgz", "w:gz", compresslevel=1) as archive:
        for path in sorted(unpacked.iterdir()):
            archive.add(path, path.name)
    return folder / "later.tgz"


def test_the_whole_life(environment: Environment) -> None:
    environment.run("create-env")
    first = environment.state()
    (size,) = environment.disk_sizes()
    assert 900 < size <= 1024

    assert "No deployment, stemcell or release changes" in environment.run("create-env")
    assert environment.state()["current_vm_cid"] == first["current_vm_cid"]

    environment.disk = 2048
    assert "Migrating disk content" in environment.run("create-env")
    sizes = environment.disk_sizes()
    assert sizes[0] == size  # the data came along
    assert 1900 < sizes[1] <= 2048

    environment.stemcell = another_stemcell(environment.folder)
    environment.run("create-env")
    assert environment.inside("/etc/later") == "later\n"
    assert environment.disk_sizes() == [*sizes, sizes[1]]
    assert len(environment.state()["stemcells"]) == 1

    environment.run("delete-env")
    for resource in ("containers", "images"):
        assert environment.ctr(resource, "list", "--quiet") == ""
    assert environment.ctr("snapshots", "list").split() == ["KEY", "PARENT", "KIND"]
    state = environment.host.state
    assert not [path for name in ("vms", "disks") for path in (state / name).iterdir()]
    loops = subprocess.run(["losetup", "--all"], check=True, capture_output=True, text=True).stdout
    assert str(state) not in loops
    assert str(state) not in environment.host.run("cat", "/proc/self/mounts").stdout
