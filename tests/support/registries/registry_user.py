"""A user of a private host who has logged in to a registry."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.containerd.machine import Machine
from tests.support.registries.docker_registry import Registry


class User:
    """A user of the host who has logged in to a registry."""

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
        """Run `bosh-cpi stemcell`; return stdout, or stderr of the expected failure."""
        texts = ["stemcell", *map(str, words)]
        done = self.machine.bosh_cpi(*texts, check=check, config=self.config)
        assert check or done.returncode == 1
        return str(done.stdout if check else done.stderr).strip()

    def name(self, name: str) -> str:
        return f"{self.registry.address}/{name}"

    def light(self, tgz: Path) -> tuple[str, dict[str, Any]]:
        """Unpack a light stemcell as BOSH does; return its image and cloud_properties."""
        folder = self._folder / "light"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        subprocess.run(["tar", "-xzf", str(tgz), "-C", str(folder)], check=True)
        document = yaml.safe_load((folder / "stemcell.MF").read_text())
        return str(folder / "image"), document["cloud_properties"]

    def create(self, properties: dict[str, Any]) -> str:
        """Call create_stemcell with a light stemcell."""
        image = str(self.empty_image())
        return str(self.machine.call("create_stemcell", image, properties, config=self.config))

    def empty_image(self) -> Path:
        """Return the `image` of a light stemcell."""
        image = self._folder / "image"
        image.touch()
        return image
