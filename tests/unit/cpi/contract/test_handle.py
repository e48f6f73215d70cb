"""Requests and responses, errors, logs and secrets."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cpi.config.config import Config
from cpi.contract.handle import handle
from cpi.errors import CloudError
from cpi.log import Log
from tests.support.cpi_calls import call, error_of, request
from tests.support.fake_config import fake_config
from tests.support.fake_runtime import FakeRuntime


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": None}, "the request's method must be a string, got null"),
        ({"method": 7}, "the request's method must be a string, got a number"),
        ({"arguments": None}, "the request's arguments must be a list, got null"),
        ({"arguments": {}}, "the request's arguments must be a list, got an object"),
        ({"context": []}, "the request's context must be an object or null, got a list"),
        ({"context": "x"}, "the request's context must be an object or null, got a string"),
        ({"api_version": 0}, "the request's api_version must be 1 to 3, got 0"),
        ({"api_version": 4}, "the request's api_version must be 1 to 3, got 4"),
        ({"api_version": "2"}, "the request's api_version must be 1 to 3, got a string"),
        ({"api_version": True}, "the request's api_version must be 1 to 3, got a boolean"),
        ({"api_version": 2.5}, "the request's api_version must be 1 to 3, got a fraction"),
        ({"api_version": []}, "the request's api_version must be 1 to 3, got a list"),
    ],
)
def test_envelope(config: Config, change: dict[str, object], message: str) -> None:
    document = {"method": "info", "arguments": [], "context": {}, "api_version": 2}
    response = handle({**document, **change}, config, Log("error"))
    assert error_of(response) == ("InvalidCall", message)


def test_missing_arguments(config: Config) -> None:
    response = handle({"method": "info"}, config, Log("error"))
    message = "the request's arguments must be a list, got none"
    assert error_of(response) == ("InvalidCall", message)


@pytest.mark.parametrize("context", [None, {}, {"director_uuid": "d", "vm": {"stemcell": {}}}])
def test_bytes_and_objects_are_handled_alike(config: Config, context: object) -> None:
    document = {"method": "info", "arguments": [], "context": context}
    for given in (document, json.dumps(document).encode()):
        response = handle(given, config, Log())
        assert response["error"] is None
        assert response["result"] == {"stemcell_formats": ["fake-tar"], "api_version": 3}


def test_unknown_methods_are_named_safely(config: Config) -> None:
    known = ("InvalidCall", "Method is not known, got 'fly_away'")
    assert error_of(call(config, "fly_away")) == known
    assert error_of(call(config, "__init__"))[0] == "InvalidCall"
    odd = error_of(call(config, "a\n\x1b[31m" + "b" * 500))[1]
    assert odd.startswith("Method is not known, got 'a\\n\\x1b[31mbbb")
    assert len(odd) < 100


def test_methods_of_old_are_not_implemented(config: Config) -> None:
    for method in ("ping", "configure_networks", "current_vm_id"):
        assert error_of(call(config, method))[0] == "Bosh::Clouds::NotImplemented"


def test_update_disk_is_not_known_in_version_1(config: Config) -> None:
    given: list[object] = ["fake-disk-1", 64, {}]
    response = call(config, "update_disk", *given, api_version=1)
    assert error_of(response) == ("InvalidCall", "Method is not known, got 'update_disk'")
    response = call(config, "update_disk", *given, api_version=2)
    assert error_of(response)[0] == "Bosh::Clouds::DiskNotFound"


def test_context_chooses_the_runtime(config: Config) -> None:
    response = call(config, "info", context={"runtime": "containerd"})
    assert "warden-tar" in response["result"]["stemcell_formats"]
    error_type, message = error_of(call(config, "info", context={"runtime": "<xen>"}))
    assert error_type == "Bosh::Clouds::CpiError"
    assert message == "there is no runtime '<xen>'; known: containerd, kvm, virtualbox, fake"


def test_log_names_method_cids_and_request(config: Config) -> None:
    context = {"request_id": "cpi-123456", "director_uuid": "d-1", "zone": "z1"}
    log = Log()
    handle(request("has_vm", "fake-vm-1", context=context), config, log)
    started, ignored, done = log.text.splitlines()
    assert "has_vm vm_cid='fake-vm-1' request_id='cpi-123456' director_uuid='d-1'" in started
    assert "not used from the context: 'zone'" in ignored
    assert "has_vm done in " in done
    assert done.endswith(" ms")


def test_log_names_failure_and_what_was_created(config: Config) -> None:
    log = Log()
    handle(request("delete_disk", "fake-disk-1"), config, log)
    assert re.search(r"ERROR delete_disk failed after \d+ ms: Bosh::Clouds::DiskNotFound", log.text)
    log = Log()
    disk = handle(request("create_disk", 32, {}, None), config, log)["result"]
    assert log.text.rstrip().endswith(f": '{disk}'")


def test_what_a_runtime_does_not_support_is_no_error_of_the_log(config: Config) -> None:
    """The director asks, and falls back to what every runtime can."""
    log = Log()
    response = handle(request("create_network", {"type": "manual"}), config, log)
    assert error_of(response)[0] == "Bosh::Clouds::NotSupported"
    assert re.search(r"INFO create_network failed after \d+ ms: Bosh::Clouds::NotSup", log.text)


def test_context_sets_the_log_level(config: Config) -> None:
    response = call(config, "info", context={"log_level": "error"})
    assert response["log"] == ""


SECRETS = (
    "s3cret!",
    "hunter22",
    "BEGIN KEY\nabcd/efgh=\nEND KEY",
    "quo'te\"d\\pw",
    "p\u00e4ss-word",
)


@pytest.mark.parametrize("secret", SECRETS)
def test_unexpected_exceptions_show_no_secrets(
    config: Config, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeRuntime, spec: Any) -> None:
        password = spec.env["bosh"]["password"]
        raise KeyError(f"{password!r} in {spec.env} and {spec.networks} and {json.dumps(password)}")

    monkeypatch.setattr(FakeRuntime, "create_vm", fail)
    stemcell = "fake-stemcell-1"
    networks = {"n": {"type": "dynamic", "cloud_properties": {"key": [secret]}}}
    env = {"bosh": {"password": secret}}
    context = {"agent": {"mbus": f"nats://nats:{secret}@10.0.0.1"}, "log_level": "debug"}
    response = call(config, "create_vm", "agent", stemcell, {}, networks, [], env, context=context)
    error_type, message = error_of(response)
    assert error_type == "Bosh::Clouds::VMCreationFailed"
    assert response["error"]["ok_to_retry"] is False
    assert message.startswith("create_vm: KeyError: ")
    assert "<redacted>" in message
    assert "Traceback" in response["log"]
    for line in secret.splitlines():
        for form in (line, repr(line)[1:-1], ascii(line)[1:-1]):
            assert form not in message
            assert form not in response["log"]


def test_the_files_secrets_are_not_shown_either(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeRuntime, vm_cid: str) -> bool:
        raise ValueError("cannot parse natspassword in https://mbus:natspassword@host:6868")

    monkeypatch.setattr(FakeRuntime, "has_vm", fail)
    config = fake_config(tmp_path, agent={"mbus": "https://mbus:natspassword@host:6868"})
    message = error_of(call(config, "has_vm", "fake-vm-1"))[1]
    assert message == "has_vm: ValueError: cannot parse <redacted> in <redacted>"


def test_nor_are_those_of_a_clients_configuration(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeRuntime, vm_cid: str) -> bool:
        raise ValueError(f"cannot parse {self.config.text('agent.mbus')}")

    monkeypatch.setattr(FakeRuntime, "has_vm", fail)
    client_config = {"agent": {"mbus": "https://mbus:natspassword@host:6868"}}
    response = handle(request("has_vm", "fake-vm-1"), config, Log(), None, client_config)
    assert error_of(response)[1] == "has_vm: ValueError: cannot parse <redacted>"


def test_debug_log_alone_has_the_traceback(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeRuntime, vm_cid: str) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(FakeRuntime, "has_vm", fail)
    response = call(config, "has_vm", "fake-vm-1")
    assert error_of(response) == ("Bosh::Clouds::CpiError", "has_vm: ZeroDivisionError")
    assert "Traceback" not in response["log"]
    response = call(config, "has_vm", "fake-vm-1", context={"log_level": "debug"})
    assert "Traceback" in response["log"]


def test_failing_to_close_loses_no_result(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeRuntime) -> None:
        raise CloudError("the connection was gone already")

    monkeypatch.setattr(FakeRuntime, "close", fail)
    assert call(config, "has_vm", "fake-vm-1")["result"] is False


def test_closed_stderr_loses_no_result(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    response = call(config, "has_vm", "fake-vm-1", context={"log_level": "info"})
    assert response["result"] is False
    assert "has_vm done" in response["log"]
