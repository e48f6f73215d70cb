"""The guests' socket as VMs in user namespaces have it, and what root there can do to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.hosts.private_service import Service
from tests.support.containerd.machine import VM, Machine

FOLDER = "/var/vcap/bosh-cpi"
SOCKET = f"{FOLDER}/cpi.sock"

_AS_VCAP = "setpriv --reuid 1000 --regid 1000 --clear-groups --"
_ASKS = f"""{_AS_VCAP} python3 -c '
import http.client, socket
connection = http.client.HTTPConnection("x")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("{SOCKET}")
connection.request("GET", "/healthz")
print(connection.getresponse().status)'"""

# Each must fail. The last ones would leave another socket for the VMs that come later.
REPLACEMENTS = (
    f"rm -f {SOCKET}",
    f"mv {SOCKET} {SOCKET}.old",
    f"chmod 777 {FOLDER}",
    f"chown 1000 {SOCKET}",
    f"mount -o remount,rw {FOLDER}",
    f"mount -o remount,bind,rw {FOLDER}",
    f"mount --bind {FOLDER} /mnt && mount -o remount,bind,rw /mnt && rm -f /mnt/cpi.sock",
    f"unshare --user --map-root-user --mount sh -c 'mount -o remount,bind,rw {FOLDER}'",
)


@pytest.fixture
def guests(machine: Machine, service: Service, image: Path) -> Iterator[list[VM]]:
    """Yield two VMs that have the socket."""
    stemcell = machine.call("create_stemcell", str(image), {})
    yield [machine.create_vm(stemcell, {"host_service": True}) for _ in range(2)]
    machine.delete_all()


def test_root_in_a_vm_has_the_socket_and_cannot_replace_it(
    guests: list[VM], machine: Machine
) -> None:
    attacker, other = guests
    assert attacker.sh("cat /proc/1/uid_map").split()[1] != "0"
    assert attacker.sh(f"stat -c '%a %u:%g' {FOLDER} {SOCKET}") == "755 0:0\n666 0:0"
    path = machine.host.folder / "run" / "guest" / "cpi.sock"
    before = path.stat()
    for script in REPLACEMENTS:
        with pytest.raises(AssertionError):
            attacker.sh(script)
    after = path.stat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (
        before.st_ino,
        before.st_mode,
        before.st_uid,
    )
    # What it mounts is in its own view.
    attacker.sh(f"mount -t tmpfs none {FOLDER}")
    assert other.sh(_ASKS) == "200"
    attacker.sh(f"umount {FOLDER}")
    assert attacker.sh(_ASKS) == "200"
