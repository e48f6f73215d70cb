"""VMs on a real containerd: their content after the boot, and that nothing is leaked."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from testing.patience import wait_for
from tests.support.containerd.machine import VM, CallFailed, Machine, failing

SETTINGS = "/var/vcap/bosh/warden-cpi-agent-env.json"


def test_systemd_boots_without_a_failed_unit(machine: Machine, systemd: str, clean: None) -> None:
    vm = machine.create_vm(systemd)
    vm.wait_for_agent()
    assert vm.sh("systemctl is-system-running --wait") == "running"
    assert vm.sh("systemctl --failed --no-legend") == ""
    assert vm.sh("cat /proc/1/comm") == "systemd"


def test_systemd_has_its_own_cgroups_and_not_the_hosts(
    machine: Machine, systemd: str, clean: None
) -> None:
    vm = machine.create_vm(systemd)
    vm.wait_for_agent()
    assert "bosh-cpi-host" not in vm.sh("cat /proc/1/cgroup")
    seen = vm.sh("find /sys/fs/cgroup -maxdepth 3 -name 'bosh-cpi-host*'")
    assert seen == ""


def test_every_systemd_vm_has_its_own_machine_id(
    machine: Machine, systemd: str, clean: None
) -> None:
    first, second = machine.create_vm(systemd), machine.create_vm(systemd)
    ids = {vm.sh("cat /etc/machine-id") for vm in (first, second)}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", machine_id) for machine_id in ids)


def test_runit_boots(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    vm.wait_for_agent()
    assert vm.agent("ping") == "pong"
    assert "runsvdir" in vm.sh("cat /proc/1/cmdline | tr '\\0' ' '")


def test_settings_are_complete_and_secret(make_vm: Callable[..., VM], machine: Machine) -> None:
    env = {"bosh": {"password": "s3cret-of-env"}, "persistent_disk_fs": "ext4"}
    vm = make_vm(env=env, agent_id="agent-of-settings")
    assert vm.sh(f"stat -c '%a %u %g' {SETTINGS}") == "600 0 0"
    settings = json.loads(vm.sh(f"cat {SETTINGS}"))
    assert settings["agent_id"] == "agent-of-settings"
    assert settings["vm"]["name"] == vm.cid
    assert settings["env"] == env
    network = settings["networks"]["default"]
    assert network["preconfigured"] is True
    assert network["ip"] == vm.ip
    assert network["mac"] == vm.sh("cat /sys/class/net/eth0/address")
    assert "s3cret" not in machine.ctr("containers", "info", vm.cid)


def test_secrets_are_in_no_log(machine: Machine, stemcell: str, clean: None) -> None:
    env = {"bosh": {"mbus": {"cert": {"private_key": "s3cret-key"}}}}
    response = machine.host.cpi("create_vm", "a", stemcell, {}, {}, [], env)
    machine.vms.append(VM(machine, response["result"][0], {}))
    assert "s3cret" not in json.dumps(response)


def test_names_and_hosts_file(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(agent_id="0c0ffee0-1111-4222-8333-444455556666")
    assert vm.sh("hostname") == "0c0ffee0-1111-4222-8333-444455556666"
    assert "0c0ffee0-1111" in vm.sh("cat /etc/hostname")
    vm.sh("echo 127.0.0.1 new > /etc/hosts.new && mv /etc/hosts.new /etc/hosts")
    assert vm.sh("cat /etc/hosts") == "127.0.0.1 new"


def test_an_agent_id_that_is_no_host_name_does_no_harm(make_vm: Callable[..., VM]) -> None:
    vm = make_vm(agent_id="../../etc/x; reboot <&>")
    assert vm.sh("hostname").startswith("vm-")


def test_ephemeral_folder_is_a_mount_of_a_real_file_system(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    filesystem = vm.sh("stat -f -c %T /var/vcap/data")
    assert filesystem not in ("overlayfs", "tmpfs")
    assert vm.sh("mountpoint -q /var/vcap/data && echo yes") == "yes"
    vm.sh("touch /var/vcap/data/x")


def test_least_privilege_by_default(machine: Machine, make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    rows = json.loads(machine.bosh_cpi("vms", "--json").stdout)
    [row] = [row for row in rows if row["cid"] == vm.cid]
    inside, outside, count = vm.sh("cat /proc/1/uid_map").split()
    assert (inside, count) == ("0", "65536")
    assert (row["isolation"], row["first_id"]) == ("user namespace", int(outside))
    # A block device of the host cannot be opened by any node made for it.
    open_it = "{ mknod /root/disk b 7 0 && head -c1 /root/disk; } 2>&1"
    assert "ermi" in vm.sh(open_it, check=False)


def test_privileged_is_possible_and_can_be_forbidden(
    machine: Machine, make_vm: Callable[..., VM], stemcell: str
) -> None:
    vm = make_vm(properties={"privileged": True})
    bounding = vm.sh("grep CapBnd /proc/1/status").split()[1]
    server = machine.host.run("sh", "-c", "grep CapEff /proc/$(pidof containerd)/status").stdout
    assert int(bounding, 16) == int(server.split()[1], 16)

    containerd = {**machine.host.config()["containerd"], "allow_privileged": False}
    config = machine.host.write_config("forbidding.json", containerd=containerd)
    arguments: tuple[Any, ...] = ("a", stemcell, {"privileged": True}, {}, [], {})
    error = failing(lambda: machine.call("create_vm", *arguments, config=config))
    assert error.type == "NotSupported"
    assert "allow_privileged" in error.message


def test_reboot_keeps_root_file_system_and_address(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    vm.wait_for_agent()
    before = vm.pid
    vm.sh("echo kept > /root/file; echo kept > /var/vcap/data/file")
    vm.machine.call("reboot_vm", vm.cid)
    vm.wait_for_agent()
    assert vm.pid != before
    assert vm.sh("cat /root/file /var/vcap/data/file") == "kept\nkept"
    assert vm.ip in vm.sh("ip -4 -o address show eth0")


def test_reboot_starts_a_vm_whose_init_has_died(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    machine = vm.machine
    machine.ctr("tasks", "kill", "--signal", "SIGKILL", vm.cid)
    wait_for(lambda: "STOPPED" in machine.ctr("tasks", "ls"), "the task's end")
    assert machine.call("has_vm", vm.cid) is True
    machine.call("reboot_vm", vm.cid)
    vm.wait_for_agent()


def test_metadata_is_visible_as_labels_and_replaced(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    vm.machine.call("set_vm_metadata", vm.cid, {"deployment": "d", "job": "j", "long": "ü" * 5000})
    vm.machine.call("set_vm_metadata", vm.cid, {"deployment": "d2"})
    labels = json.loads(vm.machine.ctr("containers", "info", vm.cid))["Labels"]
    assert labels["bosh.metadata/deployment"] == "d2"
    assert "bosh.metadata/job" not in labels
    assert labels["bosh.agent_id"] == "agent"


def test_delete_is_idempotent_and_works_without_a_task(make_vm: Callable[..., VM]) -> None:
    vm = make_vm()
    vm.machine.ctr("tasks", "kill", "--signal", "SIGKILL", vm.cid)
    wait_for(lambda: "STOPPED" in vm.machine.ctr("tasks", "ls"), "the task's end")
    vm.delete()
    vm.delete()
    assert vm.machine.call("has_vm", vm.cid) is False


def test_unknown_stemcell_is_named(machine: Machine, clean: None) -> None:
    missing = "containerd-stemcell-" + "0" * 40
    with pytest.raises(CallFailed) as caught:
        machine.create_vm(missing)
    assert caught.value.type == "StemcellNotFound"
    assert missing in caught.value.message


def test_containerd_that_does_not_answer_is_named(machine: Machine) -> None:
    containerd = {**machine.host.config()["containerd"], "address": "/nowhere/containerd.sock"}
    config = machine.host.write_config("nowhere.json", containerd=containerd)
    vm = "containerd-vm-" + "0" * 32
    error = failing(lambda: machine.call("has_vm", vm, config=config))
    assert "/nowhere/containerd.sock" in error.message
    assert error.ok_to_retry is True
