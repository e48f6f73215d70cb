"""The agent's settings: a pure rendering of what the agent's settings.go reads."""

from __future__ import annotations

import ipaddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cpi.model import Json, JsonObject, Network, VMSpec

# The agent dies when nothing names a blobstore provider ("executable bosh-blobstore- not found"),
# so there is always one. This very path is the one that the agent itself replaces by its own blobs
# folder, into which `bosh create-env` uploads (bosh-agent's app.go, patchBlobstoreOptions).
_OWN_BLOBS = "/var/vcap/micro_bosh/data/cache"


def render(
    spec: VMSpec,
    networks: Sequence[Network],
    *,
    persistent: Mapping[str, Json] | None = None,
    ephemeral: Json = "",
) -> dict[str, Json]:
    """Return the agent's settings, secrets included, for a VM with these real networks.

    persistent: hints of disks by CID. Only agents of API version 1 look for them here; an agent
    that finds two when it starts never finishes starting. ephemeral: the hint of a disk for
    /var/vcap/data; "" where there is none.
    """
    return {
        "agent_id": spec.agent_id,
        "vm": {"name": spec.cid},
        "mbus": spec.agent.mbus,
        "ntp": list(spec.agent.ntp),
        "blobstore": _blobstore(spec.agent.blobstore),
        "networks": {network.name: render_network(network) for network in networks},
        # A hash for `system` is what BOSH's documentation has, but the agent parses a string.
        "disks": {"system": "", "ephemeral": ephemeral, "persistent": dict(persistent or {})},
        "env": dict(spec.env),
    }


def render_network(network: Network) -> dict[str, Json]:
    """Return one network as the agent reads it, and as create_vm returns it.

    `preconfigured` keeps the agent from configuring the interface. `prefix` is the subnet's, as a
    string: if it were empty, 32 or 128, the agent would give every dynamic network the address of
    the default one.
    """
    netmask = ""
    if network.ip is not None and network.prefix is not None:
        netmask = str(ipaddress.ip_interface(f"{network.ip}/{network.prefix}").netmask)
    rendered: dict[str, Json] = {
        "type": network.type,
        "ip": network.ip or "",
        "netmask": netmask,
        "gateway": network.gateway or "",
        "prefix": "" if network.prefix is None else str(network.prefix),
        "dns": list(network.dns),
        "default": list(network.default),
        "preconfigured": network.preconfigured,
        "use_dhcp": False,
    }
    if network.mac is not None:
        rendered["mac"] = network.mac
    if network.alias is not None:
        rendered["alias"] = network.alias
    return rendered


def _blobstore(configured: JsonObject) -> dict[str, Json]:
    """Return the configured blobstore, or the agent's own folder."""
    if not configured.get("provider"):
        return {"provider": "local", "options": {"blobstore_path": _OWN_BLOBS}}
    # The agent takes options as an object, never null.
    return {"provider": configured["provider"], "options": dict(configured.get("options") or {})}
