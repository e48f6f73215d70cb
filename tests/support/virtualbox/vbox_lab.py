"""The lab of tests of the VirtualBox runtime: fake driver, networks, stemcell, configuration."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt  # noqa: TID253 (to have its `open` replaced)
import pytest

from cpi.config.config import Config
from cpi.config.load import config_of
from cpi.errors import CloudError
from cpi.model import Network, VMSpec
from runtimes.libvirt import client, runtime
from runtimes.libvirt.virtualbox import vboxmanage
from tests.support.cpi_calls import call
from tests.support.virtualbox.fake_vbox import FakeVBox

MIB = 1 << 20
BRIDGE, MTU = "bosh0", 1500


class FakeNetworks:
    """Fake bridges: gives addresses, and records the VM of each."""

    given: dict[str, str]  # by address: the VM

    def __init__(self, *_arguments: object, **_options: object) -> None: ...

    def require_free(self, spec: VMSpec) -> None:
        for network in spec.networks:
            if network.ip in self.given:
                raise CloudError(f"{network.ip} is in use by {self.given[network.ip]}")

    def connect(self, spec: VMSpec, folder: Path) -> list[Network]:
        connected = []
        for network in spec.networks:
            free = (f"10.9.0.{n}" for n in range(2, 250) if f"10.9.0.{n}" not in self.given)
            network = network if network.ip else replace(network, ip=next(free), prefix=24)
            assert network.ip
            self.given[network.ip] = spec.cid
            connected.append(network)
        return connected

    def hand_over(self, networks: Sequence[Network], folder: Path) -> list[tuple[str, int]]:
        return [(BRIDGE, MTU) for _ in networks]

    def has_any(self, folder: Path) -> bool:
        return False  # the host of a fake never restarts

    def disconnect(self, vm_cid: str, folder: Path) -> None:
        for address in [ip for ip, owner in self.given.items() if owner == vm_cid]:
            del self.given[address]


@contextmanager
def fake_virtualbox() -> Iterator[FakeVBox]:
    """Make the runtime use a fake driver, VBoxManage and host; yield the fake."""
    world = FakeVBox()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libvirt, "open", world.open)
        patch.setattr(vboxmanage, "run", world.run)
        patch.setattr(vboxmanage, "_PAUSE", 0.0)
        patch.setattr(client, "_PAUSE", 0.0)
        patch.setattr(client, "_LOOK_AGAIN", 0.005)
        patch.setattr(runtime, "is_unprivileged", lambda: False)
        patch.setattr(FakeNetworks, "given", {}, raising=False)
        patch.setattr(runtime, "Networks", FakeNetworks)
        yield world


def settings(folder: Path, **more: object) -> Config:
    """Return a configuration with runtime virtualbox."""
    folders = {"state_dir": str(folder / "state"), "run_dir": str(folder / "run")}
    own = {"ephemeral_disk": 16, "memory": 64, "shutdown_timeout": 2, **more}
    agent = {"mbus": "nats://127.0.0.1:4222"}
    return config_of({"runtime": "virtualbox", "agent": agent, **folders, "virtualbox": own})


def machine_image(folder: Path, source: str = "CDROM", resolution: str = "scsi") -> Path:
    """Make a stemcell's `image` of a few MiB: a disk with an agent.json that does not boot."""
    root = folder / "root"
    agent = root / "var/vcap/bosh/agent.json"
    agent.parent.mkdir(parents=True)
    document = {
        "Platform": {"Linux": {"DevicePathResolutionType": resolution}},
        "Infrastructure": {"Settings": {"Sources": [{"Type": source}]}},
    }
    agent.write_text(json.dumps(document))
    raw, image = folder / "root.img", folder / "image"
    with raw.open("wb") as file:
        file.truncate(12 * MIB)
    table = "label: dos\nstart=2048, size=20480, type=83\n"
    subprocess.run(["/usr/sbin/sfdisk", "-q", str(raw)], input=table.encode(), check=True)
    argv = ["/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root)]
    subprocess.run([*argv, "-E", f"offset={MIB}", str(raw), "10240k"], check=True)
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
    subprocess.run(argv, check=True)
    shutil.rmtree(root)
    return image


class VBoxLab:
    """Calls with one configuration, and the files in its pool."""

    def __init__(self, world: FakeVBox, folder: Path, image: Path) -> None:
        self.world = world
        self.folder = folder
        self.image = image
        self.config = settings(folder)
        self.pool = folder / "state/virtualbox"

    def send(self, method: str, *arguments: object, context: Any = None) -> dict[str, Any]:
        """Make a call; return the whole response."""
        return call(self.config, method, *arguments, context=context)

    def ok(self, method: str, *arguments: object) -> Any:
        """Return the result of a call that must succeed."""
        response = self.send(method, *arguments)
        assert response["error"] is None, response["error"]
        return response["result"]

    def fails(self, method: str, *arguments: object) -> tuple[str, str]:
        """Return type and message of a call that must fail."""
        error = self.send(method, *arguments)["error"]
        assert error is not None
        return error["type"].removeprefix("Bosh::Clouds::"), error["message"]

    def arguments(
        self, properties: dict[str, object] | None = None, networks: int = 1
    ) -> list[object]:
        """Return create_vm's arguments."""
        stemcell = self.ok("create_stemcell", str(self.image), {})
        wanted: dict[str, Any] = {f"net{n}": {"type": "dynamic"} for n in range(networks)}
        wanted["net0"]["default"] = ["dns", "gateway"]
        return ["agent-1", stemcell, properties or {}, wanted, [], {}]

    def vm(self, **properties: object) -> str:
        """Create a VM."""
        return str(self.ok("create_vm", *self.arguments(properties))[0])

    def files(self) -> list[str]:
        """Return the volumes without those of stemcells."""
        names = [path.name for path in self.pool.iterdir()] if self.pool.is_dir() else []
        return sorted(name for name in names if not name.endswith((".stemcell", ".json")))
