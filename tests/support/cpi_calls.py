"""What several test modules need: requests, and a configuration that uses the fake runtime."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpi.config.config import Config
from cpi.config.load import config_of
from cpi.contract.handle import handle
from cpi.log import Log
from runtimes import catalog
from testing.repository import REPOSITORY

FAKE = catalog.Entry(
    "fake", "tests.support.fake_runtime:FakeRuntime", ("fake-tar",), "", "the tests bring it along"
)


def request(
    method: object, *arguments: object, api_version: int | None = 2, context: object = None
) -> bytes:
    """Return a request as BOSH writes it."""
    document = {"method": method, "arguments": arguments, "context": context}
    if api_version is not None:
        document["api_version"] = api_version
    return json.dumps(document).encode()


@contextmanager
def fake_registered() -> Iterator[None]:
    """Have the fake runtime among the known ones."""
    catalog.REGISTRY["fake"] = FAKE
    try:
        yield
    finally:
        del catalog.REGISTRY["fake"]


def fake_config(folder: Path, **more: object) -> Config:
    """Return a configuration whose VMs run on the fake runtime, in a world named by the folder."""
    folders = {"state_dir": str(folder / "state"), "run_dir": str(folder / "run")}
    return config_of({"runtime": "fake", **folders, **more})


def call(
    config: Config,
    method: object,
    *arguments: object,
    api_version: int | None = 2,
    context: object = None,
) -> dict[str, Any]:
    """Send one request through the JSON handling and return the response as BOSH reads it."""
    sent = request(method, *arguments, api_version=api_version, context=context)
    answered: dict[str, Any] = json.loads(json.dumps(handle(sent, config, Log("error"))))
    return answered


def error_of(response: dict[str, Any]) -> tuple[str, str]:
    """Return type and message of the error."""
    assert response["result"] is None
    return response["error"]["type"], response["error"]["message"]


def matches_golden(name: str, rendered: object) -> bool:
    """Tell whether a rendering is what the golden file has; UPDATE_GOLDEN=1 writes it anew."""
    golden = REPOSITORY / "tests" / "golden" / f"{name}.json"
    text = json.dumps(rendered, indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    return golden.read_text() == text
