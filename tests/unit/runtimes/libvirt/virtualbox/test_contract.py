"""The VirtualBox runtime on a strict FAKE of libvirt's driver, for want of VirtualBox 7.0."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cpi.disks.disk_store import DiskStore, folders_of
from cpi.host.undo import Undo
from cpi.log import Log
from runtimes.libvirt import settings_iso
from runtimes.libvirt.domains import Domains
from runtimes.libvirt.runtime import VirtualBoxRuntime
from runtimes.libvirt.virtualbox import media
from tests.support.contract_lab import Cpi, Lab, MetadataOf
from tests.support.contract_suite import RuntimeContract
from tests.support.cpi_calls import call
from tests.support.operator_contract import OperatorContract
from tests.support.runtime_verb import call_verb
from tests.support.virtualbox.fake_vbox import FakeVBox
from tests.support.virtualbox.fake_vbox_documents import ABORTED, OFF, RUNNING
from tests.support.virtualbox.vbox_lab import VBoxLab, fake_virtualbox, machine_image, settings


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return machine_image(tmp_path_factory.mktemp("stemcell"))


@pytest.fixture
def world() -> Iterator[FakeVBox]:
    with fake_virtualbox() as made:
        yield made


@pytest.fixture
def lab(world: FakeVBox, tmp_path: Path, image: Path) -> VBoxLab:
    return VBoxLab(world, tmp_path, image)


class TestVirtualBoxContract(RuntimeContract, OperatorContract):
    """Everything that the contract asks."""

    preconfigured: ClassVar[bool] = False

    @pytest.fixture
    def cpi(self, world: FakeVBox, tmp_path: Path) -> Iterator[Cpi]:
        config = settings(tmp_path)

        def send(
            method: str, *arguments: object, api_version: int = 2, context: Any = None
        ) -> dict[str, Any]:
            return call(config, method, *arguments, api_version=api_version, context=context)

        yield send
        assert not world.machines
        assert not world.media.known
        left = (tmp_path / "state/virtualbox").glob("*")
        assert [path for path in left if path.suffix not in (".stemcell", ".json")] == []
        assert list((tmp_path / "state").glob("vms/*")) == []

    @pytest.fixture
    def stemcell(self, image: Path) -> Path:
        return image

    @pytest.fixture
    def metadata_of(self, world: FakeVBox, tmp_path: Path) -> MetadataOf:
        def metadata(cid: str) -> dict[str, str]:
            config = settings(tmp_path)
            if "-disk-" in cid:
                return dict(DiskStore(folders_of(config)).get(cid).metadata)
            with closing(VirtualBoxRuntime(config, Log("error"))) as runtime:
                return dict(next(vm.metadata for vm in runtime.vms() if vm.cid == cid))

        return metadata

    @pytest.fixture
    def verb(self, world: FakeVBox, tmp_path: Path) -> Callable[..., Any]:
        return partial(call_verb, settings(tmp_path))

    # A file system grows while it is mounted, which takes root.

    @pytest.mark.integration
    def test_a_detached_disk_grows_and_never_shrinks(self, lab: Lab) -> None:
        super().test_a_detached_disk_grows_and_never_shrinks(lab)

    @pytest.mark.integration
    def test_update_changes_a_detached_disk_or_is_not_supported(self, lab: Lab) -> None:
        super().test_update_changes_a_detached_disk_or_is_not_supported(lab)


# A VM


def test_a_vm_is_vdis_a_cd_and_a_domain_that_the_schema_takes(lab: VBoxLab) -> None:
    vm = lab.vm(root_disk=40, cpu=2, memory=96)
    machine = lab.world.named(vm)
    assert machine.state == RUNNING
    assert (machine.memory, machine.vcpus) == (96 << 10, 2)
    with closing(VirtualBoxRuntime(settings(lab.folder), Log("error"))) as runtime:
        [view] = runtime.vms()
    assert (view.cid, view.memory, view.cpu) == (vm, 96, 2.0)
    assert machine.features == {"acpi", "apic", "pae"}
    devices = {port: device for port, (device, _) in machine.disks.items()}
    assert devices == {0: "disk", 1: "disk", 2: "cdrom"}
    root = lab.pool / f"{vm}.root"
    argv = ["qemu-img", "info", "--output=json", str(root)]
    said = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert (said["format"], said["virtual-size"]) == ("vdi", 40 << 20)
    assert said["actual-size"] < 12 << 20  # what is empty takes no room
    (base,) = lab.pool.glob("*.stemcell")
    argv = ["qemu-img", "compare", "-f", "vdi", "-F", "raw", str(root), str(base)]
    subprocess.run(argv, capture_output=True, check=True)
    assert machine.console == str(lab.pool / f"{vm}.console")
    assert lab.files() == [f"{vm}{part}" for part in (".console", ".data", ".iso", ".root")]


def test_settings_name_the_ephemeral_disk_by_its_serial(lab: VBoxLab) -> None:
    vm = lab.vm()
    settings = settings_iso.read("cdrom", (lab.pool / f"{vm}.iso").read_bytes())
    assert settings["disks"]["ephemeral"] == media.hint_of(f"{vm}.data", "scsi")


def test_an_openstack_stemcell_gets_its_config_drive_as_a_cd(
    world: FakeVBox, tmp_path: Path
) -> None:
    lab = VBoxLab(world, tmp_path, machine_image(tmp_path, "ConfigDrive", "virtio"))
    vm, disk = lab.vm(), lab.ok("create_disk", 32, {}, None)
    assert world.named(vm).disks[2][0] == "cdrom"
    hint = lab.ok("attach_disk", vm, disk)
    serial = media.serial_of(f"{disk}.vmdk")
    assert hint == {"path": f"/dev/disk/by-id/ata-VBOX_HARDDISK_{serial}"}


def test_stop_is_graceful_and_forced_when_the_guest_does_not_obey(lab: VBoxLab) -> None:
    vm = lab.vm()
    lab.ok("reboot_vm", vm)
    lab.world.obeys = False
    lab.config = settings(lab.folder, shutdown_timeout=1)
    lab.ok("reboot_vm", vm)
    assert lab.world.calls == [
        *(f"define {vm}", f"start {vm}", f"off {vm}", f"start {vm}", f"off {vm}", f"start {vm}")
    ]


@pytest.mark.parametrize("state", [OFF, ABORTED])
def test_a_vm_that_has_ended_is_started_and_deleted(lab: VBoxLab, state: str) -> None:
    vm = lab.vm()
    lab.world.named(vm).state = state
    lab.ok("reboot_vm", vm)
    assert lab.world.named(vm).state == RUNNING
    lab.world.named(vm).state = state
    lab.ok("delete_vm", vm)
    assert not lab.world.machines


def test_a_start_that_fails_leaves_nothing(lab: VBoxLab) -> None:
    arguments = lab.arguments()
    lab.world.fail_start = 1
    error_type, message = lab.fails("create_vm", *arguments)
    assert "terminated unexpectedly" in message
    assert error_type in ("CloudError", "VMCreationFailed")
    assert not lab.world.machines
    assert not lab.files()


@pytest.mark.parametrize("what", ["memory", "interfaces"])
def test_what_the_driver_loses_silently_is_an_error(lab: VBoxLab, what: str) -> None:
    arguments = lab.arguments()
    lab.world.loses = what
    _, message = lab.fails("create_vm", *arguments)
    assert f"did not define the VM {lab.world.calls[0].split()[1]} with {what}" in message
    assert not lab.world.machines
    assert not lab.files()


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"firmware": "uefi"}, "firmware"),
        ({"machine": "q35"}, "machine"),
        ({"cpu_model": "host"}, "cpu_model"),
        ({"cpu": 0.5}, "cpu: 0.5"),
        ({"host_service": True}, "host_service is for containers"),
        ({"mounts": [{"host": "/srv", "vm": "/mnt"}]}, "mounts is for containers"),
    ],
)
def test_what_the_driver_cannot_set_is_not_supported(
    lab: VBoxLab, properties: dict[str, object], named: str
) -> None:
    error_type, message = lab.fails("create_vm", *lab.arguments(properties))
    assert error_type == "NotSupported"
    assert f"cloud_properties.{named}" in message
    assert not lab.files()


def test_nine_networks_are_more_than_it_has_interfaces(lab: VBoxLab) -> None:
    assert lab.fails("create_vm", *lab.arguments({}, 9))[0] == "NotSupported"
    assert len(lab.ok("create_vm", *lab.arguments({}, 8))[1]) == 8


# Power cycles


def _power(lab: VBoxLab, vm: str) -> list[str]:
    """Return the calls on a VM since the last time."""
    calls, lab.world.calls = lab.world.calls, []
    assert all(line.endswith(vm) for line in calls)
    return [line.split()[0] for line in calls]


CYCLE = ["off", "undefine", "define", "start"]


def test_attach_and_detach_are_power_cycles_that_keep_everything_else(lab: VBoxLab) -> None:
    vm, disk = lab.vm(), lab.ok("create_disk", 32, {}, None)
    before, _ = replace(lab.world.named(vm), held=0), _power(lab, vm)
    written = (lab.pool / f"{vm}.root").read_bytes()
    response = lab.send("attach_disk", vm, disk)
    assert f"power cycle of {vm}" in response["log"]
    assert _power(lab, vm) == CYCLE
    after = lab.world.named(vm)
    assert after.state == RUNNING
    assert after.uuid == before.uuid
    assert after.interfaces == before.interfaces
    descriptor = lab.pool / f"{disk}.vmdk"
    assert after.disks == {**before.disks, 3: ("disk", str(descriptor))}
    assert f'FLAT "{lab.folder}/state/disks/{disk}.raw" 0' in descriptor.read_text()
    assert (lab.pool / f"{vm}.root").read_bytes() == written
    lab.ok("attach_disk", vm, disk)
    lab.ok("detach_disk", vm, disk)
    assert _power(lab, vm) == CYCLE  # the second attach did nothing
    assert replace(lab.world.named(vm), held=0) == before
    assert not descriptor.exists()


def test_a_disk_goes_from_vm_to_vm_with_the_same_serial(lab: VBoxLab) -> None:
    first, second, disk = lab.vm(), lab.vm(), lab.ok("create_disk", 32, {}, None)
    hint = lab.ok("attach_disk", first, disk)
    assert re.fullmatch(r"VB[0-9a-f]{8}\?[0-9a-f]{8}", hint["id"])
    lab.ok("delete_vm", first)
    assert not (lab.pool / f"{disk}.vmdk").exists()
    assert lab.ok("attach_disk", second, disk) == hint


def test_a_vm_that_does_not_run_is_not_started(lab: VBoxLab) -> None:
    vm, disk = lab.vm(), lab.ok("create_disk", 32, {}, None)
    lab.world.named(vm).state = OFF
    lab.ok("attach_disk", vm, disk)
    assert lab.world.named(vm).state == OFF
    assert 3 in lab.world.named(vm).disks


def test_an_attach_that_fails_leaves_the_vm_as_it_was(lab: VBoxLab) -> None:
    vm, disk = lab.vm(), lab.ok("create_disk", 32, {}, None)
    before = replace(lab.world.named(vm))
    lab.world.fail_start = 1
    assert "terminated unexpectedly" in lab.fails("attach_disk", vm, disk)[1]
    assert replace(lab.world.named(vm), held=before.held) == before
    assert before.state == RUNNING
    assert lab.ok("get_disks", vm) == []
    assert not (lab.pool / f"{disk}.vmdk").exists()
    assert lab.ok("attach_disk", vm, disk)


def test_an_attach_that_is_killed_between_undefine_and_define(
    lab: VBoxLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm, disk, other = lab.vm(), lab.ok("create_disk", 32, {}, None), ""

    class Killed(BaseException):
        pass

    def killed(*_arguments: object, **_more: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Domains, "define", killed)
        patch.setattr(Undo, "__exit__", lambda *_: None)
        with pytest.raises(Killed):
            lab.send("attach_disk", vm, disk)
    assert not lab.world.machines
    assert lab.ok("has_vm", vm) is True
    other = lab.vm()  # whose creation looks for leftovers
    assert lab.ok("has_vm", vm) is True
    lab.ok("reboot_vm", vm)
    assert lab.world.named(vm).state == RUNNING
    assert lab.ok("attach_disk", vm, disk)
    assert 3 in lab.world.named(vm).disks
    lab.ok("delete_vm", vm)
    lab.ok("delete_vm", other)
    assert not lab.files()


def test_metadata_is_kept_beside_the_vm(lab: VBoxLab) -> None:
    vm = lab.vm()
    lab.ok("set_vm_metadata", vm, {"deployment": "one"})
    notes = json.loads((lab.folder / f"state/vms/{vm}/vm.json").read_text())
    assert notes["facts"]["metadata"] == {"deployment": "one"}
    assert notes["facts"]["complete"] is True
    lab.ok("delete_vm", vm)
    assert not (lab.folder / f"state/vms/{vm}").exists()


def test_a_vm_whose_notes_are_lost_can_only_be_deleted(lab: VBoxLab) -> None:
    vm, disk = lab.vm(), lab.ok("create_disk", 32, {}, None)
    (lab.folder / f"state/vms/{vm}/vm.json").unlink()
    assert "recreate the VM" in lab.fails("attach_disk", vm, disk)[1]
    lab.ok("delete_vm", vm)
    assert not lab.world.machines
    assert not lab.files()


def test_leftovers_of_a_killed_create_go_with_the_next(lab: VBoxLab) -> None:
    lab.pool.mkdir(parents=True)
    killed = "virtualbox-vm-0123456789abcdef"
    for part in (".root.part", ".data"):
        (lab.pool / f"{killed}{part}").touch()
    vm = lab.vm()
    assert not [name for name in lab.files() if not name.startswith(vm)]


# Refusals


def test_a_disk_that_a_vm_has_is_neither_grown_nor_copied(lab: VBoxLab) -> None:
    vm, disk = lab.vm(), lab.ok("create_disk", 32, {}, None)
    lab.ok("attach_disk", vm, disk)
    assert lab.fails("snapshot_disk", disk, {})[0] == "NotSupported"
    error_type, message = lab.fails("resize_disk", disk, 64)
    assert (error_type, vm in message) == ("CloudError", True)
    lab.ok("detach_disk", vm, disk)
    assert lab.ok("snapshot_disk", disk, {})


@pytest.mark.parametrize("uri", ["vbox+ssh://root@other/session", "vbox+tcp://other/system"])
def test_other_machines_are_not_supported(lab: VBoxLab, uri: str) -> None:
    lab.config = settings(lab.folder, uri=uri)
    error_type, message = lab.fails("create_stemcell", str(lab.image), {})
    assert error_type == "NotSupported"
    assert uri in message
    assert lab.fails("delete_vm", "virtualbox-vm-0123456789abcdef")[0] == "NotSupported"


def test_without_root_there_is_no_bridge(lab: VBoxLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtimes.libvirt import runtime

    monkeypatch.setattr(runtime, "is_unprivileged", lambda: True)
    error_type, message = lab.fails("create_vm", *lab.arguments())
    assert error_type == "NotSupported"
    assert "root" in message
    assert not lab.files()
