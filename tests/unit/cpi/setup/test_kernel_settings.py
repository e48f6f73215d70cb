"""Settings of the kernel on a host in a folder: raised, never lowered, and given back."""

import os
from pathlib import Path

import pytest

from cpi.setup import kernel_settings
from cpi.setup.kernel_settings import MODULES_FILE, SYSCTL_FILE
from cpi.setup.steps import Step, System

INSTANCES, PIDS, NONE = "fs.inotify.max_user_instances", "kernel.pid_max", "net.no.such"
WANTED = {INSTANCES: 1728, PIDS: 83968, NONE: 5}


@pytest.fixture
def system(tmp_path: Path) -> System:
    set_to(System(tmp_path), {INSTANCES: 128, PIDS: 4194304})
    return System(tmp_path)


def set_to(system: System, values: dict[str, int]) -> None:
    for key, value in values.items():
        path = system.path("/proc/sys/" + key.replace(".", "/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def value_of(system: System, key: str) -> int:
    return int(system.text("/proc/sys/" + key.replace(".", "/")))


def do(steps: list[Step]) -> list[str]:
    for step in steps:
        step.act()
    return [step.title for step in steps]


def raise_limits(system: System, wanted: dict[str, int] = WANTED) -> list[str]:
    return do(kernel_settings.settings(system, wanted))


def test_only_what_is_lower_is_raised(system: System) -> None:
    titles = raise_limits(system)
    assert titles == [f"raise {INSTANCES} from 128 to 1728", f"write {SYSCTL_FILE}"]
    assert value_of(system, INSTANCES) == 1728
    assert value_of(system, PIDS) == 4194304
    lines = system.text(SYSCTL_FILE).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [f"{INSTANCES} = 1728"]


def test_nothing_is_done_twice(system: System) -> None:
    raise_limits(system)
    assert raise_limits(system) == []


def test_after_a_restart_that_took_the_value_it_is_raised_again(system: System) -> None:
    raise_limits(system)
    set_to(system, {INSTANCES: 128})
    assert raise_limits(system) == [f"raise {INSTANCES} from 128 to 1728"]


def test_fewer_vms_lower_nothing(system: System) -> None:
    raise_limits(system)
    assert raise_limits(system, {**WANTED, INSTANCES: 500}) == []
    assert value_of(system, INSTANCES) == 1728


def test_more_vms_keep_the_former_value_for_the_undo(system: System) -> None:
    raise_limits(system)
    raise_limits(system, {**WANTED, INSTANCES: 8192})
    assert do(kernel_settings.undo(system)) == [
        f"set {INSTANCES} back from 8192 to 128",
        f"remove {SYSCTL_FILE}",
    ]
    assert value_of(system, INSTANCES) == 128
    assert not system.path(SYSCTL_FILE).exists()
    assert kernel_settings.undo(system) == []


def test_a_value_that_the_operator_has_set_since_stays(system: System) -> None:
    raise_limits(system)
    set_to(system, {INSTANCES: 9999})
    assert raise_limits(system, {**WANTED, PIDS: 1}) == []
    assert do(kernel_settings.undo(system)) == [f"remove {SYSCTL_FILE}"]
    assert value_of(system, INSTANCES) == 9999


def test_a_host_that_has_enough_gets_no_file(system: System) -> None:
    assert raise_limits(system, {PIDS: 32768}) == []
    assert not system.path(SYSCTL_FILE).exists()


def test_modules_that_are_not_built_in_are_loaded_with_the_host(system: System) -> None:
    folder = system.path(f"/lib/modules/{os.uname().release}")
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(
        "kernel/fs/overlayfs/overlay.ko.xz:\nkernel/net/netfilter/nf_conntrack.ko: kernel/a.ko\n"
        "kernel/net/bridge/br_netfilter.ko: kernel/net/bridge/bridge.ko\n"
    )
    system.path("/proc/modules").write_text("overlay 1 0 - Live 0x0\n")
    assert do(kernel_settings.modules(system)) == [
        "load the module nf_conntrack",
        f"write {MODULES_FILE}",
    ]
    lines = system.text(MODULES_FILE).splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["overlay", "nf_conntrack"]
    assert f"remove {MODULES_FILE}" in do(kernel_settings.undo(system))


def test_a_kernel_without_modules_needs_none(system: System) -> None:
    assert kernel_settings.modules(system) == []
