"""`bosh-cpi` for VMs, without a VM: names, tables, completion."""

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpi.commands import logs, output, top
from cpi.commands.main import SHELLS, main
from cpi.commands.vm_names import find
from cpi.commands.vms import age
from cpi.config.config import Config
from cpi.errors import CPIError, NotSupported, VMNotFound
from cpi.findings import failure
from cpi.terminal import Carrier, Remote, Streams
from cpi.views import Usage, VMView, name_of
from runtimes import catalog
from testing.patience import PATIENCE
from tests.support.cpi_calls import call
from tests.support.fake_runtime import WORLDS, FakeRuntime, FakeVM


def vm(cid: str, **metadata: str) -> VMView:
    return VMView(cid, "some", "running", metadata=metadata)


ZERO = vm("some-vm-1f0c00", deployment="cf", instance_group="router", id="aaaa-1", index="0")
ONE = vm("some-vm-1f0c11", deployment="cf", instance_group="router", id="aabb-2", index="1")
OTHER = vm("some-vm-2b00", deployment="dev", job="router", index="0")
PLAIN = vm("other-vm-77")
ALL = [ZERO, ONE, OTHER, PLAIN]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("some-vm-1f0c00", ZERO),
        ("some-vm-1f0c1", ONE),
        ("1f0c1", ONE),
        ("2b", OTHER),
        ("other", PLAIN),
        ("router/1", ONE),
        ("router/aaaa-1", ZERO),
        ("cf/router/aaaa-1", ZERO),
        ("cf/router/0", ZERO),
        ("dev/router/0", OTHER),
        ("dev/router", OTHER),
        ("router/aab", ONE),
        ("cf/router/aab", ONE),
    ],
)
def test_a_vm_is_found_by(text: str, meant: VMView) -> None:
    assert find(text, ALL) == meant


@pytest.mark.parametrize(
    ("text", "named"),
    [("router", 3), ("router/0", 2), ("cf/router", 2), ("some-vm", 3), ("router/aa", 2)],
)
def test_an_ambiguous_name_is_an_error_naming_the_vms(text: str, named: int) -> None:
    with pytest.raises(CPIError, match=f"any of {named} VMs: some-vm-1f0c") as caught:
        find(text, ALL)
    assert not isinstance(caught.value, VMNotFound)
    assert caught.value.message.count("-vm-") == named


@pytest.mark.parametrize("text", ["", "router/2", "x", "../etc", "cf", "f0c", "some-vm-1f0c00x"])
def test_what_names_no_vm_is_an_error(text: str) -> None:
    with pytest.raises(VMNotFound, match="bosh-cpi vms"):
        find(text, ALL)


def test_a_whole_cid_comes_before_its_own_beginning() -> None:
    longer = vm("some-vm-2b001")
    assert find("some-vm-2b00", [longer, OTHER]) == OTHER


def test_names_of_the_director_and_of_create_env_and_of_disks() -> None:
    director = {"deployment": "cf", "job": "db", "instance_group": "db", "id": "0-1", "index": "2"}
    assert name_of(director).instance == "db/0-1"
    assert name_of({"deployment": "bosh", "job": "bosh", "index": "0"}).instance == "bosh/0"
    assert name_of({"instance_group": "db", "instance_id": "0-1"}).instance == "db/0-1"
    assert name_of({}).instance == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90061, "1d 1h"), (-5, "0s")],
)
def test_age(seconds: int, text: str) -> None:
    assert age(1000, 1000 + seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 << 20, "300 MiB"),
     (3 << 40, "3.0 TiB")],
)  # fmt: skip
def test_sizes(count: float | None, text: str) -> None:
    assert output.bytes_size(count) == text


# Tables


@pytest.fixture
def path(config: Config, tmp_path: Path) -> str:
    """The fake runtime's configuration, with one VM that has a name."""
    file = tmp_path / "cpi.json"
    folders = {key: config.text(key) for key in ("state_dir", "run_dir")}
    file.write_text(json.dumps({"runtime": "fake", **folders}))
    image = tmp_path / "image"
    image.write_bytes(b"\x1f\x8b")
    stemcell = call(config, "create_stemcell", str(image), {})["result"]
    networks = {"a": {"type": "dynamic"}}
    properties = {"cpu": 1.5, "memory": 2048}
    made = call(config, "create_vm", "agent", stemcell, properties, networks, [], {})["result"]
    named = {"deployment": "cf", "job": "db", "instance_group": "db", "id": "0-1", "index": "3"}
    call(config, "set_vm_metadata", made[0], named)
    return str(file)


def machines(config: Config) -> dict[str, FakeVM]:
    return WORLDS[config.text("state_dir")].machines


def run(path: str, *words: str) -> int:
    return main(["--config", path, *words])


def test_vms_are_listed_for_people_and_scripts(
    path: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (cid,) = machines(config)
    assert run(path, "vms") == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["VM", "DEPLOYMENT", "INSTANCE"]
    assert row.split() == [
        *(cid, "cf", "db/0-1", "3", "running", "fake"),
        *("10.245.0.2", "fake/1", "1.5", "2", "GiB"),
    ]
    assert run(path, "vms", "--json") == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["instance"], document["job"]) == ("db/0-1", "db")
    assert document["addresses"] == ["10.245.0.2"]
    assert (document["cpu"], document["memory"], document["index"]) == (1.5, 2048, "3")


def test_a_job_of_another_name_is_shown(
    path: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine,) = machines(config).values()
    machine.metadata = {"deployment": "cf", "instance_group": "db", "job": "mysql", "index": "0"}
    assert run(path, "vms") == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert "JOB" in heading
    assert "mysql" in row


def test_stemcells_and_top(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "stemcells") == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[1:] == ["fake", "1", "fake", "1"]  # name, version, runtime, VMs
    assert run(path, "stemcells", "--json") == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["name"] == "fake"
    assert run(path, "top", "--json", "--interval", "0.1") == 0
    (used,) = json.loads(capsys.readouterr().out)
    assert (used["instance"], used["memory_bytes"], used["cpu_percent"]) == ("db/0-1", 1 << 20, 0)
    assert run(path, "top", "--once", "--interval", "0.1") == 0
    assert "1.0 MiB" in capsys.readouterr().out


def test_words_of_bosh_are_no_markup(
    path: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine,) = machines(config).values()
    machine.metadata = {"deployment": "[bold]x[/bold]", "job": "[/]"}
    assert run(path, "vms") == 0
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_a_runtime_that_fails_does_not_block_the_others(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({**document, "runtimes": ["nosuch"]}))
    assert run(path, "vms", "--json") == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert len(captured.err.splitlines()) == 1
    assert "nosuch" in captured.err
    monkeypatch.setattr(FakeRuntime, "vms", _failing(NotSupported("no list")))
    assert run(path, "vms") == 1
    assert "fake: no list" in capsys.readouterr().err


def _failing(error: CPIError) -> Callable[[object], Any]:
    def fail(_: object) -> Any:
        raise error

    return fail


def test_what_a_runtime_does_not_support_is_an_error(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path, "exec", "db/3", "--", "true") == 1
    assert "the fake runtime does not support running commands" in capsys.readouterr().err
    assert run(path, "logs", "db/3") == 1
    assert "console" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="which command"):
        run(path, "exec", "db/3")


def test_rates_are_of_what_was_used_between_two_looks() -> None:
    before = {"a": Usage("a", cpu=10.0, read=100, written=50), "c": Usage("c", cpu=99.0)}
    now = [
        Usage("b", cpu=5.0, read=7),  # it was not there before
        Usage("a", cpu=11.0, read=300, written=50),
        Usage("c", cpu=1.0),  # it was rebooted
    ]
    first, *rest = top.rates(before, now, 2.0)
    assert (first.usage.cid, first.cpu, first.read, first.written) == ("a", 50.0, 100.0, 0.0)
    assert [(rate.usage.cid, rate.cpu, rate.read) for rate in rest] == [
        ("b", 0.0, 0.0),
        ("c", 0.0, None),
    ]


# Logs


def test_log_files_are_below_the_folders_of_logs() -> None:
    assert logs.path_of("web/out.log") == "/var/vcap/sys/log/web/out.log"
    assert logs.path_of("/var/log/auth.log") == "/var/log/auth.log"
    for odd in ("../../bosh/settings.json", "/etc/shadow", "/var/log/../../etc/shadow", "", "a\0b"):
        with pytest.raises(CPIError, match="is below none of"):
            logs.path_of(odd)


# Completion


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_all_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("doctor", "vms", "disks", "networks", "--follow", "--interval", "restore"):
        assert word in script


def test_files_are_completed_where_files_belong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for place in ("bosh_cpi___config_COMPGEN", "bosh_cpi_stemcell_inspect_pos_0_COMPGEN"):
        assert f"{place}=_shtab_compgen_files" in script
    assert "bosh_cpi_disk_mount_pos_1_COMPGEN=_shtab_compgen_dirs" in script


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    ask = (
        f"source {script}; COMP_WORDS=(bosh-cpi do); COMP_CWORD=1; COMP_LINE='bosh-cpi do'; "
        "COMP_POINT=11; $(complete -p bosh-cpi | sed 's/.*-F \\([^ ]*\\).*/\\1/') bosh-cpi do; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["doctor"]


# Bytes between descriptors


class Far:
    """A far side of three pipes."""

    def __init__(self) -> None:
        self.input, stdin = os.pipe()
        stdout, self.output = os.pipe()
        stderr, self.errors = os.pipe()
        for descriptor in (stdin, stdout, stderr):
            os.set_blocking(descriptor, False)
        self.remote = Remote(stdin, stdout, stderr)

    def close_input(self) -> None:
        os.close(self.remote.stdin)

    def echo(self) -> None:
        """Be `cat`, which begins to read when its output has been read."""
        os.write(self.errors, b"begun")
        os.close(self.errors)
        while data := os.read(self.input, 1 << 16):
            os.write(self.output, data)
        os.close(self.output)


def test_more_than_pipes_hold_is_carried_both_ways(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    (tmp_path / "in").write_bytes(data)
    far = Far()
    with (
        open(tmp_path / "in", "rb") as stdin,
        open(tmp_path / "out", "wb") as stdout,
        open(tmp_path / "err", "wb") as stderr,
    ):
        near = Streams(stdin.fileno(), stdout.fileno(), stderr.fileno())
        thread = threading.Thread(target=far.echo, daemon=True)
        thread.start()
        Carrier(near, far.remote, far.close_input).run()
        thread.join(PATIENCE)
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "err").read_bytes() == b"begun"
    for descriptor in (far.input, far.remote.stdout, far.remote.stderr):
        os.close(descriptor)


def test_a_command_that_does_not_read_its_input_ends_all_the_same() -> None:
    far = Far()
    near_in, keep = os.pipe()  # `keep` is never closed
    os.write(keep, b"x" * 10)
    for descriptor in (far.output, far.errors):
        os.close(descriptor)
    Carrier(Streams(stdin=near_in), far.remote, far.close_input).run()
    for descriptor in (near_in, keep, far.input, *vars(far.remote).values()):
        os.close(descriptor)


def test_a_finding_of_the_fake_runtime_is_shown(
    path: str,
    config: Config,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # Fast tests touch no daemon.
    monkeypatch.setattr(catalog, "REGISTRY", {"fake": catalog.REGISTRY["fake"]})
    WORLDS[config.text("state_dir")].findings = [failure("[it] broke", "mend it")]
    assert run(path, "doctor") == 1
    printed = capsys.readouterr().out
    assert "[it] broke" in printed
    assert "      mend it\n" in printed
