"""The job's properties_schema.json, by which a director checks a manifest's properties."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # comes with oras

from tools.release_tarball import RELEASE

JOB = RELEASE / "jobs" / "containerd_cpi"
SCHEMA = json.loads((JOB / "properties_schema.json").read_text())


def problems(properties: object) -> list[str]:
    found = Draft202012Validator(SCHEMA).iter_errors(properties)
    return [".".join(map(str, error.absolute_path)) for error in found]


def names(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the schema's leaves by their dotted names."""
    for name, below in schema["properties"].items():
        known = prefix + name
        if "properties" in below and known != "agent.blobstore":
            yield from names(below, f"{known}.")
        else:
            yield known


def nested(properties: dict[str, object]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in properties.items():
        *folders, last = name.split(".")
        section = document
        for folder in folders:
            section = section.setdefault(folder, {})
        section[last] = value
    return document


def test_it_is_a_schema_that_directors_take() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_it_has_the_specs_properties() -> None:
    spec = yaml.safe_load((JOB / "spec").read_text())["properties"]
    assert sorted(names(SCHEMA)) == sorted(spec)
    # A director sends null for what has neither a value nor a default.
    assert problems(nested({name: facts.get("default") for name, facts in spec.items()})) == []
    examples = {name: facts["example"] for name, facts in spec.items() if "example" in facts}
    assert problems(nested(examples)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("containerd_cpi.endpoint", "/run/cpi.sock"),
        ("containerd_cpi.endpoint", "http://10.0.0.1:9443"),
        ("containerd_cpi.program", "cpi"),
        ("containerd_cpi.runtimes", "kvm"),
        ("containerd_cpi.config", "{}"),
        ("agent.mbus", "10.0.0.2:4222"),
        ("agent.blobstore", "dav"),
        ("ntp", "time.example.org"),
        ("blobstore.port", "25250"),
        ("blobstore.port", 0),
        ("blobstore.agent.user", 5),
    ],
)
def test_mistakes_are_found(name: str, value: object) -> None:
    assert problems(nested({name: value})) == [name]
