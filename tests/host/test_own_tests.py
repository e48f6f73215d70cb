"""The project's own integration tests that depend on the host's kernel, on this host."""

import pytest

from tests.support.installed_cpi import InstalledCpi

CONTAINERD = "tests/integration/containerd"
SUBJECTS = {
    "limits": [f"{CONTAINERD}/test_limits.py"],
    "init systems": [f"{CONTAINERD}/test_vms.py", "-k", "boots or cgroups or privilege"],
    "networks": [f"{CONTAINERD}/test_networks.py", "-k", "outside or forwards or reach or ipv6"],
    "disks": [f"{CONTAINERD}/test_disk_changes.py", "-k", "grows_with or in_use or fsck"],
    "nested jobs": [f"{CONTAINERD}/test_nested_jobs.py"],
    "restart": [f"{CONTAINERD}/test_restart.py", "-k", "are_back"],
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_tests_pass_on_this_host(installed: InstalledCpi, subject: str) -> None:
    shown = installed.tests(*SUBJECTS[subject])
    assert " passed" in shown
    assert " skipped" not in shown
