"""What a VM's init starts with, whether it comes up, and what it prints on its console."""

import errno
import gzip
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.hosts.private_docker import packed
from testing.patience import PATIENCE, wait_for
from tests.support.containerd.broken_calls import broken
from tests.support.containerd.machine import BOSH_CPI, VM, Machine, failing

NETWORKS = {"default": {"type": "dynamic"}}

MakeStemcell = Callable[[str], str]


@pytest.fixture
def of_script(machine: Machine, tmp_path: Path, clean: None) -> Iterator[MakeStemcell]:
    """Yield a function that imports a stemcell whose init is a shell script."""

    def make(script: str) -> str:
        data = io.BytesIO(packed("/bin/sh", "/bin/sleep"))
        with tarfile.open(fileobj=data, mode="a") as tar:
            info = tarfile.TarInfo("./usr/sbin/runsvdir-start")
            content = f"#!/bin/sh\n{script}\n".encode()
            info.mode, info.size = 0o755, len(content)
            tar.addfile(info, io.BytesIO(content))
        image = tmp_path / "image"
        image.write_bytes(gzip.compress(data.getvalue(), 1))
        made.append(str(machine.call("create_stemcell", str(image), {})))
        return made[-1]

    made: list[str] = []
    yield make
    machine.delete_all()
    for stemcell in made:
        machine.call("delete_stemcell", stemcell)


def test_init_and_commands_do_not_inherit_from_containerd(make_vm: Callable[..., VM]) -> None:
    """Its shim has one more than containerd's oom_score_adj, which is what would be inherited."""
    vm = make_vm()
    assert vm.sh("cat /proc/1/oom_score_adj") == "0"
    command = ("cat", "/proc/self/oom_score_adj")
    assert vm.machine.bosh_cpi("exec", vm.cid, "--", *command).stdout == "0\n"
    script = "ulimit -Sn; ulimit -Sc"
    limits = vm.machine.bosh_cpi("exec", vm.cid, "--", "sh", "-c", script).stdout.split()
    assert limits == ["1024", "0"]
    assert "1024" in vm.sh("grep 'open files' /proc/1/limits").split()


def test_one_service_may_have_all_tasks_of_the_vm(
    machine: Machine, systemd: str, clean: None
) -> None:
    vm = machine.create_vm(systemd, {"pids": 200})
    vm.wait_for_agent()
    assert vm.sh("systemctl show --property=TasksMax bosh-agent") == "TasksMax=200"


def test_an_init_that_ends_at_once_fails_create_vm(
    machine: Machine, of_script: MakeStemcell
) -> None:
    stemcell = of_script("echo 'Failed to allocate manager: Too many open files' >&2; exit 3")
    error = failing(lambda: machine.create_vm(stemcell))
    assert error.type == "VMCreationFailed"
    assert "/usr/sbin/runsvdir-start, ended with status 3 within a second" in error.message
    assert error.message.endswith("it printed: Failed to allocate manager: Too many open files")
    assert error.ok_to_retry is False
    assert not list((machine.host.state / "vms").iterdir())


def test_an_init_that_prints_nothing_and_is_killed(
    machine: Machine, of_script: MakeStemcell
) -> None:
    error = failing(lambda: machine.create_vm(of_script("sleep 0.2; exit 137")))
    assert "ended with status 137" in error.message
    assert "it printed: (nothing)" in error.message


def test_an_init_that_we_do_not_know_is_given_a_second(
    machine: Machine, of_script: MakeStemcell
) -> None:
    stemcell = of_script("echo strange; exec sleep 600")
    began = time.monotonic()
    vm = machine.create_vm(stemcell)
    assert time.monotonic() - began > 1
    assert machine.bosh_cpi("console", vm.cid).stdout == "strange\n"


def test_a_reboot_whose_init_ends_says_so_and_keeps_the_vm(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    vm.sh("printf '#!/bin/sh\\necho it is broken\\nexit 7\\n' > /usr/sbin/runsvdir-start")
    error = failing(lambda: vm.machine.call("reboot_vm", vm.cid))
    assert error.type == "CloudError"
    assert "ended with status 7" in error.message
    assert "it printed: it is broken" in error.message
    assert vm.machine.call("has_vm", vm.cid) is True
    assert vm.machine.bosh_cpi("console", vm.cid).stdout.endswith("it is broken\n")


def test_a_limit_of_the_host_that_is_reached_is_refused_by_name(
    machine: Machine, systemd: str, clean: None
) -> None:
    when = f"errno:{errno.EMFILE}"
    arguments: tuple[Any, ...] = ("a", systemd, {}, NETWORKS, [], {})
    printed = broken(machine, "cpi.host.syscalls:inotify_init", when, "create_vm", *arguments)
    error = json.loads(printed)["error"]
    assert error["type"] == "Bosh::Clouds::VMCreationFailed"
    assert error["ok_to_retry"] is False
    assert "fs.inotify.max_user_instances=" in error["message"]
    assert "sysctl -w fs.inotify.max_user_instances=" in error["message"]


def test_the_console_is_kept_over_a_reboot_and_without_containerd(
    other_machine: Machine, systemd_image: Path
) -> None:
    machine = other_machine
    stemcell = str(machine.call("create_stemcell", str(systemd_image), {}))
    vm = machine.create_vm(stemcell)

    def shows(text: str) -> bool:
        return text in machine.bosh_cpi("console", vm.cid).stdout

    wait_for(lambda: shows("Reached target multi-user.target"), "the end of the boot")
    vm.sh("echo before the reboot > /dev/console")
    machine.call("reboot_vm", vm.cid)
    wait_for(lambda: shows("Reached target multi-user.target"), "the end of the boot")
    assert shows("before the reboot\n")
    pid = vm.pid
    machine.host.kill_containerd()
    try:
        inside = ("nsenter", "--target", str(pid), "--mount", "sh", "-c")
        machine.host.run(*inside, "echo without containerd > /dev/console")
        log = machine.host.state / "vms" / vm.cid / "console.log"
        wait_for(lambda: "without containerd" in log.read_text(), "the line in the log")
    finally:
        machine.host.start_containerd()
    machine.delete_all()


def test_the_console_is_followed(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    words = ("--config", str(vm.machine.host.folder / "cpi.json"), "console", vm.cid, "--follow")
    argv = vm.machine.host.enter(str(BOSH_CPI), *words)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            for word in ("first", "second"):
                vm.sh(f"echo {word} > /dev/console")
                assert following.stdout.readline() == f"{word}\n"
        finally:
            following.terminate()
            following.wait(PATIENCE)
