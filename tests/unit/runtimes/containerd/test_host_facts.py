"""What a process like containerd can give a container, asked of this kernel."""

import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpi.host.syscalls import effective_capabilities
from runtimes.containerd import host_facts
from runtimes.containerd.oci_spec import RLIMITS
from testing.patience import PATIENCE

FREE = "CAP_SYS_RESOURCE" in effective_capabilities()


@pytest.fixture
def process() -> Iterator[int]:
    """Yield a process whose own limits and oom_score_adj are those of no container."""
    with subprocess.Popen(["sleep", "600"]) as child:
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (100, 500))
        Path(f"/proc/{child.pid}/oom_score_adj").write_text("500")
        yield child.pid
        child.kill()
        child.wait(PATIENCE)


def test_what_may_not_be_exceeded_is_the_ceiling(process: int) -> None:
    ceiling = host_facts._ceiling(process)
    assert ceiling.capabilities == effective_capabilities()
    if FREE:
        assert ceiling.oom_score_adj == 0
        assert ceiling.hard_limits.keys() == {"RLIMIT_NOFILE"}, "fs.nr_open is everybody's"
    else:
        assert ceiling.oom_score_adj == 501, "its shim's"
        assert ceiling.hard_limits["RLIMIT_NOFILE"] == 500
    assert set(ceiling.hard_limits) <= set(RLIMITS)


def test_the_ceiling_is_that_of_the_process_that_listens(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        ceiling = host_facts.ceiling_of_server(path)
    assert ceiling == host_facts.ceiling_of_server(str(tmp_path / "nothing"))
    assert ceiling.oom_score_adj == max(0, ceiling.oom_score_adj)
