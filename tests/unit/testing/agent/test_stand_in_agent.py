"""The stand-in agent over HTTP on the loopback interface, with a fake mount program."""

import base64
import http.client
import json
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from testing.agent.stand_in_agent import Server, StandInAgent, main
from testing.agent.stand_in_disks import AgentError
from testing.patience import PATIENCE, wait_for

DISK = "/warden-cpi-dev/disk-1"
OTHER = "/warden-cpi-dev/disk-2"


class Mounts:
    """What `mount`, `umount` and `cp` would do; `busy` unmounts fail first."""

    def __init__(self) -> None:
        self.table: list[tuple[str, str]] = [("proc", "/proc")]
        self.calls: list[str] = []
        self.busy = 0

    def __call__(self, argv: Sequence[str]) -> str:
        if list(argv) == ["mount"]:
            return "".join(f"{source} on {point} type x (rw)\n" for source, point in self.table)
        self.calls.append(" ".join(argv))
        if argv[0] == "mount":
            # A bind mount shows what is mounted at its source, not the source.
            shown = next((s for s, point in self.table if point == argv[1]), argv[1])
            self.table.append((shown, argv[2]))
        elif argv[0] == "umount":
            if self.busy:
                self.busy -= 1
                raise AgentError("target is busy")
            mounts = [mount for mount in self.table if argv[1] in mount]
            self.table.remove(mounts[-1])
        return ""


class AgentMachine:
    """A stand-in agent that listens, and a client for it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.mounts = folder, Mounts()
        (folder / "bosh").mkdir(exist_ok=True)
        self.settings = folder / "env.json"
        if settings:
            self.settings.write_text(json.dumps({"agent_id": "agent-1", **settings}))
        linux = {"BindMountPersistentDisk": True, "UsePreformattedPersistentDisk": True}
        source = {"Type": "File", "SettingsPath": str(self.settings)}
        config = {
            "Platform": {"Linux": linux},
            "Infrastructure": {"Settings": {"Sources": [source]}},
        }
        (folder / "agent.json").write_text(json.dumps(config))
        self.agent = StandInAgent(folder / "agent.json", folder, self.mounts)
        self.agent.disks.retry_delay = 0
        self.tls: ssl.SSLContext | None = None
        self.user = "mbus:secret"

    def serve(self) -> Server:
        """Start listening in a thread."""
        server = Server(self.agent)
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Send an HTTP request; return status and body."""
        if self.tls:
            link: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=PATIENCE, context=self.tls
            )
        else:
            link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        word = base64.b64encode(self.user.encode()).decode()
        link.request(method, path, body, {"Authorization": f"Basic {word}"} if self.user else {})
        answer = link.getresponse()
        content = answer.read()
        link.close()
        return answer.status, content

    def ask(self, method: str, *arguments: Any, **more: Any) -> Any:
        """Send a message as BOSH's clients do and return the answer."""
        message = {"method": method, "arguments": arguments, "reply_to": "me", **more}
        status, body = self.request("POST", "/agent", json.dumps(message).encode())
        assert status == 200
        return json.loads(body)

    def do(self, method: str, *arguments: Any) -> Any:
        """Send a message for a slow method and wait for its result."""
        answer = self.ask(method, *arguments)
        assert answer["value"]["state"] == "running"
        task = answer["value"]["agent_task_id"]

        def result() -> list[Any]:
            answer = self.ask("get_task", task)
            value = answer.get("value", answer)
            return [] if isinstance(value, dict) and "agent_task_id" in value else [value]

        return wait_for(result, f"the end of {method}")[0]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[AgentMachine]:
    """Yield a machine whose agent listens on plain HTTP with a password."""
    machine = AgentMachine(tmp_path, mbus="http://mbus:secret@127.0.0.1:0", vm={"name": "vm-1"})
    server = machine.serve()
    yield machine
    server.shutdown()
    server.server_close()


def test_quick_methods_answer_at_once(machine: AgentMachine) -> None:
    assert machine.ask("ping") == {"value": "pong"}
    assert machine.ask("info") == {"value": {"api_version": 1}}
    assert machine.ask("list_disk") == {"value": []}
    state = machine.ask("get_state", "full")["value"]
    assert state["agent_id"] == "agent-1"
    assert state["vm"] == {"name": "vm-1"}
    assert state["job_state"] == "running"
    assert state["networks"] == {}


def test_a_disks_whole_life(machine: AgentMachine) -> None:
    machine.mounts.table.append(("/dev/sdz", DISK))  # by the CPI
    assert machine.do("add_persistent_disk", "d1", DISK) == {}
    assert machine.do("mount_disk", "d1") == {}
    store = str(machine.folder / "store")
    assert machine.mounts.calls == [f"mount {DISK} {store} -o bind"]
    assert machine.ask("list_disk") == {"value": ["d1"]}
    assert (machine.folder / "bosh/managed_disk_settings.json").read_text() == "d1"
    machine.mounts.busy = 2
    assert machine.do("unmount_disk", "d1") == {"message": f"Unmounted partition of {DISK}"}
    assert machine.mounts.calls[1:] == [f"umount {DISK}"] * 3
    # As with the real agent: the CPI's mount is gone, the store's is not.
    assert ("/dev/sdz", store) in machine.mounts.table
    assert machine.do("unmount_disk", "d1") == {"message": f"Partition of {DISK} is not mounted"}
    assert machine.do("remove_persistent_disk", "d1") == {}
    assert machine.ask("list_disk") == {"value": []}


def test_a_second_disk_goes_beside_the_store(machine: AgentMachine) -> None:
    machine.do("add_persistent_disk", "d1", DISK)
    machine.do("add_persistent_disk", "d2", {"path": OTHER})
    machine.do("mount_disk", "d1")
    machine.do("mount_disk", "d2")
    store, beside = (str(machine.folder / name) for name in ("store", "store_migration_target"))
    assert machine.mounts.table[1:] == [(DISK, store), (OTHER, beside)]
    assert machine.do("migrate_disk") == {}
    assert machine.mounts.table[1:] == [(OTHER, store)]
    assert machine.mounts.calls[2:] == [
        f"cp -a {store}/. {beside}",
        f"umount {store}",
        f"umount {beside}",
        f"mount {OTHER} {store} -o bind",
    ]


def test_mount_options_come_from_the_manifest(tmp_path: Path) -> None:
    machine = AgentMachine(
        tmp_path,
        disks={"persistent": {"d1": {"path": DISK}}},
        env={"persistent_disk_mount_options": ["noatime"]},
    )
    machine.agent.perform("mount_disk", ["d1"])
    assert machine.mounts.calls == [f"mount {DISK} {tmp_path / 'store'} -o noatime -o bind"]


def test_partitions_of_devices(tmp_path: Path) -> None:
    machine = AgentMachine(tmp_path, disks={"persistent": {"d1": "/dev/sdb"}})
    machine.agent.disks.whole = machine.agent.disks.bind = False
    for _ in range(2):  # the second time there is nothing left to do
        machine.agent.perform("mount_disk", ["d1"])
    assert machine.mounts.calls == [f"mount /dev/sdb1 {tmp_path / 'store'}"]


def test_what_create_env_asks_for(machine: AgentMachine) -> None:
    assert machine.request("PUT", "/blobs/6d/templates-1", b"data") == (201, b"")
    assert (machine.folder / "data/blobs/templates-1").read_bytes() == b"data"
    assert machine.request("PUT", "/blobs/..", b"data")[0] == 404
    assert machine.do("drain", "shutdown", {}) == 0
    assert machine.do("stop") == "stopped"
    assert machine.ask("get_state")["value"]["job_state"] == "stopped"
    assert machine.do("apply", {"networks": {"a": {}}, "agent_id": "forged"}) == "applied"
    assert machine.do("run_script", "pre-start", {}) == {}
    assert machine.ask("start") == {"value": "started"}
    state = machine.ask("get_state")["value"]
    assert (state["job_state"], state["networks"]) == ("running", {"a": {}})
    assert state["agent_id"] == "agent-1"


def test_failures_are_exceptions(machine: AgentMachine) -> None:
    unknown = machine.ask("compile_package", "x")
    assert unknown == {"exception": {"message": "unknown message compile_package"}}
    lost = machine.ask("get_task", "nope")["exception"]["message"]
    assert lost == "Action Failed get_task: Task with id nope could not be found"
    answer = machine.do("mount_disk", "d9")
    assert "'d9' could not be found" in answer["exception"]["message"]
    assert "TypeError" in machine.do("mount_disk")["exception"]["message"]
    machine.do("add_persistent_disk", "d1", {"volume_id": "1"})
    assert "path is missing" in machine.do("mount_disk", "d1")["exception"]["message"]
    assert machine.ask("ping") == {"value": "pong"}


def test_list_disk_is_slow_in_protocol_3(machine: AgentMachine) -> None:
    assert "agent_task_id" in machine.ask("list_disk", protocol=3)["value"]


def test_http_statuses(machine: AgentMachine) -> None:
    assert machine.request("POST", "/agent", b"not json")[0] == 500
    assert machine.request("POST", "/agent", b"[]")[0] == 500
    assert machine.request("POST", "/other", b"{}")[0] == 404
    machine.user = "mbus:wrong"
    assert machine.request("POST", "/agent", b"{}")[0] == 401
    assert machine.request("PUT", "/blobs/x", b"{}")[0] == 401
    machine.user = ""
    assert machine.request("POST", "/agent", b"{}")[0] == 401


def test_files_are_for_root_only(machine: AgentMachine) -> None:
    machine.do("add_persistent_disk", "d1", DISK)
    machine.do("apply", {})
    for name in ("settings.json", "persistent_disk_hints.json", "spec.json"):
        assert stat.S_IMODE((machine.folder / "bosh" / name).stat().st_mode) == 0o600


def test_hints_survive_a_restart(tmp_path: Path) -> None:
    AgentMachine(tmp_path, vm={}).agent.perform("add_persistent_disk", ["d1", DISK])
    assert AgentMachine(tmp_path).agent.disks.all() == {"d1": DISK}


def test_lost_settings_are_replaced_by_the_copy(tmp_path: Path) -> None:
    AgentMachine(tmp_path, vm={}).settings.unlink()
    assert AgentMachine(tmp_path).agent.settings["agent_id"] == "agent-1"


def test_no_settings_no_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AgentError, match="settings"):
        AgentMachine(tmp_path)
    assert main(["-P", "ubuntu", "-C", str(tmp_path / "nothing.json")]) == 1
    assert "nothing.json" in capsys.readouterr().err


def test_two_disks_at_the_start_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="Unexpected disk attached"):
        AgentMachine(tmp_path, disks={"persistent": {"d1": DISK, "d2": OTHER}})


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"mbus": "https://u:p@0.0.0.0:6868"}, "https://u:p@0.0.0.0:6868"),
        ({"mbus": "http://[::]:7000"}, "http://[::]:7000"),
        ({"mbus": "nats://10.0.0.6:4222"}, "http://0.0.0.0:6868"),
        ({"mbus": "nats://u:p@10.0.0.6:4222"}, "http://u:p@0.0.0.0:6868"),
        ({"vm": {}}, "http://0.0.0.0:6868"),
        ({"mbus": "x", "env": {"bosh": {"mbus": {"urls": ["http://h:1"]}}}}, "http://h:1"),
    ],
)
def test_where_it_listens(settings: dict[str, Any], url: str, tmp_path: Path) -> None:
    assert AgentMachine(tmp_path, **settings).agent.mbus()[0].geturl() == url


def test_https(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("key.pem", "cert.pem")]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    new += ["-nodes", "-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*new, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    key, certificate = (Path(name).read_text() for name in files)
    pair = {"certificate": certificate, "private_key": key}
    url = "https://mbus:secret@127.0.0.1:0"
    machine = AgentMachine(tmp_path, mbus=url, env={"bosh": {"mbus": {"cert": pair}}})
    server = machine.serve()
    try:
        machine.tls = ssl.create_default_context(cadata=certificate)
        assert machine.ask("ping") == {"value": "pong"}
    finally:
        server.shutdown()
        server.server_close()


def test_https_without_a_certificate(tmp_path: Path) -> None:
    machine = AgentMachine(tmp_path, mbus="https://mbus:secret@127.0.0.1:0")
    with pytest.raises(AgentError, match="certificate"):
        Server(machine.agent)
