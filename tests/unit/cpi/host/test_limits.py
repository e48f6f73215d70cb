"""The kernel's limits: the table, and what is left of them on this kernel."""

import subprocess
import sys

import pytest

from cpi.errors import VMCreationFailed
from cpi.host import headroom, limits
from cpi.host.limits import LIMITS, PID_MAX, Limit, sysctls
from testing.repository import REPOSITORY


def test_what_vms_need_grows_with_their_number() -> None:
    few, many = sysctls(10), sysctls(500)
    assert few["fs.inotify.max_user_instances"] == 128 + 10 * 16
    assert all(few[name] <= many[name] for name in few)
    assert sysctls(1_000_000)[PID_MAX.sysctl] == 1 << 22, "the most that the kernel takes"


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.sysctl)
def test_this_kernel_has_each_of_them(limit: Limit) -> None:
    if limit.module or not limit.path.exists():
        pytest.skip("of a module, or not in this network namespace")
    current = limit.current()
    assert current is not None
    assert current > 0


def test_a_limit_that_this_kernel_lacks_has_no_value() -> None:
    assert Limit("kernel.nosuch", 1, 1, "things").current() is None


def test_this_host_has_room_and_its_use_can_be_read() -> None:
    assert headroom.exhausted(systemd=False) is None
    headroom.require(100, systemd=False)
    used = {limit.sysctl: read() for limit, read, _ in headroom._COUNTED}
    assert used["kernel.pid_max"] == used["kernel.threads-max"]
    assert all(number is None or number > 0 for number in used.values())
    assert used["kernel.pid_max"] is not None
    assert used["fs.file-max"] is not None


@pytest.mark.parametrize("limit", [limit for limit, _, _ in headroom._COUNTED])
def test_a_counted_limit_that_is_reached_is_named(
    limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = limit.current()
    if most is None:
        pytest.skip("not in this network namespace")
    counted = [
        (each, (lambda: most) if each is limit else (lambda: 0), needed)
        for each, _, needed in headroom._COUNTED
    ]
    monkeypatch.setattr(headroom, "_COUNTED", counted)
    with pytest.raises(VMCreationFailed) as caught:
        headroom.require(100, systemd=False)
    assert f"{limit.sysctl}={most}" in caught.value.message
    assert caught.value.ok_to_retry is (limit is limits.NEIGHBOURS)
    raised = int(headroom.fix(limit, 100).rpartition("=")[2])
    assert raised > most or raised == limit.maximum
    assert f"sysctl -w {limit.sysctl}={raised}" in caught.value.message


# In a user namespace, whose own limit on instances is lowered: the host's is left alone.
_FEW = """
echo {} > /proc/sys/user/max_inotify_instances
exec "$0" -c 'from cpi.host import headroom as h; print(h.exhausted(systemd=True))'
"""


@pytest.mark.parametrize(("instances", "reached"), [(4, True), (64, False)])
def test_inotify_instances_are_probed(instances: int, reached: bool) -> None:
    argv = ["unshare", "--user", "--map-root-user", "sh", "-c", _FEW.format(instances)]
    done = subprocess.run(
        [*argv, sys.executable], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr:
        pytest.skip("this host has no user namespaces")
    assert ("fs.inotify.max_user_instances" in done.stdout) is reached, done.stderr
