"""What a client of the service has is its own, and nothing else is there for it."""

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cpi.contract.methods import METHODS
from cpi.errors import CloudError, Interrupted
from cpi.service import guard as guards
from cpi.service.ownership import Ownership
from cpi.service.policy import Policies
from tests.support import fake_runtime
from tests.support.contract_lab import Cpi, MetadataOf
from tests.support.contract_suite import RuntimeContract
from tests.support.cpi_calls import call
from tests.support.fake_config import fake_registered
from tests.support.fake_runtime import WORLDS, FakeRuntime
from tests.support.service_clients import Client, Failed, client


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with fake_registered():
        yield


@pytest.fixture
def mine(tmp_path: Path) -> Client:
    return client(tmp_path, "one")


@pytest.fixture
def other(tmp_path: Path) -> Client:
    return client(tmp_path, "another")


class TestContractForClients(RuntimeContract):
    """A client sees the contract as root in process does."""

    @pytest.fixture
    def cpi(self, mine: Client) -> Cpi:
        def send(
            method: str, *arguments: object, api_version: int = 2, context: Any = None
        ) -> dict[str, Any]:
            from cpi.contract.handle import handle
            from cpi.log import Log
            from tests.support.cpi_calls import request

            upload = Path(str(arguments[0])) if method == "create_stemcell" else None
            guard = guards.Guard("one", mine.config, Policies.of(mine.config), upload)
            sent = request(method, *arguments, api_version=api_version, context=context)
            answer: dict[str, Any] = json.loads(
                json.dumps(handle(sent, mine.config, Log("error"), guard))
            )
            return answer

        return send

    @pytest.fixture
    def stemcell(self, tmp_path: Path) -> Path:
        return fake_runtime.write_image(tmp_path / "image")

    @pytest.fixture
    def metadata_of(self, mine: Client) -> MetadataOf:
        return partial(fake_runtime.metadata_of, mine.config)


def test_every_method_has_its_rule() -> None:
    """A method that is added to the contract is refused until it has a rule."""
    known = {*guards._OWNED, *guards._HARMLESS, *guards._METHODS}
    assert set(METHODS) - known == {"create_network", "delete_network"}


def test_managed_networks_are_not_for_clients(mine: Client) -> None:
    assert mine.fails("create_network", {}).type == "NotSupported"
    assert mine.fails("delete_network", "net").type == "NotSupported"


def foreign_calls(vm: str, disk: str, mine: Client) -> dict[str, tuple[list[Any], str]]:
    """Return every method with resources of another client, and the expected error."""
    my_vm, my_disk = mine.vm(), mine.disk()
    return {
        "delete_vm": ([vm], "VMNotFound"),
        "reboot_vm": ([vm], "VMNotFound"),
        "set_vm_metadata": ([vm, {}], "VMNotFound"),
        "get_disks": ([vm], "VMNotFound"),
        "create_disk": ([64, {}, vm], "VMNotFound"),
        "delete_disk": ([disk], "DiskNotFound"),
        "set_disk_metadata": ([disk, {}], "DiskNotFound"),
        "resize_disk": ([disk, 128], "DiskNotFound"),
        "update_disk": ([disk, 128, {}], "DiskNotFound"),
        "snapshot_disk": ([disk, {}], "DiskNotFound"),
        "attach_disk": ([my_vm, disk], "DiskNotFound"),
        "detach_disk": ([vm, my_disk], "VMNotFound"),
    }


@pytest.mark.parametrize("owner", ["another", "root"])
def test_other_things_do_not_exist(mine: Client, other: Client, owner: str) -> None:
    if owner == "another":
        vm, disk = other.vm(), other.disk()
        other.call("attach_disk", vm, disk)
        snapshot = other.call("snapshot_disk", disk, {})
    else:
        vm = call(mine.config, "create_vm", *other.arguments(other.stemcell()))["result"][0]
        disk = call(mine.config, "create_disk", 64, {}, vm)["result"]
        call(mine.config, "attach_disk", vm, disk)
        snapshot = call(mine.config, "snapshot_disk", disk, {})["result"]
    world = WORLDS[mine.config.text("state_dir")]
    assert mine.call("has_vm", vm) is False
    assert mine.call("has_disk", disk) is False
    for method, (values, error_type) in foreign_calls(vm, disk, mine).items():
        error = mine.fails(method, *values)
        assert (method, error.type) == (method, error_type)
    mine.call("delete_snapshot", snapshot)
    assert snapshot in world.snapshots
    assert world.machines[vm].reboots == 0
    assert world.disks[disk].vm_cid == vm
    assert world.disks[disk].size_mib == 64


def test_a_vm_takes_only_a_stemcell_and_disks_of_its_owner(mine: Client, other: Client) -> None:
    stemcell, disk = other.stemcell(b"something else"), other.disk()
    refused = mine.fails("create_vm", *mine.arguments(stemcell))
    assert refused.type == "StemcellNotFound"
    assert refused.message.endswith("upload it again (bosh upload-stemcell --fix FILE)")
    refused = mine.fails("create_vm", *mine.arguments(mine.stemcell(), disks=[disk]))
    assert refused.type == "DiskNotFound"
    assert refused.message.endswith("was it made on another one (bosh cck)?")
    assert mine.records() == [mine.stemcell()]
    assert WORLDS[mine.config.text("state_dir")].machines == {}


def test_get_disks_names_the_clients_own_alone(mine: Client) -> None:
    vm, disk = mine.vm(), mine.disk()
    mine.call("attach_disk", vm, disk)
    roots = call(mine.config, "create_disk", 64, {}, None)["result"]
    call(mine.config, "attach_disk", vm, roots)
    assert mine.call("get_disks", vm) == [disk]


def test_a_stemcell_of_two_is_deleted_with_the_last(mine: Client, other: Client) -> None:
    stemcell = mine.stemcell()
    world = WORLDS[mine.config.text("state_dir")]
    assert other.call("delete_stemcell", stemcell) is None  # as if nobody had it
    assert stemcell in world.stemcells
    assert other.stemcell() == stemcell
    for _ in range(2):
        mine.call("delete_stemcell", stemcell)
        assert stemcell in world.stemcells
    assert mine.records() == []
    assert mine.fails("create_vm", *mine.arguments(stemcell)).type == "StemcellNotFound"
    assert other.vm()
    other.call("delete_stemcell", stemcell)
    assert stemcell not in world.stemcells


def test_files_of_the_host_are_not_read(mine: Client, tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_bytes(gzip.compress(b"root:hash"))
    for path in (str(secret), "/etc/shadow", str(mine.upload)):
        error = mine.fails("create_stemcell", path, {})  # nothing was uploaded
        assert error.type == "CloudError"
        assert "reads no files of the host" in error.message
    mine.upload.write_bytes(gzip.compress(b"x"))
    for path in (str(secret), f"{mine.upload}/../shadow", f"{mine.upload}/"):
        assert "reads no files" in mine.fails("create_stemcell", path, {}).message
    assert mine.records() == []


def test_registries_are_asked_without_the_hosts_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def create(runtime: FakeRuntime, *rest: object) -> str:
        seen.append(runtime.config.text("registry.docker_config"))
        return f"fake-stemcell-{len(seen)}"

    monkeypatch.setattr(FakeRuntime, "create_stemcell", create)
    client(tmp_path, "one").stemcell()
    client(tmp_path, "two", two={"registry_credentials": True}).stemcell()
    assert seen == ["/dev/null", ""]


def test_only_what_is_the_clients_business_comes_from_its_context(mine: Client) -> None:
    context = {
        "state_dir": "/etc",
        "run_dir": "/etc",
        "disk_dir": "/etc",
        "disk_stores": {"etc": "/etc"},
        "containerd": {"address": "/etc/x", "allow_privileged": False},
        "registry": {"docker_config": "/root/.docker/config.json", "plain_http": ["evil"]},
        "network": {"cni_config_dir": "/etc", "mtu": 1400, "dynamic_subnets": ["0.0.0.0/0"]},
        "kvm": {"uri": "qemu+ssh://evil/system", "memory": 64},
        "service": {"clients": {"one": {"privileged": True}}},
        "log_level": "info",
        "datacenter": 5,
        "director_uuid": "d",
    }
    vm = mine.call("create_vm", *mine.arguments(mine.stemcell()), context=context)[0]
    line = next(line for line in mine.log.splitlines() if "host's to decide" in line)
    for name in (
        *("state_dir", "run_dir", "disk_dir", "disk_stores", "containerd.address"),
        *("registry.docker_config", "registry.plain_http", "network.cni_config_dir"),
        *("network.dynamic_subnets", "kvm.uri", "service.clients"),
    ):
        assert f"'{name}'" in line
    for name in ("mtu", "memory", "allow_privileged", "log_level", "director_uuid", "datacenter"):
        assert name not in line
    assert "not used from the context: 'datacenter'" in mine.log
    assert vm in mine.records()
    assert mine.call("has_vm", vm, context=context) is True
    assert mine.fails("create_vm", *mine.arguments("fake-stemcell-1", {"privileged": True}),
                     context=context).type == "StemcellNotFound"  # fmt: skip


@pytest.mark.parametrize("level", ["debug", "error"])
def test_a_client_sets_the_level_of_its_own_log_and_not_of_the_hosts(
    mine: Client, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.call("has_vm", "fake-vm-1", context={"log_level": level})
    assert ("INFO has_vm" in mine.log) is (level == "debug")
    assert "INFO has_vm vm_cid='fake-vm-1'" in capsys.readouterr().err


@pytest.mark.parametrize("failure", [CloudError("no"), Interrupted("SIGTERM"), MemoryError()])
def test_what_fails_is_not_counted(
    mine: Client, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    vm, disk = mine.vm(), mine.disk()
    before = mine.records()
    size = WORLDS[mine.config.text("state_dir")].disks[disk].size_mib
    for name in ("create_stemcell", "create_vm", "create_disk", "snapshot_disk", "resize_disk",
                 "update_disk", "delete_vm", "delete_disk", "delete_stemcell"):  # fmt: skip
        monkeypatch.setattr(FakeRuntime, name, fail)
    stemcell = next(cid for cid in before if "stemcell" in cid)
    calls: dict[str, list[Any]] = {
        "create_stemcell": [str(mine.upload), {}],
        "create_vm": mine.arguments(stemcell),
        "create_disk": [64, {}, None],
        "snapshot_disk": [disk, {}],
        "resize_disk": [disk, 128],
        "update_disk": [disk, 128, {}],
        "delete_vm": [vm],
        "delete_disk": [disk],
        "delete_stemcell": [stemcell],
    }
    for method, arguments in calls.items():
        with pytest.raises((Failed, Interrupted)):
            mine.call(method, *arguments)
        assert mine.records() == before, method
    record = Path(mine.config.text("state_dir")) / "clients" / "one" / disk
    assert json.loads(record.read_text())["disk"] == size


@pytest.mark.parametrize("failure", [OSError("no space"), Interrupted("SIGTERM")])
def test_what_cannot_be_recorded_does_not_stay(
    mine: Client, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    disk, stemcell = mine.disk(), mine.stemcell()
    before = mine.records()
    monkeypatch.setattr(Ownership, "_name", fail)
    calls: dict[str, list[Any]] = {
        "create_vm": mine.arguments(stemcell),
        "create_disk": [64, {}, None],
        "snapshot_disk": [disk, {}],
    }
    for method, arguments in calls.items():
        with pytest.raises((Failed, Interrupted)):
            mine.call(method, *arguments)
    world = WORLDS[mine.config.text("state_dir")]
    assert (list(world.machines), list(world.disks), list(world.snapshots)) == ([], [disk], [])
    assert mine.records() == before


def test_a_disk_that_was_deleted_without_the_service_is_forgotten(mine: Client) -> None:
    disk = mine.disk()
    call(mine.config, "delete_disk", disk)
    assert mine.fails("delete_disk", disk).type == "DiskNotFound"
    assert mine.records() == []


def test_an_update_that_gives_another_cid_is_followed(mine: Client) -> None:
    disk = mine.disk()
    fresh = mine.call("update_disk", disk, 128, {})
    assert fresh != disk
    assert mine.records() == [fresh]
    assert mine.call("has_disk", fresh) is True


def test_records_are_for_root_alone(mine: Client) -> None:
    mine.vm()
    clients = Path(mine.config.text("state_dir")) / "clients"
    assert [path.stat().st_mode & 0o777 for path in (clients, clients / "one")] == [0o700, 0o700]
    assert {path.stat().st_mode & 0o777 for path in (clients / "one").iterdir()} == {0o600}
