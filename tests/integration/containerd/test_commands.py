"""`bosh-cpi vms`, `logs`, `exec`, and `top` on a host with two VMs, also when calls fail."""

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtimes.containerd.client import Client
from runtimes.containerd.containers import Containers
from testing.patience import PATIENCE, wait_for
from tests.support.containerd.machine import BOSH_CPI, VM, Machine
from tests.support.containerd.operator_output import DB, ROUTER, check, listed
from tests.support.processes import ended

# Lists


def test_vms(machine: Machine, router: VM, db: VM) -> None:
    vms = {vm["cid"]: vm for vm in listed(machine, "vms")}
    assert set(vms) == {router.cid, db.cid}
    vm = vms[router.cid]
    assert (vm["deployment"], vm["instance"], vm["index"]) == ("cf", ROUTER, "0")
    assert (vm["state"], vm["runtime"]) == ("running", "containerd")
    assert (vm["cpu"], vm["memory"], vm["pids"]) == (1.5, 512, 300)
    assert (vm["addresses"], vm["ports"]) == ([router.ip], ["8080:80/tcp"])
    assert vms[db.cid]["cpu"] is None
    table = machine.bosh_cpi("vms").stdout
    for word in (router.cid, ROUTER, DB, router.ip, "512 MiB", "8080:80/tcp"):
        assert word in table


def test_stemcells_disks_and_networks(machine: Machine, router: VM, db: VM, stemcell: str) -> None:
    (mine,) = [row for row in listed(machine, "stemcells") if row["cid"] == stemcell]
    assert mine["image"].startswith("bosh.local/stemcell/")
    assert stemcell in machine.bosh_cpi("stemcells").stdout
    (disk,) = listed(machine, "disks")
    assert disk["attached_to"] == db.cid
    networks = listed(machine, "networks")
    (bridge,) = [row for row in networks["bridges"] if row["name"] == "bosh0"]
    assert (bridge["state"], bridge["subnets"]) == ("up", ["10.245.0.0/16"])
    assert bridge["addresses"] == ["10.245.0.1/16"]
    assert bridge["vms"] == {router.ip: router.cid, db.ip: db.cid}
    assert router.ip in machine.bosh_cpi("networks").stdout


def test_vms_are_shown_however_much_there_is_to_list(machine: Machine, router: VM) -> None:
    """All records of containers are larger than a message of gRPC may be."""
    containers = Containers(Client(str(machine.host.address), "bosh", PATIENCE), "overlayfs")
    others = [f"other-{number}" for number in range(9)]
    try:
        for other in others:
            containers.create(other, "", {"annotations": {"long": "x" * (2 << 20)}}, {})
        assert router.cid in [vm["cid"] for vm in listed(machine, "vms")]
        assert machine.bosh_cpi("gc").stdout == "nothing is orphaned\n"
    finally:
        for other in others:
            containers.delete(other)


def test_metadata_does_not_reach_a_terminal_as_it_is(machine: Machine, router: VM) -> None:
    (before,) = [vm["metadata"] for vm in listed(machine, "vms") if vm["cid"] == router.cid]
    names = {**before, "deployment": "cf\x1b[2J"}
    machine.call("set_vm_metadata", router.cid, names)
    try:
        table = machine.bosh_cpi("vms").stdout
        assert r"cf\x1b[2J" in table
        assert "\x1b" not in table
    finally:
        machine.call("set_vm_metadata", router.cid, before)


def test_cni_networks_of_the_host_and_broken_ones(machine: Machine, router: VM) -> None:
    folder = machine.host.folder / "cni"
    folder.mkdir()
    (folder / "70-good.conflist").write_text('{"name": "lan", "plugins": [{"type": "macvlan"}]}')
    (folder / "71-bad.conf").write_text("{")
    try:
        rows = listed(machine, "networks")["cni_networks"]
        networks = {Path(row["file"]).name: row for row in rows}
        assert networks["70-good.conflist"]["plugins"] == ["macvlan"]
        assert networks["71-bad.conf"]["problem"]
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
    output = machine.bosh_cpi("exec", router.cid, "sh", "-c", script).stdout
    assert output.strip() == router.sh(script)


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
        output = _read_until(near, b"vt220")
        os.write(near, b"\r")  # raw: what Enter sends
        output += _read_until(near, b"armed")
        _set_size(near, 44, 150)
        output += _read_until(near, b"44 150")
        assert process.wait(PATIENCE) == 5
    assert b"33 140" in output
    assert b"/dev/pts/" in output
    assert exec_leftovers(machine) == []


@contextmanager
def on_terminal(machine: Machine, *words: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Run `bosh-cpi` on a terminal of 33 lines and 140 columns; yield the terminal's other end."""
    near, far = pty.openpty()
    _set_size(far, 33, 140)
    argv = [str(BOSH_CPI), "-c", f"{machine.host.folder}/cpi.json", *words]
    entered = machine.host.enter("setsid", "--ctty", *argv)  # only it gets Ctrl-C
    # pytest's workers have a size in theirs, which would go before the terminal's.
    size = ("COLUMNS", "LINES")
    environment = {key: value for key, value in os.environ.items() if key not in size}
    environment["TERM"] = "vt220"
    process = subprocess.Popen(entered, stdin=far, stdout=far, stderr=far, env=environment)
    with ended(process):
        os.close(far)
        try:
            yield process, near
        finally:
            os.close(near)  # remaining processes get SIGHUP


def _set_size(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    output, end = b"", time.monotonic() + PATIENCE
    while wanted not in output:
        assert select.select([descriptor], [], [], max(0, end - time.monotonic()))[0], output
        output += os.read(descriptor, 4096)
    return output


# Prints its process id on that host, then becomes the program.
_PRINT_PID = "import os, sys; print(os.getpid(), flush=True); os.execv(sys.argv[1], sys.argv[1:])"


@contextmanager
def running(machine: Machine, *words: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Yield a running `bosh-cpi` and its process id on that host; end it afterwards."""
    argv = [str(BOSH_CPI), "-c", f"{machine.host.folder}/cpi.json", *words]
    entered = machine.host.enter(sys.executable, "-c", _PRINT_PID, *argv)
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
    output = machine.bosh_cpi("logs", ROUTER, "--file", "web/out.log", "--lines", "3").stdout
    assert output.split() == ["498", "499", "500"]
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
        usage = {row["cid"]: row for row in listed(machine, "top", "--interval", "1")}
    finally:
        router.sh(f"kill {pid}")
    assert set(usage) == {router.cid, db.cid}
    used = usage[router.cid]
    assert used["cpu_percent"] > 10
    assert used["instance"] == ROUTER
    assert used["memory_limit_bytes"] == 512 << 20
    assert 0 < used["memory_bytes"] < 512 << 20
    assert used["pids"] >= 2
    assert used["disk_bytes"] > 0
    for words in (["--once"], []):  # a pipe gets one table anyway
        table = machine.bosh_cpi("top", *words, "--interval", "0.2").stdout
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


# A VM that does not run. These tests are the last ones, since it stays stopped.


@pytest.fixture(scope="module")
def stopped(machine: Machine, router: VM) -> VM:
    router.sh("mkdir -p /var/vcap/sys/log/web; echo last words > /var/vcap/sys/log/web/err.log")
    router.sh("mkdir -p /var/vcap/data/root_log; echo of data > /var/vcap/data/root_log/messages")
    machine.ctr("tasks", "kill", "--signal", "KILL", router.cid)
    wait_for(lambda: "STOPPED" in machine.ctr("tasks", "ls"), "the end of the VM")
    return router


def test_a_vm_that_does_not_run(machine: Machine, stopped: VM, db: VM) -> None:
    states = {vm["cid"]: vm["state"] for vm in listed(machine, "vms")}
    assert states == {stopped.cid: "stopped", db.cid: "running"}
    finding = check(machine, "VMs that do not run")
    assert (finding["status"], ROUTER in finding["message"]) == ("warning", True)
    assert finding["fix"] == "bosh -d cf cloud-check --resolution=reboot_vm"
    done = machine.bosh_cpi("exec", ROUTER, "--", "true", check=False)
    assert (done.returncode, "does not run" in done.stderr) == (1, True)


def test_logs_of_a_vm_that_does_not_run(machine: Machine, stopped: VM) -> None:
    output = machine.bosh_cpi("logs", ROUTER).stdout
    assert "==> /var/vcap/bosh/log/current <==" in output
    assert "listening on port" in output
    assert "of data" in output
    assert machine.bosh_cpi("logs", ROUTER, "--file", "web/err.log").stdout == "last words\n"
    mounts = machine.host.run("cat", "/proc/self/mountinfo").stdout
    assert f"{machine.host.folder}/run/rootfs" not in mounts


def test_state_of_before_a_restart(machine: Machine, router: VM) -> None:
    assert check(machine, "after a restart")["status"] == "ok"
    # As when run_dir, which is in memory, is empty again.
    path = machine.host.write_config("fresh.json", run_dir=str(machine.host.folder / "fresh"))
    finding = check(machine, "after a restart", path)
    assert (finding["status"], router.cid in finding["message"]) == ("warning", True)
