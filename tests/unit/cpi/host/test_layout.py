"""The paths on the host: what an earlier version has made must be found by a later one."""

from pathlib import Path

from cpi.config.load import config_of
from cpi.host.layout import CLIENTS, LOCKS, Layout


def test_the_paths_stay_what_they_are() -> None:
    layout = Layout.of(config_of({"state_dir": "/state", "run_dir": "/run/x"}))
    paths = {name: str(value) for name, value in vars(layout).items()}
    assert paths == {
        "state_dir": "/state",
        "vms": "/state/vms",
        "disks": "/state/disks",
        "addresses": "/state/addresses",
        "ports": "/state/ports",
        "ids": "/state/ids",
        "clients": "/state/clients",
        "stemcells": "/state/stemcells",
        "imports": "/state/imports",
        "uploads": "/state/uploads",
        "scratch": "/state/scratch",
        "run_dir": "/run/x",
        "locks": "/run/x/locks",
        "namespaces": "/run/x/netns",
        "layers": "/run/x/layers",
        "user_namespaces": "/run/x/userns",
        "bridges": "/run/x/bridges",
        "rootfs": "/run/x/rootfs",
        "execs": "/run/x/exec",
        "accelerator": "/run/x/accelerator.json",
        "guest": "/run/x/guest",
    }
    assert layout.vm("some-vm-1") == Path("/state/vms/some-vm-1")
    assert layout.pool("some") == Path("/state/some")
    assert (layout.clients.name, layout.locks.name) == (CLIENTS, LOCKS)
