"""What root in a VM tries against the host. Each attack must fail in a VM as it is by default.

Each is also shown to work where that protection is off, so that the test can fail: in a VM without
a user namespace, in a privileged one, or on the host itself.
"""

from collections.abc import Iterator

import pytest

from tests.support.containerd import attacks
from tests.support.containerd.attacks import ATTACKS, EXPOSED, HOST, Attack
from tests.support.containerd.machine import VM, Machine


@pytest.fixture(scope="module", params=["runit", "systemd"])
def contained(
    machine: Machine, stemcell: str, systemd: str, before: None, request: pytest.FixtureRequest
) -> VM:
    """Return a VM as it is by default."""
    return _attacker(machine, systemd if request.param == "systemd" else stemcell)


@pytest.fixture(scope="module")
def exposed(machine: Machine, stemcell: str, before: None) -> VM:
    """Return a VM without a user namespace."""
    containerd = {**machine.host.config()["containerd"], "user_namespaces": "off"}
    machine.host.write_config(containerd=containerd)
    try:
        return _attacker(machine, stemcell)
    finally:
        machine.host.write_config()


@pytest.fixture(scope="module")
def privileged(machine: Machine, stemcell: str, before: None) -> VM:
    return _attacker(machine, stemcell, privileged=True)


@pytest.fixture
def secret() -> Iterator[None]:
    with attacks.secret():
        yield


def _attacker(machine: Machine, stemcell: str, **properties: object) -> VM:
    wanted = {"memory": 512, "ephemeral_disk": 32, "host_service": True, **properties}
    return machine.create_vm(stemcell, wanted)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_root_in_a_vm_cannot_do_this(contained: VM, secret: None, attack: Attack) -> None:
    assert not _succeeds(contained, attack)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_attack_works_without_protection(
    machine: Machine, exposed: VM, privileged: VM, secret: None, attack: Attack
) -> None:
    if attack.works == HOST:
        done = machine.host.run("sh", "-c", attack.script, check=False)
        assert done.returncode == 0, done.stderr
    else:
        assert _succeeds(exposed if attack.works == EXPOSED else privileged, attack)


def _succeeds(vm: VM, attack: Attack) -> bool:
    done = vm.machine.bosh_cpi("exec", vm.cid, "--", "sh", "-c", attack.script, check=False)
    return done.returncode == 0
