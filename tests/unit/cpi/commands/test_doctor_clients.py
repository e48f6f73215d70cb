"""`bosh-cpi doctor` for the clients of the host's service."""

from pathlib import Path

from cpi.commands import host_checks
from cpi.commands.host_checks import Host
from cpi.config.config import Config
from cpi.config.load import config_of
from cpi.findings import FAILURE, Finding


def clients(host: Host) -> Finding:
    return next(finding for finding in host_checks.CHECKS.run(host) if finding.check == "clients")


def test_clients_and_what_they_have(config: Config) -> None:
    assert clients(Host(config)).message.startswith("rules for none, so the defaults hold; none")
    folder = Path(config.text("state_dir")) / "clients" / "guest"
    folder.mkdir(parents=True)
    for name in ("fake-vm-1", "fake-vm-2", "fake-disk-1", "pending-0123"):
        (folder / name).touch()
    assert "guest: 1 disks, 2 vms" in clients(Host(config)).message


def test_a_wrong_rule_is_named(tmp_path: Path) -> None:
    wrong = config_of({"state_dir": str(tmp_path), "service": {"clients": {"a": {"prots": []}}}})
    finding = clients(Host(wrong))
    assert (finding.status, finding.fix) == (FAILURE, "edit service.clients in cpi.json")
    assert "prots" in finding.message
