"""`bosh-cpi vms`, `logs`, `exec`, `top` and `doctor` on a host with two VMs and mishaps."""

import fcntl
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testing.patience import PATIENCE, wait_for
from tests.support.containerd.machine import BOSH_CPI, VM, Machine
from tests.support.processes import ended

ROUTER, DB = "router/aaaa-1", "db/bbbb-2"


@pytest.fixture(scope="module")
def before(machine: Machine) -> Iterator[None]:
    """Nothing of these VMs is left in the end."""
    left = machine.leftovers()
    yield
    machine.delete_all()
    assert machine.leftovers() == left


@pytest.fixture(scope="module")
def router(machine: Machine, stemcell: str, before: None) -> VM:
    """A VM with runit, all limits and a port."""
    limits = {"cpu": 1.5, "memory": 512, "pids": 300, "ephemeral_disk": 64, "ports": ["8080:80"]}
    return _named(machine.create_vm(stemcell, limits), "router", "aaaa-1", "0")


@pytest.fixture(scope="module")
def db(machine: Machine, systemd: str, before: None) -> VM:
    """A VM with systemd and a persistent disk."""
    vm = _named(machine.create_vm(systemd), "db", "bbbb-2", "3")
    machine.call("attach_disk", vm.cid, machine.create_disk(64, vm=vm.cid))
    return vm


def _named(vm: VM, group: str, identifier: str, index: str) -> VM:
    vm.machine.call(
        "set_vm_metadata",
        vm.cid,
        {"deployment": "cf", "job": group, "instance_group": group, "id": identifier,
         "index": index},
    )  # fmt: skip
    return vm


def listed(machine: Machine, *words: str) -> Any:
    return json.loads(machine.bosh_cpi(*words, "--json").stdout)


def check(machine: Machine, name: str, config: Path | None = None) -> dict[str, Any]:
    """One finding of the doctor."""
    done = machine.bosh_cpi("doctor", "--json", check=False, config=config)
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["failures"] else 0)
    return next(one for one in found["checks"] if one["check"] == name)


# Lists


def test_vms(machine: Machine, router: VM, db: VM) -> None:
    found = {vm["cid"]: vm for vm in listed(machine, "vms")}
    assert set(found) == {router.cid, db.cid}
    one = found[router.cid]
    assert (one["deployment"], one["instance"], one["index"]) == ("cf", ROUTER, "0")
    assert (one["state"], one["runtime"]) == ("running", "containerd")
    assert (one["cpu"], one["memory"], one["pids"]) == (1.5, 512, 300)
    assert (one["addresses"], one["ports"]) == ([router.ip], ["8080:80/tcp"])
    assert found[db.cid]["cpu"] is None
    table = machine.bosh_cpi("vms").stdout
    for word in (router.cid, ROUTER, DB, router.ip, "512 MiB", "8080:80/tcp"):
        assert word in table


def test_stemcells_disks_and_networks(machine: Machine, router: VM, db: VM, stemcell: str) -> None:
    (mine,) = [one for one in listed(machine, "stemcells") if one["cid"] == stemcell]
    assert mine["image"].startswith("bosh.local/stemcell/")
    assert stemcell in machine.bosh_cpi("stemcells").stdout
    (disk,) = listed(machine, "disks")
    assert disk["attached_to"] == db.cid
    found = listed(machine, "networks")
    (bridge,) = [one for one in found["bridges"] if one["name"] == "bosh0"]
    assert (bridge["state"], bridge["subnets"]) == ("up", ["10.245.0.0/16"])
    assert bridge["own"] == ["10.245.0.1/16"]
    assert bridge["vms"] == {router.ip: router.cid, db.ip: db.cid}
    assert router.ip in machine.bosh_cpi("networks").stdout


def test_cni_networks_of_the_host_and_broken_ones(machine: Machine, router: VM) -> None:
    folder = machine.host.folder / "cni"
    folder.mkdir()
    (folder / "70-good.conflist").write_text('{"name": "lan", "plugins": [{"type": "macvlan"}]}')
    (folder / "71-bad.conf").write_text("{")
    try:
        found = {Path(one["file"]).name: one for one in listed(machine, "networks")["cni_networks"]}
        assert found["70-good.conflist"]["plugins"] == ["macvlan"]
        assert found["71-bad.conf"]["problem"]
        assert "broken" in machine.bosh_cpi("networks").stdout
    finally:
        shutil.rmtree(folder)


def test_a_runtime_that_does_not_answer_is_a_warning(machine: Machine, router: VM) -> None:
    path = machine.host.write_config("both.json", runtimes=["kvm"])
    done = machine.bosh_cpi("vms", check=False, config=path)
    assert done.returncode == 1
    assert router.cid in done.stdout
    assert [line.startswith("bosh-cpi: kvm: ") for line in done.stderr.splitlines()] == [True]


# exec


def test_exec_carries_status_and_streams(machine: Machine, router: VM) -> None:
    script = "echo $HOME; echo no >&2; exit 7"
    done = machine.bosh_cpi("exec", ROUTER, "--", "sh", "-c", script, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "/root\n", "no\n")
    killed = machine.bosh_cpi("exec", "router/0", "--", "sh", "-c", "kill -9 $$", check=False)
    assert killed.returncode == 128 + 9
    assert exec_leftovers(machine) == []


def test_exec_is_in_the_vm(machine: Machine, router: VM) -> None:
    script = "cat /proc/1/cmdline /proc/self/cgroup; hostname; ip -o addr 2>/dev/null || true"
    told = machine.bosh_cpi("exec", router.cid, "sh", "-c", script).stdout
    assert told.strip() == router.sh(script)


def test_exec_carries_much_both_ways(machine: Machine, router: VM) -> None:
    size = 30_000_000
    script = (
        f"head -c {size} /dev/zero | {BOSH_CPI} -c {machine.host.folder}/cpi.json "
        "exec router -- sh -c 'cat; echo done >&2' | wc -c"
    )
    done = machine.host.run("sh", "-c", script)
    assert (done.stdout.strip(), done.stderr) == (str(size), "done\n")


def test_exec_of_what_is_not_there(machine: Machine, router: VM) -> None:
    for program in ("nosuch", "/nosuch"):
        done = machine.bosh_cpi("exec", ROUTER, "--", program, check=False)
        assert done.returncode == 1
        assert f"has no program '{program}'" in done.stderr
    assert exec_leftovers(machine) == []


def exec_leftovers(machine: Machine) -> list[Path]:
    return list((machine.host.folder / "run/exec").glob("*"))


def test_exec_with_a_terminal(machine: Machine, router: VM) -> None:
    script = """
        stty size; echo "$TERM"; read x; tty
        trap 'stty size; exit 5' WINCH
        sleep 60 & echo armed; wait
    """
    with on_terminal(machine, "exec", ROUTER, "--", "sh", "-c", script) as (process, near):
        told = _read_until(near, b"vt220")
        os.write(near, b"\r")  # raw: what Enter sends
        told += _read_until(near, b"armed")
        _set_size(near, 44, 150)
        told += _read_until(near, b"44 150")
        assert process.wait(PATIENCE) == 5
    assert b"33 140" in told
    assert b"/dev/pts/" in told
    assert exec_leftovers(machine) == []


@contextmanager
def on_terminal(machine: Machine, *words: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """`bosh-cpi` on a terminal of 33 lines and 140 columns, whose other end this gives."""
    near, far = pty.openpty()
    _set_size(far, 33, 140)
    argv = [str(BOSH_CPI), "-c", f"{machine.host.folder}/cpi.json", *words]
    entered = machine.host.enter("setsid", "--ctty", *argv)  # Ctrl-C is for it alone
    environment = {**os.environ, "TERM": "vt220"}
    process = subprocess.Popen(entered, stdin=far, stdout=far, stderr=far, env=environment)
    with ended(process):
        os.close(far)
        try:
            yield process, near
        finally:
            os.close(near)  # who is still there gets SIGHUP


def _set_size(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    told = b""
    while wanted not in told:
        assert select.select([descriptor], [], [], PATIENCE)[0], told
        told += os.read(descriptor, 4096)
    return told


# Says which process of that host it is, then becomes the program.
_TELLING = "import os, sys; print(os.getpid(), flush=True); os.execv(sys.argv[1], sys.argv[1:])"


@contextmanager
def running(machine: Machine, *words: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`bosh-cpi` while it runs, and its process id on that host, where it is ended at last."""
    argv = [str(BOSH_CPI), "-c", f"{machine.host.folder}/cpi.json", *words]
    entered = machine.host.enter(sys.executable, "-c", _TELLING, *argv)
    with ended(subprocess.Popen(entered, stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        try:
            yield process, pid
        finally:
            machine.host.run("kill", pid, check=False)


def test_a_command_ends_when_exec_is_interrupted(machine: Machine, router: VM) -> None:
    script = ["sh", "-c", "echo begun; exec sleep 987654"]
    with running(machine, "exec", ROUTER, "--", *script) as (process, pid):
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        machine.host.run("kill", pid)
        assert process.wait(PATIENCE) == 130
    assert "987654" not in router.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert exec_leftovers(machine) == []


# logs


def test_logs_of_a_running_vm(machine: Machine, router: VM, db: VM) -> None:
    router.wait_for_agent()
    assert "listening on port" in machine.bosh_cpi("logs", ROUTER).stdout
    db.wait_for_agent()
    wait_for(lambda: "Startup finished" in machine.bosh_cpi("logs", DB).stdout, "systemd's journal")
    assert len(machine.bosh_cpi("logs", "db/3", "--lines", "2").stdout.splitlines()) == 2


def test_a_jobs_log_is_followed(machine: Machine, router: VM) -> None:
    router.sh("mkdir -p /var/vcap/sys/log/web; seq 500 > /var/vcap/sys/log/web/out.log")
    told = machine.bosh_cpi("logs", ROUTER, "--file", "web/out.log", "--lines", "3").stdout
    assert told.split() == ["498", "499", "500"]
    words = ("logs", ROUTER, "--file", "web/out.log", "--lines", "1", "--follow")
    with running(machine, *words) as (process, _):
        assert process.stdout is not None
        assert process.stdout.readline() == "500\n"
        router.sh("echo more >> /var/vcap/sys/log/web/out.log")
        assert process.stdout.readline() == "more\n"
        router.sh("cd /var/vcap/sys/log/web; mv out.log out.log.1; echo rotated > out.log")
        assert process.stdout.readline() == "rotated\n"


def test_logs_lead_nowhere_outside(machine: Machine, router: VM) -> None:
    secret = machine.host.folder / "secret"
    secret.write_text("of the host")
    router.sh(f"ln -sfn ../../../../../../../../..{secret} /var/log/messages")
    assert "of the host" not in machine.bosh_cpi("logs", ROUTER).stdout
    router.sh("rm /var/log/messages")
    for path in ("/etc/shadow", "../../bosh/settings.json"):
        done = machine.bosh_cpi("logs", ROUTER, "--file", path, check=False)
        assert (done.returncode, done.stdout) == (1, "")


# top


def test_top(machine: Machine, router: VM, db: VM) -> None:
    pid = router.sh("(while :; do :; done) >/dev/null 2>&1 & echo $!")
    try:
        found = {one["cid"]: one for one in listed(machine, "top", "--interval", "1")}
    finally:
        router.sh(f"kill {pid}")
    assert set(found) == {router.cid, db.cid}
    used = found[router.cid]
    assert used["cpu"] > 10
    assert used["instance"] == ROUTER
    assert used["memory_limit"] == 512 << 20
    assert 0 < used["memory"] < 512 << 20
    assert used["pids"] >= 2
    assert used["disk"] > 0
    table = machine.bosh_cpi("top", "--once", "--interval", "0.2").stdout
    assert ROUTER in table
    assert "512 MiB" in table


def test_top_goes_on_until_ctrl_c(machine: Machine, router: VM) -> None:
    with on_terminal(machine, "top", "--interval", "0.2") as (process, near):
        short = router.cid.rpartition("-")[2][:12].encode()
        for _ in range(2):
            assert ROUTER.encode() in _read_until(near, short)
        os.write(near, b"\x03")
        _read_until(near, b"\x1b[?25h")  # the cursor is back
        assert process.wait(PATIENCE) == 0


# doctor. The VMs are there; each test breaks something, and mends it with what the doctor says.


def test_a_host_that_is_well(machine: Machine, router: VM) -> None:
    done = machine.bosh_cpi("doctor")
    for word in ("✓ containerd: ", "✓ snapshotter: ", "✓ bridge: bosh0 is up", "0 failed"):
        assert word in done.stdout
    assert "(only for runtime kvm)" in done.stdout


@pytest.mark.parametrize(
    ("name", "changes", "mend"),
    [
        ("containerd", {"containerd": {"address": "/nosuch.sock"}}, "containerd --address /nosuch"),
        ("snapshotter", {"containerd": {"snapshotter": "zfs"}}, '"snapshotter": "overlayfs"'),
        ("CNI plugins", {"network": {"cni_plugin_dirs": ["/nosuch"]}}, '["/usr/lib/cni"]'),
        ("libvirt", {"runtimes": ["kvm"]}, "systemctl start libvirtd"),
    ],
)
def test_what_is_configured_wrongly_names_what_mends_it(
    machine: Machine, router: VM, name: str, changes: dict[str, Any], mend: str
) -> None:
    own = machine.host.config()
    merged = {
        key: {**own[key], **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    found = check(machine, name, machine.host.write_config("wrong.json", **merged))
    assert found["status"] == "failure"
    assert mend in found["mend"]


@pytest.mark.parametrize(
    ("name", "breaking"),
    [
        ("bridge", "ip link set bosh0 down"),
        ("forwarding", "sysctl -qw net.ipv4.ip_forward=0"),
        ("rp_filter", "sysctl -qw net.ipv4.conf.bosh0.rp_filter=1"),
        ("firewall", "iptables -P FORWARD DROP"),
        ("subnets", "ip route add 10.245.9.0/24 dev lo"),
    ],
)
def test_what_is_broken_is_mended_by_what_the_doctor_says(
    machine: Machine, router: VM, name: str, breaking: str
) -> None:
    assert check(machine, name)["status"] == "ok"
    machine.host.run("sh", "-c", breaking)
    try:
        found = check(machine, name)
        assert found["status"] != "ok"
        if name == "subnets":
            changes = json.loads(found["mend"].removeprefix("set in cpi.json: "))
            network = {**machine.host.config()["network"], **changes["network"]}
            mended = machine.host.write_config("mended.json", network=network)
            assert check(machine, name, mended)["status"] == "ok"
        elif name == "firewall":  # published ports are let through; what docker set stays
            machine.host.run("sh", "-c", found["mend"])
            assert "CNI-ADMIN" in found["mend"]
            machine.host.run("sh", "-c", found["mend"].replace(" -A ", " -D "))
        else:
            machine.host.run("sh", "-c", found["mend"])
            assert check(machine, name)["status"] == "ok"
    finally:
        machine.host.run("sh", "-c", _UNDO)


_UNDO = """
ip link set bosh0 up; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.bosh0.rp_filter=0
iptables -P FORWARD ACCEPT; ip route del 10.245.9.0/24 dev lo 2>/dev/null; true
"""


# A VM that does not run. The last tests, as it stays like that.


@pytest.fixture(scope="module")
def stopped(machine: Machine, router: VM) -> VM:
    router.sh("mkdir -p /var/vcap/sys/log/web; echo last words > /var/vcap/sys/log/web/err.log")
    router.sh("mkdir -p /var/vcap/data/root_log; echo of data > /var/vcap/data/root_log/messages")
    machine.ctr("tasks", "kill", "--signal", "KILL", router.cid)
    wait_for(lambda: "STOPPED" in machine.ctr("tasks", "ls"), "the end of the VM")
    return router


def test_a_vm_that_does_not_run(machine: Machine, stopped: VM, db: VM) -> None:
    found = {vm["cid"]: vm["state"] for vm in listed(machine, "vms")}
    assert found == {stopped.cid: "stopped", db.cid: "running"}
    told = check(machine, "VMs that do not run")
    assert (told["status"], ROUTER in told["told"]) == ("warning", True)
    assert told["mend"] == "bosh -d cf cloud-check --resolution=reboot_vm"
    done = machine.bosh_cpi("exec", ROUTER, "--", "true", check=False)
    assert (done.returncode, "does not run" in done.stderr) == (1, True)


def test_logs_of_a_vm_that_does_not_run(machine: Machine, stopped: VM) -> None:
    told = machine.bosh_cpi("logs", ROUTER).stdout
    assert "==> /var/vcap/bosh/log/current <==" in told
    assert "listening on port" in told
    assert "of data" in told
    assert machine.bosh_cpi("logs", ROUTER, "--file", "web/err.log").stdout == "last words\n"
    mounts = machine.host.run("cat", "/proc/self/mountinfo").stdout
    assert f"{machine.host.folder}/run/rootfs" not in mounts


def test_state_of_before_a_restart(machine: Machine, router: VM) -> None:
    assert check(machine, "after a restart")["status"] == "ok"
    # As when run_dir, which is in memory, is empty again.
    path = machine.host.write_config("fresh.json", run_dir=str(machine.host.folder / "fresh"))
    found = check(machine, "after a restart", path)
    assert (found["status"], router.cid in found["told"]) == ("warning", True)
