"""`bosh-cpi check-config`: tell which keys of a BOSH configuration the CPI uses.

The file is a cloud-config, a list of VM extensions, a manifest of `bosh create-env`, or a cpi.json.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cpi.commands import output
from cpi.commands.declare import JSON, Command, argument
from cpi.config.config import Config, leaves
from cpi.config.load import config_of, declared
from cpi.errors import CPIError
from cpi.text import shown

_EXAMPLES = """\
examples:
  bosh-cpi check-config cloud-config.yml
  bosh cloud-config | bosh-cpi check-config -
  bosh-cpi check-config cpi.json --json

The exit status is 1 when something in the file would be refused. Variables ((such as this)) are not
checked. docs/cloud-properties.md lists the keys of other CPIs that have a counterpart here.
"""

_MAX_SIZE = 4 << 20  # bytes

# Sections of BOSH's documents, with what their cloud_properties are for. The director merges those
# of an AZ into those of its VMs.
_SECTIONS = {
    "azs": "vm",
    "vm_types": "vm",
    "vm_extensions": "vm",
    "resource_pools": "vm",
    "disk_types": "disk",
    "disk_pools": "disk",
    "networks": "network",
}

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """What becomes of a key: used, translated, ignored or refused. detail: into what, or why."""

    where: str
    key: str
    result: str
    detail: str = ""


def _check_config(options: argparse.Namespace, config: Config) -> int:
    lines = list(_lines(_load(options.file), options.file, config))
    if options.json:
        output.show_json([asdict(line) for line in lines])
    else:
        rows = [[line.where, line.key, line.result, line.detail] for line in lines]
        output.show_table(["WHERE", "KEY", "RESULT", "DETAIL"], rows)
    return int(any(line.result == "refused" for line in lines))


def _load(file: str) -> object:
    """Return the document in a YAML or JSON file; "-" is stdin. Raises CPIError."""
    import sys

    import yaml

    try:
        if file == "-":
            text = sys.stdin.read(_MAX_SIZE + 1)
        else:
            with open(file, encoding="utf-8") as opened:
                text = opened.read(_MAX_SIZE + 1)
        if len(text) > _MAX_SIZE:
            raise CPIError(f"{shown(file)} is larger than {_MAX_SIZE >> 20} MiB")
        return yaml.safe_load(text)
    except OSError as error:
        raise CPIError(f"cannot read {shown(file)}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise CPIError(f"{shown(file)} is neither YAML nor JSON: {problem}") from error


def _lines(document: object, file: str, config: Config) -> Iterator[Line]:
    """Yield what becomes of each key. Raises CPIError for a document of another type."""
    items = document if isinstance(document, list) else [document]
    if not all(isinstance(item, dict) for item in items):
        raise CPIError(f"{shown(file)} is no configuration: not an object, nor a list of objects")
    for index, item in enumerate(items):
        if "cloud_properties" in item:
            name = item.get("name") or f"[{index}]"
            yield from _properties(str(name), "vm", item["cloud_properties"], config)
        elif set(item) & set(_SECTIONS):
            yield from _sections(item, config)
        elif isinstance(document, dict):
            yield from _own_configuration(item)


def _sections(document: Document, config: Config) -> Iterator[Line]:
    for section, resource in _SECTIONS.items():
        for index, item in enumerate(_objects(document.get(section))):
            where = f"{section}.{item.get('name', index)}"
            yield from _properties(where, resource, item.get("cloud_properties"), config)
            for number, subnet in enumerate(_objects(item.get("subnets"))):
                yield from _properties(
                    f"{where}.subnets[{number}]", resource, subnet.get("cloud_properties"), config
                )


def _objects(value: object) -> list[Document]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _properties(where: str, resource: str, value: object, config: Config) -> Iterator[Line]:
    """Yield what becomes of the cloud_properties of one resource, as its method reads them."""
    from cpi.contract.foreign_keys import ForeignKeys
    from cpi.log import Log

    if value is None:
        return
    if not isinstance(value, dict):
        yield Line(where, "cloud_properties", "refused", "must be an object")
        return
    variables = [key for key, item in value.items() if _is_variable(item)]
    given = {str(key): item for key, item in value.items() if key not in variables}
    foreign = ForeignKeys(Log(quiet=True), strict=config.flag("strict_properties"))
    try:
        _parse(resource, given, foreign)
        error = ""
    except CPIError as problem:
        error = problem.message
    for key in variables:
        yield Line(where, key, "not checked", "its value is a variable")
    ignored = {key for _, key in foreign.ignored}
    translated = {theirs.split(".")[0]: ours for _, theirs, ours in foreign.translated}
    if error:
        yield Line(where, "cloud_properties", "refused", error)
    for key in given:
        if key in ignored:
            yield Line(where, key, "ignored")
        elif key in translated:
            yield Line(where, key, "translated", translated[key])
        elif not error and given[key] is not None:
            yield Line(where, key, "used")


def _parse(resource: str, given: Document, foreign: Any) -> None:
    """Parse cloud_properties as the methods do. Raises CPIError."""
    from cpi.cni import networks
    from cpi.contract import disk_properties, vm_networks, vm_properties

    if resource == "vm":
        vm_properties.parse(given, foreign)
    elif resource == "disk":
        disk_properties.parse(given, foreign)
    else:
        document = {"type": "dynamic", "cloud_properties": given}
        for network in vm_networks.parse({"network": document}, foreign.log, foreign):
            networks.properties_of(network)


def _is_variable(value: object) -> bool:
    return isinstance(value, str) and value.startswith("((") and value.endswith("))")


def _own_configuration(document: Document) -> Iterator[Line]:
    """Yield what becomes of a cpi.json. Unknown keys are refused: it is only ours."""
    try:
        config_of(document)
    except CPIError as error:
        yield Line("cpi.json", "", "refused", error.message)
        return
    for name, _ in leaves(document, declared(), "cpi.json"):
        yield Line("cpi.json", name, "used")


COMMANDS = (
    Command(
        "check-config",
        _check_config,
        "tell which keys of a BOSH configuration are used, translated or ignored",
        argument("file", metavar="FILE", help="YAML or JSON; - is stdin"),
        JSON,
        examples=_EXAMPLES,
    ),
)
