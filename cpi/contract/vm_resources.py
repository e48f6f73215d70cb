"""VM cloud_properties for the resources that calculate_vm_cloud_properties gets.

The inverse of cpi.contract.vm_properties, the same for every runtime.
"""

from __future__ import annotations

from cpi.contract import values
from cpi.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpi.log import Log

# The director's names, and those of VM cloud_properties.
_PROPERTIES = {"cpu": "cpu", "ram": "memory", "ephemeral_disk_size": "ephemeral_disk"}


def cloud_properties(where: str, resources: Mapping[str, object], log: Log) -> dict[str, int]:
    """Return cloud_properties that give a VM these resources. Raises InvalidCall."""
    properties = {}
    for name, property_name in _PROPERTIES.items():
        value = resources.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise values.wrong(f"{where}: {name}", "a positive whole number", value)
        if name != "cpu":
            values.mebibytes(f"{where}: {name}", value)
        properties[property_name] = value
    unused = [shown(name, 60) for name in resources if name not in _PROPERTIES]
    if unused:
        log.warn(f"{where} does not use {', '.join(unused)}")
    return properties
