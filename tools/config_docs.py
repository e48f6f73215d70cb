"""Write docs/configuration.md from the keys in the code: `python -m tools.config_docs`."""

import json

from cpi.config.key import Key
from cpi.config.load import declared
from cpi.config.overrides import CONTEXT_OWN
from testing.repository import REPOSITORY

FILE = REPOSITORY / "docs" / "configuration.md"

HEAD = """\
<!-- Written by tools/config_docs.py from the keys in the code: change those. -->

# Configuration

`cpi -c cpi.json` reads a JSON object. A dotted name below is a nested key: `agent.mbus` is
`{"agent": {"mbus": "…"}}`. Every key may be left out or null, and then has its default.

```json
{
  "agent": {
    "mbus": "https://mbus:secret@0.0.0.0:6868",
    "ntp": ["time.example.org"]
  },
  "network": {"dynamic_subnets": ["10.245.0.0/16", "fd00:b05f::/64"]}
}
```

An unknown key or a wrong type is an error that names it.

## In a cpi-config

The `properties` of a cpi-config entry reach the CPI with each call, in its context, and go over the
file key by key (an object such as `agent.blobstore` is replaced as a whole). So two entries of one
type can differ in `runtime`, or in the containerd they use. Keys that the CPI does not know are
named in the log and otherwise ignored; BOSH's own (OWN) are not even named.

```yaml
cpis:
- name: z1
  type: containerd
  properties:
    runtime: containerd
    network: {mtu: 1450}
```

A VM's `cloud_properties` may have `runtime` too; it comes first.

A client of the host's service sets only the keys that have "yes" below, in its own `cpi.json` or a
cpi-config: they say no more than cloud_properties could. The others are the host's to decide: what
a client sends for them is named in the log and not used.

## Keys
"""


def render() -> str:
    """Return the whole page."""
    own = ", ".join(f"`{name}`" for name in sorted(CONTEXT_OWN))
    parts = [HEAD.replace("OWN", own)]
    for title, keys in _sections().items():
        parts.append(f"\n### {title}\n\n")
        parts.append("| Key | Type | Default | Unit | Client | Meaning |\n")
        parts.append("|---|---|---|---|---|---|\n")
        parts.extend(_row(key) for key in keys)
    return "".join(parts)


def _sections() -> dict[str, list[Key]]:
    """Return the keys by their first part, those without one first."""
    sections: dict[str, list[Key]] = {}
    for key in declared().values():
        title = key.name.split(".")[0] if "." in key.name else "general"
        sections.setdefault(title, []).append(key)
    return sections


def _row(key: Key) -> str:
    """Return a key's row."""
    value_type = key.type
    if key.choices:
        value_type = "one of " + ", ".join(f"`{choice}`" for choice in key.choices)
    elif key.pattern:
        value_type += f" like `{key.pattern}`"
    elif key.type == "integer":
        value_type += f", at least {key.minimum}"
    default = list(key.default) if isinstance(key.default, tuple) else key.default
    client = "yes" if key.client else ""
    cells = (f"`{key.name}`", value_type, f"`{json.dumps(default)}`", key.unit, client, key.doc)
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Write the page."""
    FILE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
