"""Whether a VM's agent could ever answer, by what its settings will say.

An agent without a message bus, or with a blobstore that it does not know, ends at once; BOSH would
wait ten minutes for it. By bosh-agent's mbus/handler_provider.go and settings.go.
"""

from __future__ import annotations

from cpi.errors import CloudError
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpi.log import Log
    from cpi.model import AgentConfig, JsonObject

_SCHEMES = ("nats", "https")


def require(agent: AgentConfig, env: JsonObject, log: Log) -> None:
    """Refuse settings with which the agent cannot answer. Raises CloudError naming the property."""
    bosh = _object(env.get("bosh"))
    mbus = _object(bosh.get("mbus"))
    urls = mbus.get("urls")
    where, url = "agent.mbus", agent.mbus
    if isinstance(urls, list) and urls:
        where, url = "env.bosh.mbus.urls[0]", urls[0]
    if not url:
        raise CloudError(
            "the VM's agent could never answer, as nothing names its message bus: set agent.mbus "
            "in the CPI's configuration (for bosh create-env, cloud_provider.properties.agent."
            "mbus), or env.bosh.mbus.urls"
        )
    # The rest of a URL may be a password.
    scheme = url.partition("://")[0] if isinstance(url, str) and "://" in url else ""
    if scheme.lower() not in _SCHEMES:
        got = f"{shown(scheme, 20)}://" if scheme else "something else"
        raise CloudError(f"{where}: agents know nats:// and https:// URLs, got {got}")
    _require_blobstore(bosh)
    if scheme.lower() == "https" and not _object(mbus.get("cert")).get("certificate"):
        log.warn(f"{where} is https, but env.bosh.mbus.cert has no certificate for the agent")
    if scheme.lower() == "nats" and not (bosh.get("blobstores") or agent.blobstore.get("provider")):
        log.warn(
            "neither agent.blobstore nor env.bosh.blobstores is set: the agent keeps blobs in its "
            "own folder, where a director does not find them"
        )


def _require_blobstore(bosh: JsonObject) -> None:
    blobstores = bosh.get("blobstores")
    first = blobstores[0] if isinstance(blobstores, list) and blobstores else None
    if first is not None and not _object(first).get("provider"):
        raise CloudError(
            "the VM's agent could never answer: env.bosh.blobstores[0] has no provider"
        )


def _object(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}
