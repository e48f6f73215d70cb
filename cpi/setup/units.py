"""systemd's units of the service and of the VMs, as this installation and its configuration need.

The files beside this module are those of an installation in /opt with the default configuration.
"""

from ipaddress import ip_address
from pathlib import Path

from cpi.config.config import Config
from cpi.host import guest_socket
from cpi.host.layout import Layout
from cpi.service.sockets import main_socket
from cpi.setup.installation import program
from cpi.setup.steps import CONFIG, Step, System, written

SERVICE = "bosh-containerd-cpi.service"
SOCKET = "bosh-containerd-cpi.socket"
VMS = "bosh-containerd-cpi-vms.service"
UNITS = (SERVICE, SOCKET, VMS)
FOLDER = "/etc/systemd/system"

_TEMPLATES = Path(__file__).with_name("systemd")
_PROGRAM = "/opt/bosh-containerd-cpi/current/bin/bosh-cpi"
_MAIN, _GUEST = "/run/bosh-containerd-cpi.sock", "/run/bosh-containerd-cpi/guest/cpi.sock"


def rendered(name: str, config: Config, config_file: str) -> str:
    """Return a unit's text."""
    text = (_TEMPLATES / name).read_text()
    guest = Layout.of(config).guest / guest_socket.SOCKET
    for default, own in (
        (f"={_GUEST}\n", f"={guest}\n"),
        (f"={_MAIN}\n", f"={main_socket(config)}\n"),
        (_PROGRAM, program()),
        (CONFIG, config_file),
    ):
        text = text.replace(default, own)
    return text.replace(f"={guest}\n", f"={guest}\n{_tcp(config)}", 1) if name == SOCKET else text


def _tcp(config: Config) -> str:
    """Return the lines for the service's TCP address; none for a host's name: systemd takes none.

    FreeBind: the socket is bound when the host starts, perhaps before the network has the address.
    """
    address = config.text("service.tcp")
    try:
        ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return ""
    return f"ListenStream={address}\nFreeBind=yes\nKeepAlive=yes\n"


def install(system: System, config: Config, config_file: str) -> list[Step]:
    """Return the steps that install the units, and have the VMs shut down with the host.

    Whether the service is wanted is left to the operator.
    """
    changes = {
        name: written(system, f"{FOLDER}/{name}", rendered(name, config, config_file))
        for name in UNITS
    }
    other_sockets = bool(changes[SOCKET]) and system.path(f"{FOLDER}/{SOCKET}").exists()
    steps = [step for change in changes.values() for step in change]
    if steps:
        steps.append(
            Step("systemctl daemon-reload", lambda: system.run("systemctl", "daemon-reload"))
        )
    if other_sockets:
        # With the service, which requires it: what runs keeps its sockets otherwise.
        again = ("systemctl", "try-restart", SOCKET)
        steps.append(Step(" ".join(again), lambda: system.run(*again)))
    if steps or not _is_enabled(system, VMS):
        words = ("systemctl", "enable", "--now", VMS)
        steps.append(Step(" ".join(words), lambda: system.run(*words)))
    return steps


def remove(system: System) -> list[Step]:
    """Return the steps that stop, disable and remove the units; VMs that run are shut down."""
    there = [name for name in UNITS if system.path(f"{FOLDER}/{name}").exists()]
    if not there:
        return []
    words = ("systemctl", "disable", "--now", *there)
    return [
        Step(" ".join(words), lambda: system.run(*words)),
        *(
            Step(f"remove {FOLDER}/{name}", system.path(f"{FOLDER}/{name}").unlink)
            for name in there
        ),
        Step("systemctl daemon-reload", lambda: system.run("systemctl", "daemon-reload")),
    ]


def is_installed(system: System) -> bool:
    """Tell whether systemd knows the service."""
    return system.has_systemd and system.path(f"{FOLDER}/{SERVICE}").exists()


def _is_enabled(system: System, name: str) -> bool:
    return system.path(f"{FOLDER}/multi-user.target.wants/{name}").is_symlink()
