"""Jammy's stemcells for machines: systemd is the first process, and runit one of its units.

By the stemcell builder's stages base_ubuntu_packages and bosh_openstack_agent_settings.
The agent here is the stand-in, which runsvdir-start runs as runit would.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.containerd.disk_actions import attach_and_mount, hint, unmount_and_detach
from tests.support.containerd.machine import Machine

WANTS = "etc/systemd/system/multi-user.target.wants"
UNIT = """\
[Unit]
Description=Runit service supervision
After=network.target

[Service]
ExecStart=/usr/sbin/runsvdir-start
Restart=always
KillMode=process

[Install]
WantedBy=multi-user.target
"""
SSHD = "[Service]\nType=oneshot\nExecStart=/usr/bin/touch /run/sshd-started\n"
AGENT = {
    "Platform": {
        "Linux": {
            "PartitionerType": "parted",
            "CreatePartitionIfNoEphemeralDisk": True,
            "DevicePathResolutionType": "virtio",
            "UseMonitIptablesFirewall": True,
        }
    },
    "Infrastructure": {
        "Settings": {
            "Sources": [{"Type": "ConfigDrive", "DiskPaths": ["/dev/disk/by-label/config-2"]}],
            "UseServerName": True,
            "UseRegistry": True,
        }
    },
}


@pytest.fixture(scope="module")
def jammy(systemd_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an `image` of that shape."""
    folder = tmp_path_factory.mktemp("jammy")
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", str(systemd_image), "-C", str(root)], check=True)
    unit = next(root.glob("usr/lib/systemd/system/bosh-agent.service")).read_text()
    [command] = re.findall("^ExecStart=(.+)$", unit, re.MULTILINE)
    for link in (f"{WANTS}/bosh-agent.service", "etc/systemd/system/agent.service"):
        (root / link).unlink()
    runsvdir = root / "usr/sbin/runsvdir-start"
    runsvdir.write_text(f"#!/bin/sh\nexec {command}\n")
    runsvdir.chmod(0o750)
    for name, text in (("runit", UNIT), ("ssh", SSHD)):
        (root / f"usr/lib/systemd/system/{name}.service").write_text(text)
        (root / WANTS / f"{name}.service").symlink_to(f"/usr/lib/systemd/system/{name}.service")
    (root / "var/vcap/bosh/agent.json").write_text(json.dumps(AGENT))
    image = folder / "image"
    subprocess.run(["tar", "-czf", str(image), "-C", str(root), "."], check=True)
    return image


def test_systemd_starts_ssh_and_runit(machine: Machine, jammy: Path, clean: None) -> None:
    stemcell = machine.call("create_stemcell", str(jammy), {"name": "jammy", "version": "1"})
    vm = machine.create_vm(stemcell)
    vm.wait_for_agent()
    assert vm.sh("cat /proc/1/comm") == "systemd"
    assert vm.sh("systemctl is-active runit") == "active"
    assert vm.sh("ls /run/sshd-started") == "/run/sshd-started"
    linux = json.loads(vm.sh("cat /var/vcap/bosh/agent.json"))["Platform"]["Linux"]
    assert linux["UseMonitIptablesFirewall"] is True
    assert linux["PartitionerType"] == "parted"
    assert "ServiceManager" not in linux
    assert "DevicePathResolutionType" not in linux
    disk = machine.create_disk(vm=vm.cid)
    attach_and_mount(vm, disk)
    assert vm.agent("list_disk") == [disk]
    assert vm.sh(f"ls -d {hint(disk)}") == hint(disk)
    unmount_and_detach(vm, disk)
    vm.delete()
    machine.call("delete_disk", disk)
    machine.call("delete_stemcell", stemcell)
