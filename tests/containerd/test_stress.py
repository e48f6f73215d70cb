"""Many calls at once, as a director makes them."""

from concurrent.futures import ThreadPoolExecutor

from tests.containerd.machine import Machine

VMS = 50
AT_ONCE = 8


def test_fifty_vms_eight_at_a_time(machine: Machine, stemcell: str, clean: None) -> None:
    networks = {"n": {"type": "dynamic"}}

    def life(number: int) -> tuple[str, str]:
        cid, actual = machine.call(
            "create_vm", f"agent-{number}", stemcell, {"ephemeral_disk": 32}, networks, [], {}
        )
        assert machine.call("has_vm", cid)
        machine.call("delete_vm", cid)
        assert not machine.call("has_vm", cid)
        return cid, actual["n"]["ip"]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        lives = list(pool.map(life, range(VMS)))
    assert len({cid for cid, _ in lives}) == VMS


def test_one_disk_wanted_by_four_vms_at_once(machine: Machine, stemcell: str, clean: None) -> None:
    vms = [machine.create_vm(stemcell) for _ in range(4)]
    disk = machine.create_disk()

    def attach(number: int) -> bool:
        response = machine.host.cpi("attach_disk", vms[number % 4].cid, disk)
        return response["error"] is None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        won = {number % 4 for number, ok in enumerate(pool.map(attach, range(8))) if ok}
    assert len(won) == 1
