"""Folders of the host in a VM: the service's socket for guests, and mounts."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from testing.patience import PATIENCE
from tests.support.containerd.machine import VM, CallFailed, Machine

SOCKET = "/var/vcap/bosh-cpi/cpi.sock"

# Any user may use the service; the director's user is vcap.
_AS_USER = "setpriv --reuid 1000 --regid 1000 --clear-groups"
_TALK = f"""
{_AS_USER} python3 -c '
import socket, sys
with socket.socket(socket.AF_UNIX) as it:
    it.connect(sys.argv[1])
    print(it.recv(100).decode())
' """


@pytest.fixture
def shared(machine: Machine) -> Iterator[Path]:
    """Yield a folder of the host with a folder of files and a symbolic link."""
    folder = machine.host.folder / "shared"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_text("of the host")
    (folder / "link").symlink_to("/etc")
    yield folder
    machine.delete_all()
    assert list(folder.glob("*/file"))  # deleting VMs deletes nothing of the host's
    machine.host.run("rm", "-r", str(folder))


@contextmanager
def service(machine: Machine, greeting: str) -> Iterator[None]:
    """Run a stand-in for the host's service that greets the first connection."""
    path = machine.host.folder / "run" / "guest" / "cpi.sock"
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(PATIENCE)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(greeting.encode())

        answering = thread.submit(answer)
        yield
        answering.result()
        path.unlink()


def test_any_user_of_a_vm_reaches_the_service(machine: Machine, stemcell: str, clean: None) -> None:
    properties = {"host_service": True}
    response = machine.host.cpi("create_vm", "agent", stemcell, properties, {}, [], {})
    vm = VM(machine, response["result"][0], {})
    machine.vms.append(vm)
    assert "nothing listens at" in response["log"]  # but it may come later
    with service(machine, "hello"):
        assert vm.sh(_TALK + SOCKET) == "hello"
    with service(machine, "hello from the next one"):
        assert vm.sh(_TALK + SOCKET) == "hello from the next one"
    machine.call("reboot_vm", vm.cid)
    with service(machine, "hello after the reboot"):
        # In a separate namespace, as BPM gives it to jobs.
        inner = f"mkdir /mnt/cpi && mount --bind /var/vcap/bosh-cpi /mnt/cpi && {_TALK}"
        done = vm.sh(f"cat > /root/script <<'EOF'\n{inner}/mnt/cpi/cpi.sock\nEOF\n"
                     "unshare --mount --pid --fork sh -e /root/script")  # fmt: skip
        assert done == "hello after the reboot"
    with pytest.raises(AssertionError, match="Read-only file system"):
        vm.sh("touch /var/vcap/bosh-cpi/cpi.sock")
    assert vm.sh("ls -A /var/vcap/bosh-cpi") == ""
    # The container runtime's socket is not in it.
    assert "containerd" not in vm.sh("cat /proc/mounts | grep -v overlay")


def test_a_vm_without_the_property_has_no_such_folder(make_vm: Callable[..., VM]) -> None:
    assert make_vm().sh("ls /var/vcap/bosh-cpi 2>&1 || true").endswith("No such file or directory")


def test_mounts_of_the_host(make_vm: Callable[..., VM], shared: Path) -> None:
    data = shared / "data"
    mounts = [
        {"host": str(data), "vm": "/mnt/read"},
        {"host": str(data), "vm": "/var/vcap/shared", "read_only": False},
    ]
    vm = make_vm(properties={"mounts": mounts})
    for _ in range(2):
        assert vm.sh("cat /mnt/read/file") == "of the host"
        with pytest.raises(AssertionError, match="Read-only file system"):
            vm.sh("touch /mnt/read/new")
        vm.sh("echo of the VM > /var/vcap/shared/new")
        assert (data / "new").read_text() == "of the VM\n"
        options = vm.sh("grep /var/vcap/shared /proc/mounts").split()[3].split(",")
        assert {"rw", "nosuid", "nodev"} <= set(options)
        # A process that may write there could replace it by a link; a reboot does not follow it.
        data.rename(shared / "moved")
        data.symlink_to("/etc")
        vm.machine.call("reboot_vm", vm.cid)
        assert vm.sh("ls /mnt/read") == "file\nnew"
        data.unlink()
        (shared / "moved").rename(data)
    vm.delete()
    assert (data / "file").read_text() == "of the host"


@pytest.mark.parametrize("contained", [True, False], ids=["contained", "privileged"])
def test_root_in_a_vm_cannot_change_what_is_mounted_read_only(
    make_vm: Callable[..., VM], shared: Path, contained: bool
) -> None:
    mounts = [
        {"host": str(shared / "data"), "vm": "/mnt/read"},
        {"host": str(shared), "vm": "/mnt/write", "read_only": False},
    ]
    vm = make_vm(properties={"mounts": mounts, "privileged": not contained})
    script = "mount -o remount,bind,rw /mnt/read && touch /mnt/read/new && rm /mnt/read/new"
    if contained:
        with pytest.raises(AssertionError, match="permission denied"):
            vm.sh(script)
    else:
        vm.sh(script)
    assert vm.sh("cat /mnt/read/file; stat -c %u:%g /mnt/read/file") == "of the host0:0"
    vm.sh("touch /mnt/write/new && rm /mnt/write/new")


def test_what_cannot_be_mounted_is_named(
    machine: Machine, stemcell: str, shared: Path, clean: None
) -> None:
    for host, problem in {
        shared / "link": f"{shared}/link: it is no folder, or a symbolic link",
        shared / "link" / "ssl": f"{shared}/link: it is no folder, or a symbolic link",
        shared / "data" / "file": f"{shared}/data/file: it is no folder, or a symbolic link",
        shared / "gone": f"{shared}/gone: No such file or directory",
    }.items():
        with pytest.raises(CallFailed) as caught:
            machine.create_vm(stemcell, {"mounts": [{"host": str(host), "vm": "/mnt"}]})
        assert caught.value.type == "CloudError"
        assert f"the host's folder {host} cannot be mounted: {problem}" in caught.value.message
