"""The stand-in agent of a machine, with fake programs, and files as devices."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from testing.agent import stand_in_machine, stand_in_machine_entropy
from testing.agent.stand_in_disks import AgentError
from testing.agent.stand_in_machine import MachineAgent, shell
from testing.agent.stand_in_machine_devices import (
    DeviceMissing,
    Devices,
    parse_table,
    partition_root,
)

MIB = 1 << 20
EMPTY = "Error: /dev/x: unrecognised disk label"


class Programs:
    """Fake programs: a table of mounts, and the content of devices."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[str]()
        self.mounts: list[tuple[str, str]] = []
        self.tables: dict[str, tuple[int, str, list[str]]] = {}  # size, label, parts as parted has
        self.content: dict[str, str] = {}  # what wipefs finds, by device
        self.drives: dict[str, dict[str, str]] = {}  # files by device

    def __call__(self, argv: Sequence[str]) -> str:
        if list(argv) == ["mount"]:
            return "".join(f"{source} on {point} type x (rw)\n" for source, point in self.mounts)
        self.calls.append(" ".join(argv).replace(str(self.root), ""))
        perform = getattr(self, argv[0], None)
        return perform(*argv[1:]) if perform else ""

    def mount(self, *words: str) -> str:
        source, point = [word for word in words if word.startswith("/")]
        for name, text in self.drives.get(source, {}).items():
            (Path(point) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(point) / name).write_text(text)
        self.mounts.append((source, point))
        return ""

    def umount(self, name: str) -> str:
        self.mounts.remove(next(mount for mount in self.mounts if name in mount))
        return ""

    def parted(self, *words: str) -> str:
        device = next(word for word in words if word.startswith("/dev/"))
        size, label, parts = self.tables.get(device, (400 * MIB, "unknown", []))
        if "mklabel" in words:
            name = words[words.index("mkpart") + 1]
            part = f"1:{MIB}B:{size - MIB - 1}B:{size - 2 * MIB}B::{name}:;"
            self.tables[device] = (size, "gpt", [part])
        elif "print" in words and label == "unknown":
            raise AgentError(EMPTY)
        return "\n".join(["BYT;", f"{device}:{size}B:virtblk:512:512:{label}:A Disk:;", *parts, ""])

    def lsblk(self, *words: str) -> str:
        return f"{self.tables.get(words[-1], (400 * MIB, '', []))[0]}\n"

    def wipefs(self, *words: str) -> str:
        return self.content.get(words[-1], "")

    def mke2fs(self, *words: str) -> str:
        self.content[words[-1]] = "ext4"
        return ""

    def findmnt(self, *_words: str) -> str:
        return "/dev/vda1\n"

    def did(self, program: str) -> list[str]:
        """Return the calls of one program."""
        return [call for call in self.calls if call.partition(" ")[0] == program]


class FakeMachine:
    """A stand-in agent below a folder, with disks /dev/vda, vdb, vdc and one network card."""

    def __init__(self, root: Path, **linux: Any) -> None:
        self.root, self.programs = root, Programs(root)
        for name in ("dev/disk/by-id", "dev/disk/by-label", "etc", "var/vcap/bosh"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("vda", "vdb", "vdc", "vdd", "sr0"):
            (root / "dev" / name).touch()
        card = root / "sys/class/net/eth0"
        (card / "device").mkdir(parents=True, exist_ok=True)
        (card / "address").write_text("52:54:00:00:00:01\n")
        self.config = root / "agent.json"
        self.linux = {"DevicePathResolutionType": "virtio", **linux}
        self.settings: dict[str, Any] = {"agent_id": "agent-1", "disks": {"ephemeral": "/dev/sdb"}}

    def start(self) -> MachineAgent:
        """Start the agent with these settings on its config drive."""
        label = "/dev/disk/by-label/config-2"
        (self.root / label[1:]).touch()
        files = {"ec2/meta-data.json": "{}", "ec2/user-data": json.dumps(self.settings)}
        self.programs.drives[label] = files
        sources = [
            {"Type": "File", "SettingsPath": "/var/vcap/bosh/nothing.json"},
            {
                "Type": "ConfigDrive",
                "DiskPaths": ["/dev/disk/by-label/CONFIG-2", label],
                "MetaDataPath": "ec2/meta-data.json",
                "UserDataPath": "ec2/user-data",
            },
        ]
        document = {
            "Platform": {"Linux": self.linux},
            "Infrastructure": {"Settings": {"Sources": sources}},
        }
        self.config.write_text(json.dumps(document))
        agent_class = type("AgentBelowFolder", (MachineAgent,), {"root": self.root})
        agent: MachineAgent = agent_class(self.config, self.root / "var/vcap", self.programs)
        agent.disks.devices.patience = 0
        return agent


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_a_machines_first_start(machine: FakeMachine) -> None:
    network = {
        "type": "manual",
        "ip": "10.0.0.5",
        "netmask": "255.255.255.0",
        "gateway": "10.0.0.1",
    }
    network = {**network, "dns": ["10.0.0.2"], "mac": "52:54:00:00:00:01"}  # type: ignore[dict-item]
    machine.settings["networks"] = {"default": network}
    agent = machine.start()
    assert agent.perform("get_state", [])["agent_id"] == "agent-1"
    assert [call for call in machine.programs.calls if "udevadm" not in call] == [
        "mount -o ro /dev/disk/by-label/config-2 /var/vcap/bosh/settings",
        "umount /var/vcap/bosh/settings",
        "hostname agent-1",
        "ip address replace 10.0.0.5/24 dev eth0",
        "ip link set dev eth0 up",
        "ip -4 route replace default via 10.0.0.1 dev eth0",
        "parted -s -m /dev/vdb unit B print",
        "lsblk --nodeps -nb -o SIZE /dev/vdb",
        "wipefs --no-act --noheadings --output TYPE /dev/vdb",
        "parted -s /dev/vdb mklabel gpt mkpart bosh-partition-agent-1-0 1MiB 100%",
        "wipefs --no-act --noheadings --output TYPE /dev/vdb1",
        "mke2fs -q -t ext4 -j -E lazy_itable_init=1 /dev/vdb1",
        "mount /dev/vdb1 /var/vcap/data",
    ]
    assert (machine.root / "etc/resolv.conf").read_text().endswith("nameserver 10.0.0.2\n")
    assert (machine.root / "etc/hostname").read_text() == "agent-1"
    assert "127.0.0.1 agent-1 localhost\n" in (machine.root / "etc/hosts").read_text()


def test_a_later_start_finds_everything_made(machine: FakeMachine) -> None:
    machine.start()
    machine.programs.mounts.clear()  # as a reboot does
    machine.start()
    assert len(machine.programs.did("mke2fs")) == 1
    assert ("/dev/vdb1", str(machine.root / "var/vcap/data")) in machine.programs.mounts
    machine.start()  # again, without a reboot
    assert len(machine.programs.did("mount")) == 5  # three drives, twice the data


def test_lost_settings_are_replaced_by_the_copy(machine: FakeMachine) -> None:
    machine.start()
    machine.settings = {}
    machine.programs.drives.clear()
    label = machine.root / "dev/disk/by-label/config-2"
    label.unlink()
    agent_class = type("AgentBelowFolder", (MachineAgent,), {"root": machine.root})
    agent = agent_class(machine.config, machine.root / "var/vcap", machine.programs)
    assert agent.settings["agent_id"] == "agent-1"


@pytest.mark.parametrize("hint", ["/dev/sdc", {"path": "/dev/disk/by-id/virtio-disk"}])
def test_an_empty_persistent_disk_is_made_usable(machine: FakeMachine, hint: Any) -> None:
    (machine.root / "dev/disk/by-id/virtio-disk").symlink_to("../../vdc")
    agent = machine.start()
    agent.perform("add_persistent_disk", ["d1", hint])
    for _ in range(2):  # the second time there is nothing left to do
        agent.perform("mount_disk", ["d1"])
    assert machine.programs.did("mke2fs")[1:] == [
        "mke2fs -q -t ext4 -j -E lazy_itable_init=1 /dev/vdc1"
    ]
    assert machine.programs.calls.count("mount /dev/vdc1 /var/vcap/store") == 1
    assert agent.perform("list_disk", []) == ["d1"]
    assert agent.perform("unmount_disk", ["d1"])["message"] == "Unmounted partition of /dev/vdc1"
    assert agent.perform("list_disk", []) == []


def part(size_mib: int, system: str = "ext4") -> str:
    """Return a partition as parted prints it."""
    size = size_mib * MIB
    return f"1:{MIB}B:{MIB + size - 1}B:{size}B:{system}::;"


def test_a_disk_of_the_cpi_is_used_as_it_is(machine: FakeMachine) -> None:
    machine.programs.tables["/dev/vdc"] = (400 * MIB, "gpt", [part(398)])
    agent = machine.start()
    agent.perform("add_persistent_disk", ["d1", "/dev/sdc"])
    agent.perform("mount_disk", ["d1"])
    assert [call for call in machine.programs.calls if "vdc" in call] == [
        "parted -s -m /dev/vdc unit B print",
        "mount /dev/vdc1 /var/vcap/store",
    ]


def test_a_disk_that_has_become_larger_is_grown(machine: FakeMachine) -> None:
    machine.programs.tables["/dev/vdc"] = (500 * MIB, "gpt", [part(398)])
    agent = machine.start()
    agent.perform("add_persistent_disk", ["d1", "/dev/sdc"])
    agent.perform("mount_disk", ["d1"])
    assert [call for call in machine.programs.calls if "vdc" in call] == [
        "parted -s -m /dev/vdc unit B print",
        "parted -s --fix /dev/vdc resizepart 1 100%",
        "mount /dev/vdc1 /var/vcap/store",
        "resize2fs -f /dev/vdc1",
        "umount /dev/vdc1",
        "mount /dev/vdc1 /var/vcap/store",
    ]


@pytest.mark.parametrize(
    ("table", "content", "problem"),
    [
        ((400 * MIB, "gpt", [part(98), part(98)]), {}, "Expected 1, got 2"),
        ((400 * MIB, "loop", [part(400)]), {"/dev/vdc": "ext4"}, "no partition"),
        ((400 * MIB, "unknown", []), {"/dev/vdc": "LVM2_member"}, "not empty"),
        ((400 * MIB, "gpt", [part(398, "btrfs")]), {"/dev/vdc1": "btrfs"}, "not empty"),
    ],
)
def test_what_holds_something_else_is_left_alone(
    machine: FakeMachine, table: tuple[int, str, list[str]], content: dict[str, str], problem: str
) -> None:
    machine.programs.tables["/dev/vdc"] = table
    machine.programs.content.update(content)
    agent = machine.start()
    agent.perform("add_persistent_disk", ["d1", "/dev/sdc"])
    with pytest.raises(AgentError, match=problem):
        agent.perform("mount_disk", ["d1"])
    assert not [call for call in machine.programs.calls if "vdc" in call and "mk" in call]


def test_a_second_disk_takes_the_store_over(machine: FakeMachine) -> None:
    agent = machine.start()
    for cid, path in (("d1", "/dev/sdc"), ("d2", "/dev/sdd")):
        agent.perform("add_persistent_disk", [cid, path])
        agent.perform("mount_disk", [cid])
    machine.programs.calls.clear()
    agent.perform("migrate_disk", [])
    assert machine.programs.calls == [
        "umount /var/vcap/store",
        "mount /dev/vdc1 /var/vcap/store -o ro",
        "cp -a /var/vcap/store/. /var/vcap/store_migration_target",
        "umount /var/vcap/store",
        "umount /var/vcap/store_migration_target",
        "mount /dev/vdd1 /var/vcap/store",
    ]


def test_the_last_disk_is_mounted_again_after_a_reboot(machine: FakeMachine) -> None:
    agent = machine.start()
    agent.perform("add_persistent_disk", ["d1", "/dev/sdc"])
    agent.perform("mount_disk", ["d1"])
    machine.programs.mounts.clear()
    agent = machine.start()
    assert agent.perform("list_disk", []) == ["d1"]
    agent.perform("remove_persistent_disk", ["d1"])
    with pytest.raises(AgentError, match="'d1' could not be found"):
        machine.start()  # as BOSH's agent does
    agent.perform("add_persistent_disk", ["d2", "/dev/sdd"])
    with pytest.raises(AgentError, match="disagrees"):
        machine.start()


def test_a_disk_that_is_gone_is_not_mounted(machine: FakeMachine) -> None:
    agent = machine.start()
    agent.perform("add_persistent_disk", ["d1", "/dev/sdx"])
    assert agent.perform("list_disk", []) == []
    assert "is not mounted" in agent.perform("unmount_disk", ["d1"])["message"]
    with pytest.raises(AgentError, match="Timed out"):
        agent.perform("mount_disk", ["d1"])


def test_other_file_systems_are_refused(machine: FakeMachine) -> None:
    machine.settings["env"] = {"persistent_disk_fs": "xfs"}
    agent = machine.start()
    agent.perform("add_persistent_disk", ["d1", "/dev/sdc"])
    with pytest.raises(AgentError, match='"xfs" is not supported'):
        agent.perform("mount_disk", ["d1"])


def test_without_a_data_disk(machine: FakeMachine) -> None:
    machine.settings["disks"] = {"ephemeral": ""}
    with pytest.raises(AgentError, match="No ephemeral disk found"):
        machine.start()
    machine.linux["CreatePartitionIfNoEphemeralDisk"] = True
    machine.programs.tables["/dev/vda"] = (400 * MIB, "msdos", [part(300)])
    with pytest.raises(AgentError, match="Insufficient remaining disk space"):
        machine.start()
    machine.programs.tables["/dev/vda"] = (3000 * MIB, "msdos", [part(300)])
    machine.start()
    assert "parted -s /dev/vda mkpart primary 301MiB 100%" in machine.programs.calls
    assert ("/dev/vda2", str(machine.root / "var/vcap/data")) in machine.programs.mounts


def test_a_data_disk_of_others_is_left_alone(machine: FakeMachine) -> None:
    machine.programs.tables["/dev/vdb"] = (400 * MIB, "gpt", [part(398)])
    with pytest.raises(AgentError, match="partitions of others"):
        machine.start()


def test_how_disks_are_found(machine: FakeMachine) -> None:
    devices = Devices("virtio", machine.programs, machine.root)
    devices.patience = 0
    cid = "0123456789abcdef0123"
    (machine.root / f"dev/disk/by-id/virtio-{cid}").symlink_to("../../vdd")
    assert devices.find(cid, {"path": "/dev/sdc"}) == "/dev/vdd"
    assert devices.find("short", {"path": "/dev/sdc"}) == "/dev/vdc"
    assert devices.find("", {"path": "/dev/vdb"}) == "/dev/vdb"
    with pytest.raises(DeviceMissing):
        devices.find("", {"path": "/dev/disk/by-id/virtio-none"})
    with pytest.raises(AgentError, match="path is missing"):
        devices.find("", {"id": "x"})
    assert Devices("", machine.programs).find("", {"path": "/any"}) == "/any"


def test_how_scsi_disks_are_found(machine: FakeMachine) -> None:
    devices = Devices("scsi", machine.programs, machine.root)
    devices.patience = 0
    (machine.root / "sys/class/scsi_host/host2").mkdir(parents=True)
    (machine.root / "dev/disk/by-id/scsi-3aabb").symlink_to("../../vdd")
    for place, name in (("0", "sda"), ("1", "sdb")):
        (machine.root / f"sys/bus/scsi/devices/2:0:{place}:0/block/{name}").mkdir(parents=True)
    assert devices.find("", {"id": "aa-bb"}) == "/dev/vdd"
    assert devices.find("", {"path": "1", "volume_id": "1"}) == "/dev/sdb"
    with pytest.raises(DeviceMissing):
        devices.find("", {"id": "cc"})
    with pytest.raises(AgentError, match="Neither ID"):
        devices.find("", {"path": ""})
    (scan := machine.root / "sys/class/scsi_host/host2/scan").touch()
    devices.find("", {"id": "aabb"})
    assert scan.read_text() == "- - -"


def test_parteds_words() -> None:
    with pytest.raises(AgentError, match="Parsing"):
        parse_table("nothing\n")
    table = parse_table("BYT;\n/dev/vda:1000B:virtblk:512:512:gpt:A:;\n1:1B:9B:9B:ext4:a name:;\n")
    assert (table.size, table.label, table.parts[0].name) == (1000, "gpt", "a name")


def test_a_root_disk_of_another_name(machine: FakeMachine) -> None:
    with pytest.raises(AgentError, match="invalid name"):
        partition_root(lambda argv: "overlay\n")


def test_a_look_inside(machine: FakeMachine) -> None:
    agent = machine.start()
    answer = agent.handle({"method": "stand_in_shell", "arguments": ["echo out; echo err >&2"]})
    assert answer == {"value": {"status": 0, "output": "out\nerr\n"}}
    assert shell("exit 3") == {"status": 3, "output": ""}


def test_a_look_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (0.1, 1, 10, 60):
        monkeypatch.setattr(stand_in_machine, "SHELL_TIMEOUT", seconds)
        answer = shell("echo begun; exec sleep 3600")
        if answer["output"]:  # else the time was over before it began
            break
    assert answer == {"status": 124, "output": "begun\n"}


def test_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []
    monkeypatch.setattr("fcntl.ioctl", lambda _handle, _what, block: given.append(block))
    stand_in_machine_entropy.credit()
    assert len(given[0]) == 8 + stand_in_machine_entropy.SIZE
