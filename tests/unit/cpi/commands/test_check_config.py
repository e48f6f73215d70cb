"""`bosh-cpi check-config`."""

import json
from pathlib import Path

import pytest

from cpi.commands.main import main

CLOUD_CONFIG = """
azs:
- {name: z1, cloud_properties: {zone: eu-1}}
vm_types:
- {name: small, cloud_properties: {cpu: 2, ram: 512, instance_type: m3.medium}}
- {name: typo, cloud_properties: {memroy: 512}}
- {name: variable, cloud_properties: {memory: ((size)), cpu: 1}}
disk_types:
- {name: large, disk_size: 5120, cloud_properties: {type: gp2, store: fast}}
networks:
- name: default
  subnets:
  - {range: 10.0.0.0/24, cloud_properties: {subnet: s-1, mtu: 1400}}
- {name: dynamic, type: dynamic, cloud_properties: {mtu: wide}}
compilation: {workers: 2}
"""


def lines(capsys: pytest.CaptureFixture[str], *arguments: str, status: int) -> list[str]:
    assert main(["check-config", "--json", *arguments]) == status
    found = json.loads(capsys.readouterr().out)
    return [" ".join(value for value in line.values() if value) for line in found]


def test_a_cloud_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cloud-config.yml"
    file.write_text(CLOUD_CONFIG)
    found = lines(capsys, str(file), status=1)
    assert [line for line in found if " refused " not in line] == [
        "azs.z1 zone ignored",
        "vm_types.small cpu used",
        "vm_types.small ram translated memory",
        "vm_types.small instance_type ignored",
        "vm_types.variable memory not checked its value is a variable",
        "vm_types.variable cpu used",
        "disk_types.large type ignored",
        "disk_types.large store used",
        "networks.default.subnets[0] subnet ignored",
        "networks.default.subnets[0] mtu used",
    ]
    refused = [line for line in found if " refused " in line]
    assert len(refused) == 2
    assert "'memroy' (did you mean memory?)" in refused[0]
    assert "mtu must be a whole number of bytes" in refused[1]


def test_a_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "extension.yml"
    file.write_text("[{name: many-ports, cloud_properties: {ports: ['80:80'], elbs: []}}]")
    assert main(["check-config", str(file)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["WHERE", "KEY", "RESULT", "DETAIL"]
    assert rows[1:] == [["many-ports", "ports", "used"], ["many-ports", "elbs", "ignored"]]


def test_strict_configuration_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpi_json, file = tmp_path / "cpi.json", tmp_path / "extension.json"
    cpi_json.write_text('{"strict_properties": true}')
    file.write_text('{"cloud_properties": {"elbs": []}}')
    assert main(["-c", str(cpi_json), "check-config", str(file)]) == 1
    assert "unknown keys: 'elbs'" in capsys.readouterr().out


def test_a_cpi_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cpi.json"
    file.write_text('{"runtime": "containerd", "agent": {"mbus": "nats://x"}}')
    used = ["cpi.json runtime used", "cpi.json agent.mbus used"]
    assert lines(capsys, str(file), status=0) == used
    file.write_text('{"agent": {"mbuss": "nats://x"}}')
    (line,) = lines(capsys, str(file), status=1)
    assert "agent.mbuss" in line


@pytest.mark.parametrize("text", ["a: [", "5", "[1]", '"x"', "\udcff"])
def test_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    file = tmp_path / "x.yml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert main(["check-config", str(file)]) == 1
    assert str(file) in capsys.readouterr().err
    assert main(["check-config", str(tmp_path / "gone")]) == 1
    assert "cannot read" in capsys.readouterr().err
