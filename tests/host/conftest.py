"""A guest host with the CPI installed, which all tests of this folder share.

BOSH_CPI_TEST_HOST says what runs: unset nothing, `brief` the tests in test_installed.py, `all`
everything (`make test-host`). BOSH_CPI_TEST_HOST_SUITE names Debian's suite, and
BOSH_CPI_TEST_HOST_LOGS a folder in which the guest's console and journal are kept.

BOSH_CPI_TEST_HOST_PORT: use the guest that is up already, with ssh on this port of 127.0.0.1, as
`python -m testing.hosts.guest_host --stay --port PORT` leaves it, and any of the files:

    BOSH_CPI_TEST_HOST_PORT=2222 .venv/bin/python -m pytest tests/host/test_vm_limits.py
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.hosts.guest_host import GuestHost
from testing.hosts.guest_image import guest_image
from testing.repository import REPOSITORY
from testing.stemcells import stemcell_source
from testing.stemcells.machine_stemcell import stand_in_machine
from tests.support.host_lists import Lists, lists
from tests.support.installed_cpi import SERVICE, InstalledCpi

HERE = Path(__file__).parent
PORT = int(os.environ.get("BOSH_CPI_TEST_HOST_PORT", "0"))
WANTED = os.environ.get("BOSH_CPI_TEST_HOST", "all" if PORT else "")
# In the guest, for later runs of tests in it.
_BEFORE, _INSTALLED = "/root/before-install.json", "/root/installed"
# In this order: what changes the host as a whole comes last.
FILES = (
    *("test_installed.py", "test_vm_limits.py", "test_growing_disks.py", "test_host_networks.py"),
    *("test_apparmor.py", "test_exhausted_host.py", "test_own_tests.py", "test_host_reboot.py"),
    *("test_upgrade.py", "test_cures.py", "test_uninstall.py"),
)

if WANTED != "all":
    collect_ignore = list(FILES[1:])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.integration)
    ordered = iter(sorted(ours, key=lambda item: FILES.index(item.path.name)))
    items[:] = [next(ordered) if item in ours else item for item in items]


@pytest.fixture(scope="session", autouse=True)
def _is_wanted() -> None:
    if WANTED not in ("brief", "all"):
        pytest.skip("boots a guest host, for minutes: only with BOSH_CPI_TEST_HOST=brief or all")
    if os.geteuid() != 0:
        pytest.skip("a guest's image needs root")


@pytest.fixture(scope="session")
def guest(_is_wanted: None) -> Iterator[GuestHost]:
    """Boot a guest; its journal and console are kept in a folder if that is named."""
    image = guest_image(os.environ.get("BOSH_CPI_TEST_HOST_SUITE", "trixie"))
    kept = os.environ.get("BOSH_CPI_TEST_HOST_LOGS")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
    log = Path(kept, "console.log") if kept else None
    for make in (stand_in_systemd, stand_in_runit, stand_in_machine):
        make()  # before the checkout is copied, with the cache
    with GuestHost(image, log=log, port=PORT, running=bool(PORT)) as host:
        host.run("systemctl", "is-system-running", "--wait", check=False)
        try:
            yield host
        finally:
            if kept:
                with Path(kept, "journal.log").open("wb") as file:
                    host.run("journalctl", "--no-pager", "--merge", stdout=file, text=False)


def stand_in_systemd() -> Path:
    return stemcell_source.stand_in("systemd")


def stand_in_runit() -> Path:
    return stemcell_source.stand_in("runit")


@pytest.fixture(scope="session")
def before_install(guest: GuestHost) -> Lists:
    """Return what is on the host before the CPI is installed."""
    kept = guest.sh(f"cat {_BEFORE} 2>/dev/null || :")
    if kept:
        return {kind: set(items) for kind, items in json.loads(kept).items()}
    before = lists(guest)
    guest.run("tee", _BEFORE, input=json.dumps({kind: sorted(before[kind]) for kind in before}))
    return before


@pytest.fixture(scope="session")
def installed(guest: GuestHost, before_install: Lists) -> InstalledCpi:
    """Install the CPI with `make install`, unless this checkout's is there; start its service."""
    guest.put_checkout()
    present = guest.sh(f"cat {_INSTALLED} 2>/dev/null || :")
    if present != (version := _version()):
        guest.install()
        guest.run("tee", _INSTALLED, input=version)
    guest.run("systemctl", "enable", "--now", SERVICE)
    return InstalledCpi(guest)


def _version() -> str:
    """Return a hash of what `make install` installs."""
    files = [REPOSITORY / name for name in ("Makefile", "pyproject.toml", "requirements.lock")]
    for folder in ("cpi", "runtimes", "stemcell_convert", "tools"):
        files += [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    sources = (path for path in files if "__pycache__" not in path.parts)
    return stemcell_source.key_of(sources, REPOSITORY)


@pytest.fixture(scope="module")
def cpi(installed: InstalledCpi) -> Iterator[InstalledCpi]:
    """Delete the VMs and disks of a file's tests, at the latest at their end."""
    yield installed
    installed.delete_all()


@pytest.fixture(scope="session")
def systemd(installed: InstalledCpi) -> str:
    """Upload a stemcell with systemd; return its CID."""
    return installed.stemcell(stand_in_systemd())


@pytest.fixture(scope="session")
def runit(installed: InstalledCpi) -> str:
    """Upload a stemcell with runit; return its CID."""
    return installed.stemcell(stand_in_runit())
