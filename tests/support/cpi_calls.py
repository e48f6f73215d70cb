"""Requests as BOSH writes them, and calls through the JSON handling."""

import json
from typing import Any

from cpi.config.config import Config
from cpi.contract.handle import handle
from cpi.log import Log


def request(
    method: object, *arguments: object, api_version: int | None = 2, context: object = None
) -> bytes:
    """Return a request as BOSH writes it."""
    document = {"method": method, "arguments": arguments, "context": context}
    if api_version is not None:
        document["api_version"] = api_version
    return json.dumps(document).encode()


def call(
    config: Config,
    method: object,
    *arguments: object,
    api_version: int | None = 2,
    context: object = None,
) -> dict[str, Any]:
    """Send a request through the JSON handling; return the response as BOSH reads it."""
    sent = request(method, *arguments, api_version=api_version, context=context)
    answered: dict[str, Any] = json.loads(json.dumps(handle(sent, config, Log("error"))))
    return answered


def error_of(response: dict[str, Any]) -> tuple[str, str]:
    """Return type and message of a response's error."""
    assert response["result"] is None
    return response["error"]["type"], response["error"]["message"]
