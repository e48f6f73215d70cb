"""The configuration: file, context, and its documentation."""

import json
from pathlib import Path

import pytest

from cpi.config.load import config_of, declared, load_config
from cpi.errors import CPIError
from testing.repository import REPOSITORY
from tools import config_docs


def refused(document: dict[str, object]) -> str:
    """Return the message with which a document is refused."""
    with pytest.raises(CPIError) as raised:
        config_of(document)
    return raised.value.message


def test_defaults() -> None:
    config = load_config(None)
    assert config.text("runtime") == "containerd"
    assert config.text("state_dir") == "/var/lib/bosh-containerd-cpi"
    assert config.text("disk_dir") == ""
    assert config.text("containerd.address") == "/run/containerd/containerd.sock"
    assert config.integer("network.mtu") == 0
    assert config.flag("network.masquerade") is True
    assert config.strings("network.dynamic_subnets") == ("10.245.0.0/16",)
    assert config.strings("agent.ntp") == ()
    assert config.mapping("agent.blobstore") == {}


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "cpi.json"
    document = {
        "agent": {"mbus": "nats://x", "blobstore": {"provider": "dav", "options": {"a": 1}}},
        "containerd": {"namespace": "test"},
        "network": {"mtu": 9000, "masquerade": False, "cni_plugin_dirs": ["/opt/cni/bin"]},
        "log_level": None,
    }
    file.write_text(json.dumps(document))
    config = load_config(str(file))
    assert config.text("agent.mbus") == "nats://x"
    assert config.mapping("agent.blobstore")["options"] == {"a": 1}
    assert config.strings("network.cni_plugin_dirs") == ("/opt/cni/bin",)
    assert config.integer("network.mtu") == 9000
    assert config.flag("network.masquerade") is False
    assert config.text("log_level") == "info"  # null is not set
    assert config.text("network.bridge") == "bosh0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be used: Expecting value"),
        (b"{", "cannot be used: Expecting"),
        (b"[]", "cannot be used: not a JSON object"),
        (b"\xff", "cannot be used: 'utf-8' codec"),
        (b"[" * 100_000, "cannot be used: "),
        (b" " * 2**20 + b"{}", "cannot be used: larger than 1048576 bytes"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "cpi.json"
    file.write_bytes(content)
    with pytest.raises(CPIError) as raised:
        load_config(str(file))
    assert reason in raised.value.message
    assert str(file) in raised.value.message


def test_missing_file() -> None:
    with pytest.raises(CPIError, match="cannot read configuration file '/nowhere': No such file"):
        load_config("/nowhere")


def test_unknown_keys_are_named_with_a_guess() -> None:
    assert refused({"agent": {"mbuss": "x"}, "network": {"mtu": 1500}, "zone": 1}) == (
        "configuration has unknown keys: 'agent.mbuss' (did you mean agent.mbus?), 'zone'"
    )


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"agent": "x"}, "agent must be an object, got a string"),
        ({"runtime": 5}, "runtime must be a string, got 5"),
        ({"state_dir": "state"}, "state_dir must be an absolute path without .., got a string"),
        ({"state_dir": ""}, "state_dir must be an absolute path without .., got a string"),
        ({"disk_dir": "/a/../b"}, "disk_dir must be an absolute path without .., got a string"),
        ({"log_level": "loud"}, "log_level must be one of debug, info, warn, error, got a string"),
        ({"agent": {"ntp": "x"}}, "agent.ntp must be a list, got a string"),
        ({"agent": {"ntp": [1]}}, "agent.ntp[0] must be a string, got 1"),
        ({"agent": {"blobstore": []}}, "agent.blobstore must be an object, got a list"),
        (
            {"network": {"mtu": "1500"}},
            "mtu must be a whole number of bytes, 576 or more, without quotes, got a s",
        ),
        ({"network": {"mtu": 100}}, "mtu must be a whole number of bytes, 576 or more, got 100"),
        (
            {"network": {"mtu": True}},
            "mtu must be a whole number of bytes, 576 or more, got a boolean",
        ),
        ({"network": {"masquerade": 1}}, "masquerade must be true or false, got 1"),
        ({"network": {"bridge": "../x"}}, "bridge must be a string that matches [A-Za-z0-9]"),
        ({"network": {"bridge": "b" * 16}}, "bridge must be a string that matches"),
        ({"containerd": {"namespace": ""}}, "namespace must be a string that matches"),
        (
            {"network": {"cni_plugin_dirs": ["bin"]}},
            "dirs[0] must be an absolute path without .., got a s",
        ),
        (
            {"containerd": {"timeout": 0}},
            "timeout must be a whole number of seconds, 1 or more, got 0",
        ),
    ],
)
def test_wrong_values_name_the_key_and_never_a_string(
    document: dict[str, object], reason: str
) -> None:
    assert reason in refused(document)


def test_passwords_in_the_wrong_place_are_not_shown() -> None:
    assert "hunter22" not in refused({"agent": {"ntp": "hunter22"}})
    assert "hunter22" not in refused({"agent": "hunter22"})


def test_one_key_is_replaced() -> None:
    config = config_of({"runtime": "kvm"})
    fresh = config.replaced("runtimes", ("a", "b")).replaced("registry.ca_file", "/ca")
    assert (fresh.strings("runtimes"), fresh.text("registry.ca_file")) == (("a", "b"), "/ca")
    assert (fresh.text("runtime"), config.strings("runtimes")) == ("kvm", ())
    with pytest.raises(KeyError):
        config.replaced("no.such.key", "x")


def test_asking_for_what_is_not_declared_is_a_bug() -> None:
    config = load_config(None)
    for ask in (config.text, config.integer, config.flag, config.strings, config.mapping):
        with pytest.raises(KeyError):
            ask("no.such.key")
    for ask in (config.integer, config.flag, config.strings, config.mapping):
        with pytest.raises(KeyError):
            ask("runtime")
    with pytest.raises(KeyError):
        config.text("network.mtu")
    with pytest.raises(KeyError):
        config.integer("network.masquerade")


def test_every_default_is_valid() -> None:
    document: dict[str, object] = {}
    for name, key in declared().items():
        section = document
        *folders, last = name.split(".")
        for folder in folders:
            section = section.setdefault(folder, {})  # type: ignore[assignment]
        section[last] = list(key.default) if isinstance(key.default, tuple) else key.default
    config_of(json.loads(json.dumps(document)))


def test_documentation_is_current() -> None:
    written = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert written == config_docs.render(), "run python -m tools.config_docs"
