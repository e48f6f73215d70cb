"""The contract of every runtime, as tests that its test class inherits.

A runtime's test class derives from RuntimeContract and gives it fixtures:

- `cpi`: a callable `cpi(method, *arguments, api_version=2, context=None)` that returns the response
  of one call, sent as JSON. Its configuration makes the runtime under test the default one.
- `stemcell`: the path of an `image` file to import.
- `metadata_of`: a callable that returns the metadata of a VM or disk as operators see it.

Optional methods must work if the runtime supports them, and raise NotSupported if not.
`make_network` and `vm_properties` may be overridden; each VM gets a fresh `make_network()`. VMs
and disks are deleted after each test, the stemcell is not: importing it again is cheap.
"""

import ipaddress
from pathlib import Path

import pytest

from tests.support.contract_lab import ContractBase, Lab, MetadataOf
from tests.support.input_contract import InputContract

ODD_NAMES = ("../../etc/passwd", "a/../b", "<vm>", "$(reboot)", "a b", "a;b", "a\nb", "'", "", "é")


class _StemcellContract(ContractBase):
    """`info` and stemcells."""

    def test_info_names_formats_and_version(self, lab: Lab) -> None:
        info = lab.ok("info")
        assert info["api_version"] == 3
        assert info["stemcell_formats"]
        assert all(isinstance(name, str) for name in info["stemcell_formats"])

    def test_create_stemcell_is_idempotent(self, lab: Lab) -> None:
        assert lab.stemcell() == lab.stemcell()

    @pytest.mark.parametrize("api_version", [1, 2, 3])
    def test_stemcell_takes_tags_in_every_version(self, lab: Lab, api_version: int) -> None:
        tags = {"tags": {"owner": "test"}}
        cid = lab.ok("create_stemcell", lab.image, {}, tags, api_version=api_version)
        assert cid == lab.stemcell()

    def test_deleted_stemcell_is_gone_and_comes_back(self, lab: Lab) -> None:
        cid = lab.stemcell()
        assert lab.ok("delete_stemcell", cid) is None
        assert lab.ok("delete_stemcell", cid) is None
        assert lab.fails("create_vm", *lab.vm_arguments(cid))[0] == "StemcellNotFound"
        assert lab.stemcell() == cid
        assert lab.vm()

    def test_missing_image_is_named(self, lab: Lab, tmp_path: Path) -> None:
        error, message = lab.fails("create_stemcell", str(tmp_path / "gone"), {})
        assert error == "CloudError"
        assert str(tmp_path / "gone") in message

    def test_garbage_instead_of_an_image_is_refused(self, lab: Lab, tmp_path: Path) -> None:
        image = tmp_path / "image"
        image.write_bytes(b"this is no stemcell")
        error, message = lab.fails("create_stemcell", str(image), {})
        assert error == "CloudError"
        assert str(image) in message

    @pytest.mark.parametrize("odd", ODD_NAMES)
    def test_odd_stemcell_cids_are_not_found(self, lab: Lab, odd: str) -> None:
        assert lab.fails("delete_stemcell", odd)[0] == "StemcellNotFound"
        assert lab.fails("create_vm", *lab.vm_arguments(odd))[0] == "StemcellNotFound"


class _VMContract(ContractBase):
    """VMs."""

    def test_vm_lives_and_dies(self, lab: Lab) -> None:
        vm = lab.vm()
        assert lab.ok("has_vm", vm) is True
        assert lab.ok("get_disks", vm) == []
        assert lab.ok("delete_vm", vm) is None
        assert lab.ok("has_vm", vm) is False
        assert lab.ok("delete_vm", vm) is None

    def test_version_1_returns_only_the_cid(self, lab: Lab) -> None:
        assert lab.ok("has_vm", lab.vm(api_version=1)) is True

    @pytest.mark.parametrize("api_version", [2, 3])
    def test_later_versions_return_networks_too(self, lab: Lab, api_version: int) -> None:
        cid, networks = lab.create_vm(lab.stemcell(), api_version=api_version)
        assert lab.ok("has_vm", cid) is True
        assert set(networks) == set(lab.networks)
        for name, network in networks.items():
            ip = ipaddress.ip_address(network["ip"])
            assert ip in ipaddress.ip_network(f"{ip}/{network['prefix']}", strict=False)
            assert str(ip) == lab.networks[name].get("ip", str(ip))
            assert network["netmask"]
            assert network["preconfigured"] is self.preconfigured

    def test_two_vms_differ(self, lab: Lab) -> None:
        stemcell = lab.stemcell()
        first, networks = lab.create_vm(stemcell)
        second, others = lab.create_vm(stemcell)
        assert first != second
        mine = {network["ip"] for network in networks.values()}
        assert mine.isdisjoint(network["ip"] for network in others.values())

    def test_calculated_properties_make_a_vm(self, lab: Lab) -> None:
        wanted = {"cpu": 1, "ram": 256, "ephemeral_disk_size": 64}
        properties = lab.ok("calculate_vm_cloud_properties", wanted)
        assert lab.ok("has_vm", lab.vm({**lab.properties, **properties})) is True

    def test_metadata_replaces_metadata(self, lab: Lab, metadata_of: MetadataOf) -> None:
        vm = lab.vm()
        metadata = {"deployment": "one", "index": 0, "name": "job/<&>", "note": None}
        assert lab.ok("set_vm_metadata", vm, metadata) is None
        shown = metadata_of(vm)
        assert shown.pop("note", "") == ""  # containerd keeps no empty label
        assert shown == {"deployment": "one", "index": "0", "name": "job/<&>"}
        assert lab.ok("set_vm_metadata", vm, {"deployment": "two", "long": "x" * 5000}) is None
        shown = metadata_of(vm)
        assert set(shown.pop("long")) <= set("x…")  # as much of it as there is room for
        assert shown == {"deployment": "two"}
        assert lab.ok("set_vm_metadata", vm, {}) is None
        assert metadata_of(vm) == {}

    def test_reboot_keeps_vm_and_disks(self, lab: Lab) -> None:
        vm = lab.vm()
        disk = lab.disk(vm)
        lab.ok("attach_disk", vm, disk)
        assert lab.ok("reboot_vm", vm) is None
        assert lab.ok("has_vm", vm) is True
        assert lab.ok("get_disks", vm) == [disk]

    def test_unknown_vms(self, lab: Lab) -> None:
        vm = lab.unknown("vm")
        disk = lab.disk()
        assert lab.ok("has_vm", vm) is False
        assert lab.ok("delete_vm", vm) is None
        calls: dict[str, list[object]] = {
            "reboot_vm": [vm],
            "set_vm_metadata": [vm, {}],
            "get_disks": [vm],
            "attach_disk": [vm, disk],
            "detach_disk": [vm, disk],
        }
        for method, arguments in calls.items():
            error, message = lab.fails(method, *arguments)
            assert (method, error) == (method, "VMNotFound")
            assert vm in message

    def test_unknown_stemcell(self, lab: Lab) -> None:
        unknown = lab.unknown("stemcell")
        error, message = lab.fails("create_vm", *lab.vm_arguments(unknown))
        assert error == "StemcellNotFound"
        assert unknown in message

    @pytest.mark.parametrize("odd", ODD_NAMES)
    def test_odd_vm_cids_are_not_found(self, lab: Lab, odd: str) -> None:
        for method in ("has_vm", "delete_vm", "reboot_vm", "get_disks"):
            assert (method, lab.fails(method, odd)[0]) == (method, "VMNotFound")

    def test_a_cid_of_another_type_is_not_found(self, lab: Lab) -> None:
        assert lab.fails("delete_vm", lab.disk())[0] == "VMNotFound"
        assert lab.fails("delete_disk", lab.stemcell())[0] == "DiskNotFound"

    def test_vms_of_other_cpis_are_not_found(self, lab: Lab) -> None:
        assert lab.ok("has_vm", "c-0d5b2ad6-6c9e-4a44-9ad2-2d5fcd2ed6e7") is False
        assert lab.ok("has_disk", "vol-0123456789abcdef0") is False


class _DiskContract(ContractBase):
    """Persistent disks."""

    def test_disk_lives_and_dies(self, lab: Lab) -> None:
        disk = lab.disk()
        assert lab.ok("has_disk", disk) is True
        assert lab.ok("delete_disk", disk) is None
        assert lab.ok("has_disk", disk) is False
        assert lab.fails("delete_disk", disk)[0] == "DiskNotFound"

    def test_attach_and_detach(self, lab: Lab) -> None:
        vm = lab.vm()
        disk = lab.disk(vm)
        hint = lab.ok("attach_disk", vm, disk)
        assert hint
        assert isinstance(hint, (str, dict))
        assert lab.ok("attach_disk", vm, disk) == hint
        assert lab.ok("get_disks", vm) == [disk]
        error, message = lab.fails("delete_disk", disk)
        assert error == "CloudError"
        assert disk in message
        assert lab.ok("has_disk", disk) is True
        assert lab.ok("detach_disk", vm, disk) is None
        assert lab.ok("get_disks", vm) == []
        assert lab.fails("detach_disk", vm, disk)[0] == "DiskNotAttached"
        assert lab.ok("delete_disk", disk) is None

    def test_version_1_attach_returns_nothing(self, lab: Lab) -> None:
        vm = lab.vm(api_version=1)
        disk = lab.disk(vm)
        assert lab.ok("attach_disk", vm, disk, api_version=1) is None
        assert lab.ok("get_disks", vm, api_version=1) == [disk]

    def test_several_disks_at_once(self, lab: Lab) -> None:
        vm = lab.vm()
        disks = [lab.disk(vm) for _ in range(3)]
        hints = [lab.ok("attach_disk", vm, disk) for disk in disks]
        assert len({str(hint) for hint in hints}) == 3
        assert sorted(lab.ok("get_disks", vm)) == sorted(disks)
        lab.ok("detach_disk", vm, disks[1])
        assert sorted(lab.ok("get_disks", vm)) == sorted([disks[0], disks[2]])

    def test_one_vm_at_a_time_has_a_disk(self, lab: Lab) -> None:
        first = lab.vm()
        second = lab.vm()
        disk = lab.disk(first)
        lab.ok("attach_disk", first, disk)
        error, message = lab.fails("attach_disk", second, disk)
        assert error == "CloudError"
        assert first in message
        assert lab.fails("detach_disk", second, disk)[0] == "DiskNotAttached"
        lab.ok("detach_disk", first, disk)
        assert lab.ok("attach_disk", second, disk)
        assert lab.ok("get_disks", second) == [disk]

    def test_deleting_the_vm_releases_its_disks_and_keeps_them(self, lab: Lab) -> None:
        first = lab.vm()
        disk = lab.disk(first)
        lab.ok("attach_disk", first, disk)
        lab.ok("delete_vm", first)
        assert lab.ok("has_disk", disk) is True
        second = lab.vm()
        assert lab.ok("attach_disk", second, disk)

    def test_unknown_disks(self, lab: Lab) -> None:
        vm = lab.vm()
        disk = lab.unknown("disk")
        assert lab.ok("has_disk", disk) is False
        calls: dict[str, list[object]] = {
            "delete_disk": [disk],
            "attach_disk": [vm, disk],
            "detach_disk": [vm, disk],
        }
        for method, arguments in calls.items():
            error, message = lab.fails(method, *arguments)
            assert (method, error) == (method, "DiskNotFound")
            assert disk in message

    @pytest.mark.parametrize("odd", ODD_NAMES)
    def test_odd_disk_cids_are_not_found(self, lab: Lab, odd: str) -> None:
        for method in ("has_disk", "delete_disk"):
            assert (method, lab.fails(method, odd)[0]) == (method, "DiskNotFound")
        assert lab.fails("attach_disk", lab.unknown("vm"), odd)[0] == "DiskNotFound"

    def test_a_detached_disk_grows_and_never_shrinks(self, lab: Lab) -> None:
        vm, disk = lab.vm(), lab.disk()
        if not lab.supports("resize_disk"):
            lab.refuses("resize_disk", disk, 64)
            return
        assert lab.ok("resize_disk", disk, 64) is None
        assert lab.ok("resize_disk", disk, 64) is None
        lab.refuses("resize_disk", disk, 32)
        lab.ok("attach_disk", vm, disk)
        if lab.supports("grow_attached_disk"):
            assert lab.ok("resize_disk", disk, 96) is None
        else:
            error, message = lab.fails("resize_disk", disk, 128)
            assert error == "CloudError"
            assert vm in message
        lab.ok("detach_disk", vm, disk)
        assert lab.ok("resize_disk", disk, 128) is None
        assert lab.ok("attach_disk", vm, disk)

    def test_update_changes_a_detached_disk_or_is_not_supported(self, lab: Lab) -> None:
        vm, disk = lab.vm(), lab.disk()
        if not lab.supports("update_disk"):
            lab.refuses("update_disk", disk, 64, {})
            return
        lab.ok("attach_disk", vm, disk)
        error, message = lab.fails("update_disk", disk, 64, {})
        assert error == "CloudError"
        assert vm in message
        lab.ok("detach_disk", vm, disk)
        disk = lab.adopt(lab.ok("update_disk", disk, 64, {}) or disk)
        lab.refuses("update_disk", disk, 32, {})
        assert lab.ok("attach_disk", vm, disk)

    def test_snapshots_outlive_their_disk_or_are_not_supported(self, lab: Lab) -> None:
        vm, disk = lab.vm(), lab.disk()
        metadata = {"deployment": "one", "index": 0}
        if not lab.supports("snapshot_disk"):
            lab.refuses("snapshot_disk", disk, metadata)
            return
        snapshots = [lab.ok("snapshot_disk", disk, metadata)]
        lab.ok("attach_disk", vm, disk)
        if lab.supports("snapshot_attached_disk"):
            snapshots.append(lab.ok("snapshot_disk", disk, {}))
        else:
            lab.refuses("snapshot_disk", disk, {})
        lab.ok("detach_disk", vm, disk)
        snapshots.append(lab.ok("snapshot_disk", disk, {}))
        assert len(set(snapshots)) == len(snapshots)
        lab.ok("delete_disk", disk)
        for snapshot in (*snapshots, snapshots[0]):
            assert lab.ok("delete_snapshot", snapshot) is None

    def test_metadata_of_a_disk_replaces_metadata(self, lab: Lab, metadata_of: MetadataOf) -> None:
        disk = lab.disk()
        if not lab.supports("set_disk_metadata"):
            lab.refuses("set_disk_metadata", disk, {})
            return
        assert lab.ok("set_disk_metadata", disk, {"deployment": "one", "index": 0}) is None
        assert metadata_of(disk) == {"deployment": "one", "index": "0"}
        assert lab.ok("set_disk_metadata", disk, {"deployment": "two"}) is None
        assert metadata_of(disk) == {"deployment": "two"}
        assert lab.ok("set_disk_metadata", disk, {}) is None
        assert metadata_of(disk) == {}

    def test_mistyped_disk_properties_are_refused_by_name(self, lab: Lab) -> None:
        error, message = lab.fails("create_disk", 32, {"stroe": "ssd"}, None)
        assert error == "CloudError"
        assert "'stroe' (did you mean store?)" in message

    def test_changes_of_unknown_disks(self, lab: Lab) -> None:
        disk = lab.unknown("disk")
        calls: dict[str, list[object]] = {
            "resize_disk": [disk, 64],
            "set_disk_metadata": [disk, {}],
            "update_disk": [disk, 64, {}],
            "snapshot_disk": [disk, {}],
        }
        for method, arguments in calls.items():
            error = "DiskNotFound" if lab.supports(method) else "NotSupported"
            assert (method, lab.fails(method, *arguments)[0]) == (method, error)
        if lab.supports("delete_snapshot"):
            assert lab.ok("delete_snapshot", lab.unknown("snapshot")) is None
        else:
            lab.refuses("delete_snapshot", lab.unknown("snapshot"))

    def test_managed_networks_are_not_supported(self, lab: Lab) -> None:
        assert not lab.supports("create_network"), "the contract has no test of them yet"
        lab.refuses("create_network", {"type": "manual"})
        lab.refuses("delete_network", "network")


class RuntimeContract(_StemcellContract, _VMContract, _DiskContract, InputContract):
    """See the module."""
