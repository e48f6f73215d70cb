"""Clients of a service on the fake runtime: calls as a worker gets them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpi.config.config import Config
from cpi.contract.handle import handle
from cpi.log import Log
from cpi.service.guard import Guard
from cpi.service.policy import Policies
from tests.support.cpi_calls import request
from tests.support.fake_config import fake_config
from tests.support.fake_runtime import write_image

NETWORKS = {"default": {"type": "dynamic"}}


class Failed(Exception):
    """A call was answered with an error."""

    def __init__(self, error: dict[str, Any], log: str) -> None:
        super().__init__(f"{error['type']}: {error['message']}")
        self.type = error["type"].removeprefix("Bosh::Clouds::")
        self.message = error["message"]
        self.ok_to_retry = error["ok_to_retry"]
        self.log = log


class Client:
    """One client of the service."""

    def __init__(self, name: str, config: Config, folder: Path) -> None:
        self.name = name
        self.config = config
        self.upload = folder / f"upload-{len(name)}"
        self.log = ""

    def call(self, method: str, *arguments: object, context: object = None) -> Any:
        """Make a call and return its result. Raises Failed."""
        log = Log("info")
        upload = self.upload if self.upload.exists() else None
        guard = Guard(self.name, self.config, Policies.of(self.config), upload)
        sent = request(method, *arguments, context=context)
        response = json.loads(json.dumps(handle(sent, self.config, log, guard)))
        self.log = response["log"]
        if response["error"]:
            raise Failed(response["error"], response["log"])
        return response["result"]

    def fails(self, method: str, *arguments: object, context: object = None) -> Failed:
        try:
            result = self.call(method, *arguments, context=context)
        except Failed as error:
            return error
        raise AssertionError(f"{method} gave {result!r}")

    def stemcell(self, content: bytes = b"a root file system") -> str:
        """Upload a stemcell."""
        write_image(self.upload, content)
        return str(self.call("create_stemcell", str(self.upload), {}))

    def arguments(
        self, stemcell: str, properties: object = None, disks: Sequence[str] = ()
    ) -> list[object]:
        return ["agent", stemcell, properties or {}, NETWORKS, list(disks), {}]

    def vm(self, properties: object = None) -> str:
        return str(self.call("create_vm", *self.arguments(self.stemcell(), properties))[0])

    def disk(self, size: int = 64, vm: str | None = None) -> str:
        return str(self.call("create_disk", size, {}, vm))

    def records(self) -> list[str]:
        folder = Path(self.config.text("state_dir")) / "clients" / self.name
        return sorted(path.name for path in folder.iterdir())


def client(folder: Path, name: str = "guest", **policies: Any) -> Client:
    """Return a client of a service with these policies."""
    return Client(name, fake_config(folder, service={"clients": policies}), folder)
