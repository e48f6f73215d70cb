"""`make install` over an installed CPI, while calls are made."""

from pathlib import Path

from testing.hosts.guest_image import CHECKOUT
from tests.support.installed_cpi import CONFIG, SERVICE, SOCKET, SOCKET_PATH, InstalledCpi

CALLER = Path(__file__).with_name("upgrade_caller.py")
NEXT = "99.0.0"


def test_no_call_fails_during_an_upgrade(cpi: InstalledCpi, runit: str) -> None:
    """Neither in process nor through the service, whose socket waits while it restarts."""
    guest = cpi.guest
    vm, address = cpi.create_vm(runit)
    guest.run("systemctl", "stop", SERVICE)
    guest.run("systemctl", "enable", "--now", SOCKET)
    guest.run("systemctl", "start", SERVICE)
    guest.run("tee", "/root/caller.py", input=CALLER.read_text())
    caller = ["python3", "/root/caller.py", CONFIG, f"unix://{SOCKET_PATH}", vm, "/root/calls"]
    guest.run("systemd-run", "--quiet", "--unit=caller", *caller)
    bump = ["sed", "-i", f's/^version = .*/version = "{NEXT}"/', f"{CHECKOUT}/pyproject.toml"]
    guest.run(*bump)
    guest.install()
    guest.run("systemctl", "restart", SERVICE)
    guest.run("systemctl", "stop", "caller")
    lines = guest.sh("cat /root/calls").splitlines()
    made = {way: [line for line in lines if line.startswith(way)] for way in ("cpi", "service")}
    assert [line for line in lines if not line.endswith(" ok")] == []
    assert min(len(calls) for calls in made.values()) > 10
    assert NEXT in cpi.bosh_cpi("--version").stdout
    cpi.wait_for_agent(address)
    assert cpi.call("has_vm", vm) is True
    guest.run("systemctl", "disable", "--now", SOCKET)
    guest.run("systemctl", "restart", SERVICE)
