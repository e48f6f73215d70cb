"""The project's own integration tests that depend on the host's kernel, on this host."""

from tests.support.installed_cpi import InstalledCpi

# In one run: what they share, such as an imported stemcell, takes minutes in emulation. Disks and
# firewalls have tests of their own here.
FILES = (
    *("containerd/test_limits.py", "containerd/test_vms.py", "containerd/test_networks.py"),
    *("containerd/test_nested_jobs.py", "upkeep/test_restart.py"),
)
CHOSEN = "test_limits or boots or own_cgroups or privilege or ipv6 or are_back or test_nested_jobs"


def test_tests_pass_on_this_host(installed: InstalledCpi) -> None:
    shown = installed.tests("-k", CHOSEN, *(f"tests/integration/{name}" for name in FILES))
    assert " passed" in shown
    assert " skipped" not in shown
