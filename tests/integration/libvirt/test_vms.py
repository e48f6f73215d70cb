"""VMs that boot: their settings, networks, disks, console, life and end."""

import json
import re
from collections.abc import Callable

import pytest

from testing.patience import PATIENCE, wait_for
from tests.support.containerd.machine import CallFailed, failing
from tests.support.libvirt.kvm_machine import Guest, KvmMachine

MANUAL = {
    "default": {
        "type": "manual",
        "ip": "10.250.0.10",
        "netmask": "255.255.255.0",
        "gateway": "10.250.0.1",
        "dns": ["10.250.0.1"],
        "default": ["dns", "gateway"],
        "cloud_properties": {"bridge": "bosh1"},
    },
    "second": {
        "type": "manual",
        "ip": "10.251.0.10",
        "netmask": "255.255.255.0",
        "cloud_properties": {"bridge": "bosh2"},
    },
    "six": {"type": "manual", "ip": "fd00:250::10", "netmask": "ffff:ffff:ffff:ffff::",
            "cloud_properties": {"bridge": "bosh1"}},
}  # fmt: skip

Make = Callable[..., Guest]


def test_a_vm_has_its_settings_networks_and_limits(machine: KvmMachine, make_guest: Make) -> None:
    env = {"bosh": {"group": "g-<&>'\"../x"}}
    properties = {"cpu": 2, "memory": 224, "ephemeral_disk": 96, "root_disk": 512}
    guest = make_guest(networks=MANUAL, env=env, properties=properties, agent_id="agent-7")
    guest.wait_for_agent()
    state = guest.agent("get_state")
    assert (state["agent_id"], state["vm"]) == ("agent-7", {"name": guest.cid})
    assert json.loads(guest.sh("cat /var/vcap/bosh/settings.json"))["env"] == env
    shown = guest.sh("ip address")
    macs = {network["mac"] for network in guest.networks.values()}
    assert set(re.findall(r"link/ether (\S+)", shown)) == macs
    own = set(re.findall(r"inet6? (\S+)/\d+ .*scope global", shown))
    assert own == {"10.250.0.10", "10.251.0.10", "fd00:250::10"}
    assert "default via 10.250.0.1" in guest.sh("ip route")
    assert guest.sh("nproc") == "2"
    assert 150_000 < int(guest.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")) < 224 * 1024
    assert "/var/vcap/data" in guest.sh("mount")
    assert int(guest.sh("cat /sys/block/vda/size")) == 512 * 2048
    assert int(guest.sh("cat /sys/block/vdb/size")) == 96 * 2048


def test_the_director_learns_the_address_on_a_dynamic_network(
    machine: KvmMachine, make_guest: Make
) -> None:
    guest = make_guest()
    guest.wait_for_agent()
    guest.agent("apply", {"networks": {"default": {"type": "dynamic"}}})
    network = guest.agent("get_state")["networks"]["default"]
    assert (network["type"], network["ip"]) == ("dynamic", guest.ip)
    assert network["netmask"] == "255.255.0.0"


def test_a_reboot_keeps_addresses_and_disks(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    guest.wait_for_agent()
    guest.sh("echo kept > /var/vcap/data/mark; echo kept > /root/mark; sync")
    boot = guest.sh("cat /proc/sys/kernel/random/boot_id")
    machine.call("reboot_vm", guest.cid)
    guest.wait_for_agent()
    assert guest.sh("cat /proc/sys/kernel/random/boot_id") != boot
    assert guest.sh("cat /var/vcap/data/mark /root/mark") == "kept\nkept"


def test_the_console_shows_what_the_vm_printed(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    guest.wait_for_agent()
    output = machine.bosh_cpi("console", guest.cid).stdout
    assert "listening on port" in output
    assert output.endswith(machine.bosh_cpi("console", guest.cid, "--lines", "1").stdout)
    gone = machine.bosh_cpi("console", "kvm-vm-0000000000000000", check=False)
    assert gone.returncode == 1
    assert "kvm-vm-0000000000000000" in gone.stderr


def test_a_long_console_is_kept_in_pieces(machine: KvmMachine, make_guest: Make) -> None:
    """virtlogd starts a new file at 2 MiB; the old one is shown too, and deleted with the VM."""
    guest = make_guest()
    guest.wait_for_agent()
    guest.sh("yes 'a line of the console' | head -c 2300000 > /dev/ttyS0; echo END > /dev/ttyS0")
    output = wait_for(lambda: _whole_console(machine, guest), "all of the console")
    assert len([name for name in machine.volumes() if f"{guest.cid}.console" in name]) > 1
    assert output.count("a line of the console") > 90_000


def _whole_console(machine: KvmMachine, guest: Guest) -> str:
    output = machine.bosh_cpi("console", guest.cid).stdout
    return output if "END" in output[-2000:] else ""


def test_deleting_shuts_the_system_down_first(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    disk = machine.create_disk(128, vm=guest.cid)
    guest.wait_for_agent()
    hint = machine.call("attach_disk", guest.cid, disk)
    guest.agent("add_persistent_disk", disk, hint)
    guest.agent("mount_disk", disk)
    guest.sh("dd if=/dev/zero bs=1M count=8 | tr '\\0' x > /var/vcap/store/unsynced")
    machine.configure({"shutdown_timeout": PATIENCE})
    machine.call("delete_vm", guest.cid)
    machine.configure()
    # What was only in the system's memory has been written, and the file system is clean.
    machine.bosh_cpi("disk", "fsck", disk)
    other = make_guest()
    other.wait_for_agent()
    hint = machine.call("attach_disk", other.cid, disk)
    other.agent("add_persistent_disk", disk, hint)
    other.agent("mount_disk", disk)
    assert other.sh("tr -d x < /var/vcap/store/unsynced | wc -c") == "0"
    assert other.sh("stat -c %s /var/vcap/store/unsynced") == str(8 << 20)


def test_metadata_is_in_the_domain(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    machine.call("set_vm_metadata", guest.cid, {"job": "a<b>&'\"", "index": 3, "odd": "\x01é"})
    document = machine.virsh("dumpxml", guest.cid)
    assert "a&lt;b&gt;&amp;" in document
    assert machine.virsh("dumpxml", "--inactive", guest.cid).count("a&lt;b&gt;&amp;") == 1
    machine.call("set_vm_metadata", guest.cid, {"job": "other"})
    assert "a&lt;b&gt;" not in machine.virsh("dumpxml", guest.cid)


@pytest.mark.parametrize(
    ("properties", "word"),
    [
        ({"firmware": "uefi"}, "OVMF"),
        ({"machine": "q35"}, "pc-q35"),
        ({"cpu_model": "Nehalem"}, "Nehalem"),
        ({"cpu": 0.5}, "<global_quota>50000</global_quota>"),
    ],
)
def test_machines_of_other_types_start(
    machine: KvmMachine, make_guest: Make, properties: dict[str, object], word: str
) -> None:
    guest = make_guest(properties=properties)
    assert word in machine.virsh("dumpxml", guest.cid)
    if "firmware" not in properties:  # the tiny stemcell boots only by BIOS
        guest.wait_for_agent()


def test_an_unknown_machine_type_is_refused_with_libvirts_message(
    machine: KvmMachine, make_guest: Make
) -> None:
    error = failing(lambda: make_guest(properties={"machine": "no-such"}))
    assert "no-such" in error.message


def test_vms_are_restored_with_the_host(machine: KvmMachine, make_guest: Make) -> None:
    """Also one of before an upgrade, which libvirt starts on its bridge; restore does the rest."""
    networks = {
        "default": {**MANUAL["default"], "ip": "10.252.0.10", "gateway": "10.252.0.1", "dns": [],
                    "cloud_properties": {"bridge": "bosh9"}},
        "six": {**MANUAL["six"], "ip": "fd00:252::10", "cloud_properties": {"bridge": "bosh9"}},
    }  # fmt: skip
    guest = make_guest(networks=networks, properties={"ports": ["16869:6868"]})
    guest.wait_for_agent()
    machine.virsh("autostart", guest.cid)
    before = machine.leftovers()
    _restart_host(machine, guest)
    wait_for(lambda: "running" in machine.virsh("list"), "the VM to run")
    guest.wait_for_agent()
    boot = guest.sh("cat /proc/sys/kernel/random/boot_id")
    assert not machine.can_connect("10.252.0.1", 16869)
    assert _restored(machine) == {"restored": [guest.cid], "unchanged": [], "failed": {}}
    machine.wait_for_port("10.252.0.1", 16869)
    assert guest.sh("cat /proc/sys/kernel/random/boot_id") == boot, "the guest was left running"
    after = machine.leftovers()
    for changed in ("interfaces", "taps", "qemu"):
        assert len(after.pop(changed)) == len(before.pop(changed))
    assert after == before
    again = machine.leftovers()
    assert _restored(machine)["unchanged"] == [guest.cid]
    assert machine.leftovers() == again


def test_restore_starts_a_vm_that_the_host_did_not(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    machine.virsh("destroy", guest.cid)
    assert _restored(machine)["unchanged"] == [guest.cid], "it ended by itself"
    _restart_host(machine)
    assert "running" not in machine.virsh("list"), "it would send unfiltered"
    assert _restored(machine)["restored"] == [guest.cid]
    assert "running" in machine.virsh("list")


def _restart_host(machine: KvmMachine, *running: Guest) -> None:
    """Remove what a restart of the host removes of libvirt's VMs; start libvirt again."""
    machine.libvirt.stop()
    if running:
        machine.libvirt.kill_guests()
    for pin in (machine.host.folder / "run/netns").iterdir():
        machine.host.run("umount", str(pin))
    machine.host.run("rm", "-rf", "--one-file-system", str(machine.host.folder / "run"))
    machine.host.run("nft", "flush", "ruleset")
    links = machine.host.run("ls", "/sys/class/net").stdout.split()
    for link in links:
        if link.startswith(("bosh", "veth")):
            machine.host.run("ip", "link", "delete", link, check=False)
    machine.libvirt.forget_boot()
    machine.libvirt.start()


def _restored(machine: KvmMachine) -> dict[str, object]:
    done: dict[str, object] = json.loads(machine.bosh_cpi("restore", "--json").stdout)
    return done


def test_a_kvm_that_qemus_user_cannot_open_is_logged_once(
    machine: KvmMachine, stemcell: str, make_guest: Make
) -> None:
    machine.configure({"accelerator": "auto"})
    response = machine.host.cpi(
        *("create_vm", "a", stemcell, {}, {"default": {"type": "dynamic"}}, [], {})
    )
    machine.call("delete_vm", response["result"][0])
    assert response["log"].count("VMs run in plain emulation") == 1
    assert "/dev/kvm cannot be opened by QEMU's user libvirt-qemu" in response["log"]
    machine.configure({"accelerator": "kvm"})
    error = failing(lambda: make_guest())
    assert "kvm.accelerator is kvm" in error.message
    assert "chmod 660 /dev/kvm" in error.message


def test_a_vm_that_vanished_is_gone(machine: KvmMachine, make_guest: Make) -> None:
    guest = make_guest()
    machine.virsh("destroy", guest.cid)
    assert machine.call("has_vm", guest.cid) is True
    machine.virsh("undefine", guest.cid)
    assert machine.call("has_vm", guest.cid) is False
    with pytest.raises(CallFailed, match="VMNotFound"):
        machine.call("reboot_vm", guest.cid)
    machine.call("delete_vm", guest.cid)
