"""The service from start to end: sockets, log, metrics, configuration, secrets."""

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.hosts.private_host import PrivateHost
from testing.hosts.private_service import BOSH_CPI, Service, ThinClient
from testing.patience import PATIENCE, wait_for
from tests.integration.service.conftest import ADDRESS, APART, AS_NOBODY, GROUP, PORT
from tests.support.certificates import CA
from tests.support.containerd.machine import VM, Machine
from tests.support.processes import ended

SECRET = "s3cret-of-the-bus"  # noqa: S105 - only of these tests
NETWORKS = {"default": {"type": "dynamic"}}


@pytest.fixture
def vm(service: Service, machine: Machine, image: Path) -> Iterator[VM]:
    """Yield a VM of a client whose configuration and manifest have secrets."""
    client = service.client(agent={"mbus": f"https://mbus:{SECRET}@0.0.0.0:6868"})
    context = {"request_id": "cpi-424242", "director_uuid": "tests"}
    stemcell = client("create_stemcell", str(image), {}, context=context)["result"]
    env = {"bosh": {"password": SECRET}}
    arguments: list[object] = ["agent-1", stemcell, {"ephemeral_disk": 64}, NETWORKS, [], env]
    made = client("create_vm", *arguments, context=context)
    assert made["error"] is None
    assert SECRET not in json.dumps(made)
    yield VM(machine, made["result"][0], made["result"][1])
    assert client("delete_vm", made["result"][0])["error"] is None


def test_the_clients_configuration_reaches_the_vm_and_no_log(vm: VM, service: Service) -> None:
    settings = json.loads(vm.sh("cat /var/vcap/bosh/warden-cpi-agent-env.json"))
    assert settings["mbus"] == f"https://mbus:{SECRET}@0.0.0.0:6868"
    log = service.log.read_text()
    assert SECRET not in log
    assert "[local cpi-424242] 2" in log
    assert "create_vm done in " in log


def _count(service: Service, labels: str) -> float:
    """Return a counter of /metrics, 0 before its first call."""
    lines = [line for line in service.get("/metrics").splitlines() if labels in line]
    return float(lines[0].split()[-1]) if lines else 0


def test_a_failed_call_is_logged_and_counted_by_its_type(service: Service) -> None:
    not_found = 'method="reboot_vm",outcome="VMNotFound"}'
    before = _count(service, not_found)
    error = service.client()("reboot_vm", "containerd-vm-0")["error"]
    assert error["type"] == "Bosh::Clouds::VMNotFound"
    assert "reboot_vm failed after" in service.log.read_text()
    assert _count(service, not_found) == before + 1
    service.client()("format_c", "x")
    assert _count(service, 'method="unknown",outcome="InvalidCall"}') >= 1
    assert "format_c" not in service.get("/metrics")


def test_metrics_of_vms_disks_and_bytes(vm: VM, service: Service) -> None:
    disk = service.client()("create_disk", 64, {}, vm.cid)["result"]
    figures = dict(line.rsplit(" ", 1) for line in service.get("/metrics").split("\n") if line)
    assert figures["bosh_cpi_vms"] == "1.0"
    assert figures["bosh_cpi_disks"] == "1.0"
    assert float(figures["bosh_cpi_disk_size_bytes"]) == 64 << 20
    assert 0 < float(figures["bosh_cpi_disk_allocated_bytes"]) <= 64 << 20
    assert float(figures["bosh_cpi_uploaded_bytes_total"]) > 0
    assert float(figures['bosh_cpi_call_duration_seconds_count{method="create_vm"}']) >= 1
    assert service.client()("delete_disk", disk)["error"] is None


def test_nothing_of_an_upload_stays(vm: VM, machine: Machine) -> None:
    assert list((machine.host.state / "uploads").iterdir()) == []


def test_health(service: Service) -> None:
    health = json.loads(service.get("/healthz"))
    assert health["status"] == "ok"
    assert health["protocol"] == "v1"


def test_only_the_group_may_use_the_socket(service: Service) -> None:
    status = service.socket.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == 65534
    stranger = ("setpriv", "--reuid", "65534", "--regid", "100", "--clear-groups", "--")
    error = service.client(*stranger)("has_vm", "containerd-vm-0")["error"]
    assert "may not use the socket" in error["message"]
    assert "service.socket_group" in error["message"]
    assert error["ok_to_retry"] is False


def test_the_guests_socket_is_out_of_reach_on_the_host(service: Service, host: PrivateHost) -> None:
    guest = host.folder / "run" / "guest" / "cpi.sock"
    assert stat.S_IMODE(guest.stat().st_mode) == 0o666
    client = service.client(*AS_NOBODY, endpoint=f"unix://{guest}")
    assert "may not use the socket" in client("has_vm", "containerd-vm-0")["error"]["message"]
    # Root reaches it, as those in VMs do; they learn nothing of other clients.
    assert "bosh_cpi_calls" not in service.get("/metrics", guest)
    assert '"status": "ok"' in service.get("/healthz", guest)
    assert service.client(endpoint=f"unix://{guest}")("has_vm", "x")["result"] is False


def test_two_services_on_one_socket_are_refused(service: Service, host: PrivateHost) -> None:
    done = host.run(str(BOSH_CPI), "--config", str(service.config), "serve", check=False)
    assert done.returncode == 1
    assert "another service listens on" in done.stderr
    assert service.client()("has_vm", "containerd-vm-0")["result"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"socket_group": "no-such-group"}, "groupadd -r no-such-group"),
        ({"tcp": "127.0.0.1:0"}, "needs service.tls_certificate"),
        ({"tcp": "nonsense"}, "service.tcp must be"),
        ({"socket_mode": "rw"}, "service.socket_mode must be"),
        ({"max_calls": 0}, "service.max_calls must be a whole number, 1 or more"),
        ({"sockets": "x"}, "unknown keys: 'service.sockets' (did you mean service.socket"),
    ],
)
def test_a_wrong_configuration_is_refused_at_the_start(
    host: PrivateHost, settings: dict[str, object], message: str
) -> None:
    own = {"run_dir": str(host.folder / "other-run")}
    config = host.write_config("wrong.json", service=settings, **own)
    done = host.run(str(BOSH_CPI), "--config", str(config), "serve", check=False)
    assert done.returncode == 1
    assert message in done.stderr


def test_sighup_reloads_certificates(
    service: Service, authority: CA, settings: dict[str, object], host: PrivateHost
) -> None:
    """A client that trusts only another CA works once the service has that CA's certificate."""
    new = CA(host.folder / "renewed")
    pair = new.server(ADDRESS)
    client = authority.client("renewer")
    tls = {**authority.settings(client), "ca": str(new.certificate)}
    endpoint = f"https://{ADDRESS}:{PORT}"
    calling = service.client(*APART, endpoint=endpoint, tls=tls)
    assert "not to be trusted" in calling("has_vm", "containerd-vm-0")["error"]["message"]
    files = [Path(str(settings[key])) for key in ("tls_certificate", "tls_private_key")]
    before = [file.read_bytes() for file in files]
    try:
        for file, fresh in zip(files, (pair.certificate, pair.key), strict=True):
            file.write_bytes(fresh.read_bytes())
        _reload(service)
        assert calling("has_vm", "containerd-vm-0")["result"] is False
    finally:
        for file, old in zip(files, before, strict=True):
            file.write_bytes(old)
        _reload(service)


def _reload(service: Service) -> None:
    reloads = service.log.read_text().count("certificates are read anew")
    os.kill(service.pid, signal.SIGHUP)
    wait_for(
        lambda: service.log.read_text().count("certificates are read anew") > reloads, "the reload"
    )


def test_systemd_opens_the_socket(host: PrivateHost, service: Service) -> None:
    """As systemd.socket(5) does: calls wait in the socket until the service takes them."""
    path = host.folder / "activated.sock"
    own = {"run_dir": str(host.folder / "activated-run")}
    settings = {"socket_mode": "0666", "socket_group": GROUP}
    config = host.write_config("activated.json", service=settings, **own)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        client = ThinClient(host, service.zipapp, {"endpoint": f"unix://{path}"})
        script = 'exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        argv = ["sh", "-c", script, "sh", str(BOSH_CPI), "--config", str(config), "serve"]
        with (
            ended(client.started("has_vm", "containerd-vm-0")) as waiting,
            ended(
                subprocess.Popen(
                    host.enter(*argv), stdin=listening.fileno(), stderr=subprocess.PIPE
                )
            ) as serving,
        ):
            answered, _ = waiting.communicate(timeout=PATIENCE)
            children = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            serving.communicate(timeout=PATIENCE)
    assert json.loads(answered)["result"] is False
    status = path.stat()  # it is systemd's, and stays
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o666, 65534)
