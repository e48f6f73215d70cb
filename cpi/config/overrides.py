"""What a call overrides in the configuration: its context, and a client's own configuration.

BOSH merges a cpi-config's properties flat into the context, beside keys of its own; so a key that
is unknown is an error in the file, and only logged when it comes with the context.
"""

from __future__ import annotations

from cpi.config.config import leaves

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.config.config import Config

# What the director and the CLI put into the context themselves.
CONTEXT_OWN = frozenset({"director_uuid", "request_id", "vm"})


def overridden(
    config: Config, *documents: Mapping[str, object], of_client: bool = False
) -> tuple[Config, list[str]]:
    """Override a configuration by what came with a call; return it and the keys that are ignored.

    documents: the call's context, after the client's own configuration where it has one; the last
    one that sets a key wins. A key of type object is replaced as a whole. The director's own keys
    are neither used nor reported. of_client: they come from a client of the service, which may set
    only keys marked `client`. Raises CPIError for a wrong value.
    """
    given: dict[str, object] = {}
    for document in documents:
        own = {name: value for name, value in document.items() if name not in CONTEXT_OWN}
        given.update(leaves(own, config.keys, "context"))
    changed, ignored = config, []
    for name, value in given.items():
        key = config.keys.get(name)
        if key is None or (of_client and not key.client):
            ignored.append(name)
            continue
        checked = key.checked(value, "context")
        if key.context_only_forbids and checked and not config.flag(name):
            ignored.append(name)
        else:
            changed = changed.replaced(name, checked)
    return changed, ignored
