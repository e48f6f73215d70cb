"""What methods take: arity, types, CIDs, and what a runtime then gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from cpi.config.config import Config
from cpi.config.overrides import overridden
from cpi.contract import methods, values
from cpi.errors import InvalidCall
from tests.support.cpi_calls import call, error_of
from tests.support.fake_runtime import WORLDS, FakeRuntime

VM = "fake-vm-1"
DISK = "fake-disk-1"
STEMCELL = "fake-stemcell-1"


@pytest.mark.parametrize("method", methods.METHODS)
def test_one_argument_too_many(config: Config, method: str) -> None:
    parameters = methods.METHODS[method].parameters
    error_type, message = error_of(call(config, method, *[None] * (len(parameters) + 1)))
    assert error_type == "InvalidCall"
    assert message.startswith(f"{method} takes ")
    assert message.endswith(f"got {len(parameters) + 1}")
    assert all(parameter.name in message for parameter in parameters)


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name != "info"])
def test_no_arguments_at_all(config: Config, method: str) -> None:
    error_type, message = error_of(call(config, method))
    assert error_type == "InvalidCall"
    assert message.startswith(f"{method} takes ")
    assert message.endswith("got 0")


def test_arity_message_names_arguments(config: Config) -> None:
    reason = "create_disk takes 3 arguments (size, cloud_properties, vm_cid), got 1"
    assert error_of(call(config, "create_disk", 1)) == ("InvalidCall", reason)
    reason = "create_stemcell takes 2 to 3 arguments (image_path, cloud_properties, options), got 1"
    assert error_of(call(config, "create_stemcell", "/x")) == ("InvalidCall", reason)


@pytest.mark.parametrize(
    ("method", "given", "reason"),
    [
        ("has_vm", [7], "has_vm: vm_cid must be a vm CID, got 7"),
        ("delete_vm", [None], "delete_vm: vm_cid must be a vm CID, got null"),
        ("delete_disk", [[]], "delete_disk: disk_cid must be a disk CID, got a list"),
        ("attach_disk", [VM, {}], "attach_disk: disk_cid must be a disk CID, got an object"),
        (
            "delete_stemcell",
            [True],
            "delete_stemcell: stemcell_cid must be a stemcell CID, got a b",
        ),
        (
            "create_disk",
            ["64", {}, None],
            "create_disk: size must be a whole number of MiB, 1 to 1073741824, without quotes",
        ),
        ("create_disk", [0, {}, None], "1 to 1073741824, got 0"),
        ("create_disk", [-5, {}, None], "1 to 1073741824, got -5"),
        ("create_disk", [2**63, {}, None], f"1 to 1073741824, got {2**63}"),
        ("create_disk", [1.5, {}, None], "1 to 1073741824, got 1.5"),
        ("create_disk", [64, [], None], "create_disk: cloud_properties must be an object"),
        ("create_disk", [64, {}, 5], "create_disk: vm_cid must be a vm CID, got 5"),
        ("resize_disk", [DISK, True], "resize_disk: size must be a whole number of MiB"),
        ("create_stemcell", ["image", {}], "image_path must be an absolute path, got 'image'"),
        ("create_stemcell", ["", {}], "image_path must be 1 to 4096 printable characters"),
        ("create_stemcell", ["/a\0b", {}], "image_path must be 1 to 4096 printable characters"),
        ("create_stemcell", [None, {}], "image_path must be a string, got null"),
        ("create_stemcell", ["/x", {}, []], "options must be an object, got a list"),
        ("create_stemcell", ["/x", {}, {"tags": 1}], "tags must be an object, got 1"),
        ("create_vm", [1, STEMCELL, {}, {}, [], {}], "agent_id must be a string, got 1"),
        ("create_vm", ["", STEMCELL, {}, {}, [], {}], "agent_id must be 1 to 4096 printable"),
        ("create_vm", ["a\n", STEMCELL, {}, {}, [], {}], "agent_id must be 1 to 4096 printable"),
        ("create_vm", ["a", STEMCELL, "x", {}, [], {}], "cloud_properties must be an object"),
        ("create_vm", ["a", STEMCELL, {}, [], [], {}], "networks must be an object, got a list"),
        ("create_vm", ["a", STEMCELL, {}, {}, {}, {}], "disk_cids must be a list of disk CIDs"),
        ("create_vm", ["a", STEMCELL, {}, {}, [1], {}], "disk_cids[0] must be a disk CID, got 1"),
        ("create_vm", ["a", STEMCELL, {}, {}, [], "x"], "env must be an object, got a string"),
        ("set_vm_metadata", [VM, []], "metadata must be an object, got a list"),
        ("calculate_vm_cloud_properties", [5], "resources must be an object, got 5"),
        ("calculate_vm_cloud_properties", [{}], "cpu must be a positive whole number, got null"),
        ("calculate_vm_cloud_properties", [{"cpu": 1, "ram": "1"}], "ram must be a positive whole"),
        (
            "calculate_vm_cloud_properties",
            [{"cpu": 0}],
            "cpu must be a positive whole number, got 0",
        ),
    ],
)
def test_wrong_types_name_method_and_argument(
    config: Config, method: str, given: list[object], reason: str
) -> None:
    error_type, message = error_of(call(config, method, *given))
    assert error_type == "InvalidCall"
    assert message.startswith(f"{method}: ")
    assert reason in message


def test_values_that_may_be_secret_are_not_shown(config: Config) -> None:
    for given in (
        ["a", STEMCELL, "hunter22", {}, [], {}],
        ["a", STEMCELL, {}, {}, [], "hunter22"],
        ["a", STEMCELL, {"cpu": "hunter22"}, {}, [], {}],
        ["a", STEMCELL, {}, {"n": "hunter22"}, [], {}],
        ["hunter22\n", STEMCELL, {}, {}, [], {}],
    ):
        response = call(config, "create_vm", *given)
        assert "hunter22" not in error_of(response)[1]
        assert "hunter22" not in response["log"]


def test_a_director_gets_types_that_it_knows(config: Config) -> None:
    director = {"request_id": "cpi-123456"}
    gone = call(config, "delete_stemcell", "fake-vm-1", context=director)
    assert error_of(gone)[0] == "Bosh::Clouds::CloudError"
    assert error_of(call(config, "has_vm", context=director))[0] == "Bosh::Clouds::CpiError"
    error_type, message = error_of(call(config, "levitate", context=director))
    assert error_type == "InvalidCall"
    assert message.startswith("Method is not known, got")


@pytest.mark.parametrize(
    ("method", "given", "error_type"),
    [
        ("delete_stemcell", ["fake-vm-1"], "StemcellNotFound"),
        ("delete_vm", ["i-0123456789"], "VMNotFound"),
        ("delete_vm", ["other-vm-1"], "VMNotFound"),
        ("delete_vm", ["fake-vm-" + "x" * 100], "VMNotFound"),
        ("delete_disk", ["other-disk-1"], "DiskNotFound"),
        ("delete_snapshot", ["../../etc"], "CpiError"),
        ("delete_snapshot", ["fake-disk-1"], "CpiError"),
        ("delete_network", ["../x"], "NetworkNotFound"),
        ("delete_network", ["net-1"], "NotSupported"),
        ("create_network", [{"type": "manual"}], "NotSupported"),
        ("create_disk", [64, {}, "other-vm-1"], "VMNotFound"),
        ("has_vm", ["$(x)"], "VMNotFound"),
        ("has_disk", ["a/../../b"], "DiskNotFound"),
        ("create_vm", ["a", STEMCELL, {}, {}, ["../x"], {}], "DiskNotFound"),
    ],
)
def test_foreign_cids(config: Config, method: str, given: list[object], error_type: str) -> None:
    got, message = error_of(call(config, method, *given))
    assert got == f"Bosh::Clouds::{error_type}"
    assert "\n" not in message


def test_has_is_false_for_well_formed_cids_of_others(config: Config) -> None:
    for foreign in ("i-0123456789", "other-vm-1", "c-7b1e:/x", "fake-disk-1"):
        assert call(config, "has_vm", foreign)["result"] is False
    assert call(config, "has_disk", "vol-1")["result"] is False


def created(config: Config) -> Any:
    """Return the spec of the only VM."""
    (machine,) = WORLDS[config.text("state_dir")].machines.values()
    return machine.spec


def make_vm(config: Config, tmp_path: Path, *rest: object, **more: Any) -> dict[str, Any]:
    """Import a stemcell and create a VM with these arguments after the stemcell's."""
    image = tmp_path / "image"
    image.write_bytes(b"\x1f\x8bx")
    stemcell = call(config, "create_stemcell", str(image), {})["result"]
    return call(config, "create_vm", "agent-7", stemcell, *rest, **more)


def test_runtime_gets_a_complete_spec(tmp_path: Path, config: Config) -> None:
    agent = {"mbus": "nats://x", "ntp": ["n"], "blobstore": {"provider": "dav"}}
    config, _ = overridden(config, {"agent": agent})
    networks = {"b": {"type": "dynamic"}, "a": {"type": "dynamic"}}
    response = make_vm(
        config, tmp_path, {"cpu": 1.5}, networks, ["fake-disk-9"], {"bosh": {"x": 1}}
    )
    spec = created(config)
    assert response["result"][0] == spec.cid
    assert spec.cid.startswith("fake-vm-")
    assert (spec.agent_id, spec.api_version, spec.properties.cpu) == ("agent-7", 2, 1.5)
    assert [network.name for network in spec.networks] == ["b", "a"]
    assert spec.disk_cids == ("fake-disk-9",)
    assert spec.env == {"bosh": {"x": 1}}
    assert (spec.agent.mbus, spec.agent.ntp) == ("nats://x", ("n",))
    assert spec.agent.blobstore == {"provider": "dav"}


def test_null_counts_as_empty(tmp_path: Path, config: Config) -> None:
    """Go writes a nil map or slice as null."""
    response = make_vm(config, tmp_path, None, None, None, None, api_version=3)
    assert response["error"] is None
    assert response["result"][1] == {}
    spec = created(config)
    assert (spec.env, spec.networks, spec.disk_cids) == ({}, (), ())


def test_cloud_properties_choose_the_runtime(tmp_path: Path, config: Config) -> None:
    for properties, context in (({"runtime": "fake"}, {"runtime": "containerd"}), ({}, {})):
        image = tmp_path / "image"
        image.write_bytes(b"\x1f\x8bx")
        stemcell = call(config, "create_stemcell", str(image), {})["result"]
        given: list[object] = ["a", stemcell, properties, {}, [], {}]
        result = call(config, "create_vm", *given, context=context)["result"]
        assert result[0].startswith("fake-vm-")
    response = call(config, "create_vm", "a", stemcell, {"runtime": "xen"}, {}, [], {})
    assert (
        error_of(response)[1]
        == "there is no runtime 'xen'; known: containerd, kvm, virtualbox, fake"
    )


def test_disks_go_where_their_vm_is(tmp_path: Path, config: Config) -> None:
    vm = make_vm(config, tmp_path, {}, {}, [], {})["result"][0]
    other = overridden(config, {"runtime": "containerd"})[0]
    assert call(other, "create_disk", 64, {}, vm)["result"].startswith("fake-disk-")


def test_metadata_becomes_strings(tmp_path: Path, config: Config) -> None:
    vm = make_vm(config, tmp_path, {}, {}, [], {})["result"][0]
    metadata = {"a": "b", "n": 7, "t": True, "none": None, "deep": {"y": [1], "x": "ü"}}
    call(config, "set_vm_metadata", vm, metadata)
    kept = WORLDS[config.text("state_dir")].machines[vm].metadata
    assert kept == {
        "a": "b",
        "n": "7",
        "t": "true",
        "none": "",
        "deep": json.dumps({"x": "ü", "y": [1]}),
    }


@pytest.mark.parametrize(
    "metadata",
    [
        {f"tag-{number}": "x" for number in range(values.MAX_METADATA + 1)},
        {"tag": "x" * values.MAX_METADATA_SIZE},
    ],
    ids=["entries", "bytes"],
)
def test_metadata_has_a_limit(tmp_path: Path, config: Config, metadata: dict[str, str]) -> None:
    vm = make_vm(config, tmp_path, {}, {}, [], {})["result"][0]
    error = call(config, "set_vm_metadata", vm, metadata)["error"]
    assert error["type"] == "InvalidCall"
    assert f"the limit is {values.MAX_METADATA} entries" in error["message"]


def test_calculate_warns_of_what_it_does_not_use(config: Config) -> None:
    wanted = {"cpu": 2, "ram": 1024, "ephemeral_disk_size": 4096, "gpu": 1}
    response = call(config, "calculate_vm_cloud_properties", wanted, context={"log_level": "warn"})
    assert response["result"] == {"cpu": 2, "memory": 1024, "ephemeral_disk": 4096}
    assert "does not use 'gpu'" in response["log"]


def test_locks_are_held_while_a_runtime_works(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(config.text("run_dir"), "locks")
    seen: list[str] = []

    def detach(self: FakeRuntime, vm_cid: str, disk_cid: str) -> None:
        seen.extend(sorted(path.name for path in folder.iterdir()))

    monkeypatch.setattr(FakeRuntime, "detach_disk", detach)
    assert call(config, "detach_disk", VM, DISK)["error"] is None
    assert seen == [DISK, VM]
    assert list(folder.iterdir()) == []


def test_string_and_metadata_by_themselves() -> None:
    assert values.string("x", "ä b") == "ä b"
    with pytest.raises(InvalidCall, match="x must be 1 to 4096 printable characters"):
        values.string("x", "a" * 4097)
    assert values.metadata("x", None) == {}
