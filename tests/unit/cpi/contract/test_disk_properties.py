"""Disk cloud_properties and what a VM's env says of disks."""

from typing import Any

import pytest

from cpi.contract.disk_properties import parse, wishes
from cpi.disks import mount_options
from cpi.errors import CloudError
from cpi.host import kernel
from cpi.model import DiskProperties, DiskWishes


def test_nothing_asked_for() -> None:
    assert parse({}) == DiskProperties(None, "default", False, {})
    assert wishes({"bosh": {}}) == DiskWishes(None, ())


def test_everything_asked_for() -> None:
    given = {"filesystem": "xfs", "store": "fast-1", "preallocate": True, "name": "volume"}
    assert parse(given) == DiskProperties("xfs", "fast-1", True, given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"typ": "ssd", "store": "fast"}, "'typ'"),
        ({"filesystem": "btrfs"}, "ext4, xfs"),
        ({"filesystem": 4}, "ext4, xfs"),
        ({"store": "../x"}, "'../x'"),
        ({"store": ""}, "disk store"),
        ({"store": ["a"]}, "disk store"),
        ({"preallocate": "yes"}, "true or false"),
        ({"preallocate": 1}, "true or false"),
    ],
)
def test_wrong_properties_are_named(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(CloudError) as caught:
        parse(given)
    assert reason in caught.value.message


def test_env_of_a_vm() -> None:
    options = ["noatime,discard", "commit=30"]
    env = {"persistent_disk_fs": "xfs", "persistent_disk_mount_options": options}
    assert wishes(env) == DiskWishes("xfs", ("noatime", "discard", "commit=30"))
    assert wishes({"persistent_disk_fs": ""}) == DiskWishes(None, ())


@pytest.mark.parametrize(
    "option",
    ["loop", "offset=0", "ro", "remount", "bind", "x-mount.mkdir", "noatime;reboot", "data=x",
     "usrquota=/etc/passwd", "commit=1e9", "journal_dev=0x700", "errors=panic", "commit=30\n"],
)  # fmt: skip
def test_other_mount_options_are_refused_by_name(option: str) -> None:
    with pytest.raises(CloudError, match="no mount option"):
        wishes({"persistent_disk_mount_options": [option]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("noatime", " must be a list, got a string"),
        ("", " must be a list, got a string"),
        ({"a": 1}, " must be a list, got an object"),
        ([1], "[0] must be a string, got 1"),
        ([None], "[0] must be a string, got null"),
    ],
)
def test_mount_options_are_a_list_of_strings(value: object, message: str) -> None:
    with pytest.raises(CloudError) as raised:
        wishes({"persistent_disk_mount_options": value})
    assert raised.value.message == f"env.persistent_disk_mount_options{message}"


def test_mount_options_as_the_kernel_takes_them() -> None:
    flags, text = mount_options.arguments(("noatime", "discard", "nosuid", "commit=30", "rw"))
    assert flags == kernel.MS_NOATIME | kernel.MS_NOSUID
    assert text == ("discard", "commit=30")
