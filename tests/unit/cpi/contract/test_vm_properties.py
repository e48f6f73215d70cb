"""VM cloud_properties."""

import pytest

from cpi.contract import vm_properties
from cpi.errors import CloudError
from cpi.model import HostMount, PortForward, VMProperties
from stemcell_convert.mount_programs import DISK_FOLDER


def test_nothing_given_means_no_limits() -> None:
    assert vm_properties.parse({}) == VMProperties()
    nothing = dict.fromkeys(vm_properties.KEYS)
    assert vm_properties.parse(nothing) == VMProperties()


def test_everything_given() -> None:
    given = {
        "cpu": 0.5,
        "memory": 512,
        "ephemeral_disk": 1024,
        "pids": 100,
        "privileged": True,
        "ports": ["8080:80"],
        "host_service": True,
        "mounts": [{"host": "/srv/a", "vm": "/mnt/a"}],
        "runtime": "fake",
        "root_disk": 4096,
        "firmware": "uefi",
        "machine": "pc-q35-7.2",
        "cpu_model": "Skylake-Server",
    }
    assert vm_properties.parse(given) == VMProperties(
        cpu=0.5,
        memory=512,
        ephemeral_disk=1024,
        pids=100,
        privileged=True,
        ports=(PortForward(8080, 80),),
        host_service=True,
        mounts=(HostMount("/srv/a", "/mnt/a"),),
        root_disk=4096,
        firmware="uefi",
        machine="pc-q35-7.2",
        cpu_model="Skylake-Server",
    )
    assert vm_properties.runtime(given) == "fake"
    assert vm_properties.runtime({}) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"firmware": "efi"}, "firmware must be one of bios, uefi, got 'efi' (did you mean uefi?)"),
        ({"machine": "<pc>"}, "cloud_properties.machine must be a word such as q35"),
        ({"cpu_model": 1}, "cloud_properties.cpu_model must be a word such as q35"),
        ({"root_disk": "4096"}, "cloud_properties.root_disk must be a whole number of MiB"),
        (
            {"ram": 1, "ca\npu": 2},
            "unknown keys: 'ram', 'ca\\npu' (did you mean cpu?); known: cpu, mem",
        ),
        ({"cpu": 0}, "cpu must be a number of CPUs, 0.01 to 4096, got 0"),
        ({"cpu": -1.5}, "got -1.5"),
        ({"cpu": "2"}, "cpu must be a number of CPUs, 0.01 to 4096, without quotes, got a string"),
        ({"cpu": True}, "got a boolean"),
        ({"cpu": 1e999}, "got inf"),
        ({"memory": 31}, "memory must be a whole number of MiB, 32 to 1073741824, got 31"),
        ({"memory": "512"}, "1073741824, without quotes, got a string"),
        ({"memory": "512M"}, "1073741824, without quotes, got a string"),
        ({"memory": 512.5}, "got 512.5"),
        ({"ephemeral_disk": 15}, "ephemeral_disk must be a whole number of MiB, 16 to"),
        ({"ephemeral_disk": 2**64}, "got 18446744073709551616"),
        ({"pids": 15}, "pids must be a whole number of processes and threads, 16 to 4194304"),
        ({"privileged": "true"}, "privileged must be true or false, got a string"),
        ({"privileged": 1}, "privileged must be true or false, got 1"),
        ({"ports": "8080:80"}, "ports must be a list, got a string"),
    ],
)
def test_wrong_properties(given: dict[str, object], reason: str) -> None:
    with pytest.raises(CloudError) as raised:
        vm_properties.parse(given)
    assert reason in raised.value.message
    assert raised.value.message.startswith("cloud_properties")


def test_runtime_must_be_a_name() -> None:
    with pytest.raises(CloudError, match="runtime must be a string, got 5"):
        vm_properties.runtime({"runtime": 5})


@pytest.mark.parametrize(
    ("given", "forward"),
    [
        ("25555", PortForward(25555, 25555)),
        ("8080:80", PortForward(8080, 80)),
        ("8080:80/udp", PortForward(8080, 80, "udp")),
        ("53/udp", PortForward(53, 53, "udp")),
        ("127.0.0.1:8080:80/tcp", PortForward(8080, 80, "tcp", "127.0.0.1")),
        ("[::1]:8080:80", PortForward(8080, 80, "tcp", "::1")),
        ({"host": 8080, "container": 80}, PortForward(8080, 80)),
        ({"container": 80}, PortForward(80, 80)),
        ({"host": 80}, PortForward(80, 80)),
        ({"host": 80, "container": None}, PortForward(80, 80)),
        (
            {"host": 1, "container": 2, "protocol": "udp", "host_ip": "0:0::1"},
            PortForward(1, 2, "udp", "::1"),
        ),
    ],
)
def test_ports(given: object, forward: PortForward) -> None:
    assert vm_properties.parse({"ports": [given]}).ports == (forward,)


@pytest.mark.parametrize(
    ("given", "first", "last", "count"),
    [
        ("8000-8099", PortForward(8000, 8000), PortForward(8099, 8099), 100),
        ({"host": "1024-1123"}, PortForward(1024, 1024), PortForward(1123, 1123), 100),
        ("127.0.0.1:53-54:5300-5301/udp", PortForward(53, 5300, "udp", "127.0.0.1"),
         PortForward(54, 5301, "udp", "127.0.0.1"), 2),
    ],
)  # fmt: skip
def test_ranges_of_ports(given: object, first: PortForward, last: PortForward, count: int) -> None:
    ports = vm_properties.parse({"ports": [given]}).ports
    assert (ports[0], ports[-1], len(ports)) == (first, last, count)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (1342, 'ports[0] must be in quotes, such as "8080"'),
        ("8000-8010:8000-8011", "ports[0]: 11 ports of the host for 12 of the VM"),
        ("8000-8010:80", "ports[0]: 11 ports of the host for 1 of the VM"),
        ("8010-8000", "ports[0].container must be a range of ports, the lower one first, got '80"),
        ("0-10", "ports[0].container must be a whole number, 1 to 65535, got 0"),
        ("1-4097", "ports has more than 4096 ports, which is the limit"),
        ("0:80", "ports[0].host must be a whole number, 1 to 65535, got 0"),
        ("80:65536", "ports[0].container must be a whole number, 1 to 65535, got 65536"),
        ("80:80/icmp", "ports[0].protocol must be one of tcp, udp, got 'icmp'"),
        ("999.0.0.1:80:80", "ports[0].host_ip must be an IP address, got '999.0.0.1'"),
        ("::1:80:80", 'ports[0] must be "8080"'),
        ("$(x)", "got '$(x)'"),
        ("", "got ''"),
        (None, "ports[0] must be"),
        ({}, "ports[0] needs host or container"),
        ({"container": "80"}, "ports[0].container must be a whole number, 1 to 65535, without"),
        (
            {"container": 80, "proto": "tcp"},
            "unknown keys: 'proto' (did you mean protocol?); known: host, con",
        ),
        ({"container": 80, "protocol": 6}, "ports[0].protocol must be one of tcp, udp, got 6"),
        ({"container": 80, "host_ip": 6}, "ports[0].host_ip must be a string, got 6"),
    ],
)
def test_wrong_ports(given: object, reason: str) -> None:
    with pytest.raises(CloudError) as raised:
        vm_properties.parse({"ports": [given]})
    assert reason in raised.value.message


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("80", "80:81", True),
        ("80", "80/udp", False),
        ("80", "127.0.0.1:80:81", True),
        ("127.0.0.1:80:80", "80:80", True),
        ("127.0.0.1:80:80", "127.0.0.1:80:81", True),
        ("127.0.0.1:80:80", "127.0.0.2:80:80", False),
        ("8080:80", "8081:80", False),
    ],
)
def test_one_port_of_the_host_leads_to_one_place(first: str, second: str, clash: bool) -> None:
    if clash:
        with pytest.raises(CloudError, match="uses 80/tcp of the host twice"):
            vm_properties.parse({"ports": [first, second]})
    else:
        assert len(vm_properties.parse({"ports": [first, second]}).ports) == 2


PLAIN_PATH = (
    "an absolute path of at most 1024 printable characters without .. or . or // or a / at its end"
)


def mounts(*given: object) -> VMProperties:
    return vm_properties.parse({"mounts": list(given)})


def test_mounts() -> None:
    written = mounts(
        {"host": "/srv/a", "vm": "/mnt/a", "read_only": False},
        {"host": "/srv/a", "vm": "/var/vcap/shared", "read_only": None},
        {"host": "/dev/x", "vm": "/usr/share/x"},
    ).mounts
    assert [mount.read_only for mount in written] == [False, True, True]
    assert [mount.vm for mount in written] == ["/mnt/a", "/var/vcap/shared", "/usr/share/x"]


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ("/srv", "mounts[0] must be an object, got a string"),
        ({"host": "/a"}, f"mounts[0].vm must be {PLAIN_PATH}, got null"),
        ({"host": 5, "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got 5"),
        ({"host": "a", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got 'a'"),
        ({"host": "/a\nb", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got '/a\\nb'"),
        ({"host": "/a\0b", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got '/a\\x00b'"),
        (
            {"host": "/" + "a" * 1024, "vm": "/mnt"},
            f"mounts[0].host must be {PLAIN_PATH}, got '/aa",
        ),
        ({"host": "/a/../b", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got '/a/../b'"),
        ({"host": "/a/./b", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got '/a/./b'"),
        ({"host": "/a//b", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got '/a//b'"),
        ({"host": "/a/", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got '/a/'"),
        ({"host": "/", "vm": "/mnt"}, f"mounts[0].host must be {PLAIN_PATH}, got '/'"),
        ({"host": "/a", "vm": "/mnt", "ro": True}, "mounts[0] has unknown keys: 'ro'; known: host"),
        ({"host": "/a", "vm": "/mnt", "read_only": "no"}, "mounts[0].read_only must be true or"),
    ],
)
def test_wrong_mounts(mount: object, reason: str) -> None:
    with pytest.raises(CloudError) as raised:
        mounts(mount)
    assert reason in raised.value.message


@pytest.mark.parametrize(
    "vm",
    [
        *("/proc", "/proc/x", "/sys/fs", "/dev/shm", "/etc", "/etc/ssl", "/run/x", "/usr", "/var"),
        *("/var/vcap", "/var/vcap/bosh", "/var/vcap/bosh/bin", "/var/vcap/data/x", "/var/run/x"),
        *("/var/vcap/store", "/var/vcap/jobs/x", "/var/vcap/bosh-cpi", f"{DISK_FOLDER}/x", "/lib"),
    ],
)
def test_mounts_hide_nothing_that_the_vm_needs(vm: str) -> None:
    with pytest.raises(CloudError, match="which the VM needs"):
        mounts({"host": "/srv", "vm": vm})


def test_mounts_do_not_hide_each_other() -> None:
    for first, second in (("/mnt", "/mnt"), ("/mnt", "/mnt/a"), ("/mnt/a", "/mnt")):
        with pytest.raises(CloudError, match="one would hide the other"):
            mounts({"host": "/a", "vm": first}, {"host": "/b", "vm": second})
    assert mounts({"host": "/a", "vm": "/mnt/a"}, {"host": "/a", "vm": "/mnt/ab"})
    with pytest.raises(CloudError, match="mounts must be a list of at most 32 items, got 33"):
        mounts(*({"host": "/a", "vm": f"/mnt/{number}"} for number in range(33)))
    with pytest.raises(CloudError, match="mounts must be a list, got a string"):
        vm_properties.parse({"mounts": "/mnt"})
