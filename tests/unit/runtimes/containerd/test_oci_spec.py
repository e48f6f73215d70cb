"""The OCI spec of VMs against golden files, and what must hold for every one of them."""

from dataclasses import replace
from pathlib import Path

from runtimes.containerd.oci_spec import (
    CAPABILITIES,
    UNLIMITED,
    Ceiling,
    Container,
    FolderMount,
    Limits,
    first_id_of,
    limits_of,
    render,
    renew,
)
from tests.support.golden_files import matches_golden

ALL = frozenset((*CAPABILITIES, "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_DAC_READ_SEARCH"))
LEAST = Container(
    hostname="agent-1",
    command=("/sbin/init",),
    namespace=Path("/run/bosh-containerd-cpi/netns/containerd-vm-1"),
    cgroup="/bosh/containerd-vm-1",
    data=Path("/var/lib/bosh-containerd-cpi/vms/containerd-vm-1/data"),
    disks=Path("/var/lib/bosh-containerd-cpi/vms/containerd-vm-1/disks"),
    disk_folder="/warden-cpi-dev",
    ceiling=Ceiling(ALL),
    systemd=True,
)
LIMITS = Limits(cpu=1.5, memory=512 << 20, pids=1000)
LIMITED = replace(LEAST, limits=LIMITS, swap_accounting=True)
DEVICE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
PRIVILEGED = replace(LEAST, limits=Limits(privileged=True), devices=[DEVICE])
FOLDERS = (
    FolderMount(
        "/mnt/shared", Path("/var/lib/bosh-containerd-cpi/vms/containerd-vm-1/mounts/0"), False
    ),
    FolderMount("/var/vcap/bosh-cpi", Path("/run/bosh-containerd-cpi/guest"), True),
)
CONTAINED = replace(
    LEAST,
    first_id=1879048192,
    user_namespace=Path("/run/bosh-containerd-cpi/userns/containerd-vm-1"),
    devices=[DEVICE],
    machine="x86_64",
)
WITH_FOLDERS = replace(LEAST, folders=FOLDERS)


def test_without_limits() -> None:
    assert matches_golden("oci_spec_least", render(LEAST))


def test_with_limits() -> None:
    assert matches_golden("oci_spec_limited", render(LIMITED))


def test_privileged() -> None:
    assert matches_golden("oci_spec_privileged", render(PRIVILEGED))


def test_in_a_user_namespace() -> None:
    spec = render(CONTAINED)
    assert matches_golden("oci_spec_contained", spec)
    assert first_id_of(spec) == CONTAINED.first_id
    assert first_id_of(render(LEAST)) == 0


def test_with_folders_of_the_host() -> None:
    assert matches_golden("oci_spec_folders", render(WITH_FOLDERS))
    plain = render(LEAST)["mounts"]
    assert render(WITH_FOLDERS)["mounts"][: len(plain)] == plain


def test_no_capability_that_containerd_lacks_is_asked_for() -> None:
    few = frozenset({"CAP_CHOWN", "CAP_SYS_MODULE"})
    assert render(replace(LEAST, ceiling=Ceiling(few)))["process"]["capabilities"]["bounding"] == [
        "CAP_CHOWN"
    ]
    everything = render(replace(PRIVILEGED, ceiling=Ceiling(few)))["process"]["capabilities"]
    assert everything["bounding"] == sorted(few)


def test_nothing_of_containerds_unit_is_inherited() -> None:
    """Its oom_score_adj is -999, and its limits are infinite."""
    for container in (LEAST, PRIVILEGED):
        process = render(container)["process"]
        assert process["oomScoreAdj"] == 0
        limits = {each["type"]: (each["soft"], each["hard"]) for each in process["rlimits"]}
        assert limits == {
            "RLIMIT_CORE": (0, UNLIMITED),
            "RLIMIT_NOFILE": (1024, 1 << 20),
            "RLIMIT_NPROC": (UNLIMITED, UNLIMITED),
        }


def test_no_limit_is_above_what_containerd_may_set() -> None:
    ceiling = Ceiling(ALL, {"RLIMIT_NOFILE": 500, "RLIMIT_NPROC": 7000}, oom_score_adj=501)
    process = render(replace(LEAST, ceiling=ceiling))["process"]
    assert process["oomScoreAdj"] == 501
    limits = {each["type"]: (each["soft"], each["hard"]) for each in process["rlimits"]}
    assert limits["RLIMIT_NOFILE"] == (500, 500)
    assert limits["RLIMIT_NPROC"] == (7000, 7000)


def test_a_spec_tells_the_limits_that_it_was_rendered_with() -> None:
    assert limits_of(render(LEAST)) == Limits()
    assert limits_of(render(LIMITED)) == LIMITS
    assert limits_of(render(PRIVILEGED)) == Limits(privileged=True)


def test_a_spec_is_renewed_to_what_it_would_be_now() -> None:
    few, other = (
        Ceiling(frozenset({"CAP_CHOWN"}), {"RLIMIT_NOFILE": 9}, 7),
        {**DEVICE, "minor": 232},
    )
    for container in (LIMITED, PRIVILEGED, CONTAINED):
        devices = [] if container is LIMITED else [other]
        spec = render(container)
        renew(spec, few, [other])
        assert spec == render(replace(container, ceiling=few, devices=devices))


def test_the_hosts_cgroups_are_never_bound() -> None:
    for container in (LEAST, LIMITED, PRIVILEGED):
        for mount in render(container)["mounts"]:
            assert not (mount["type"] == "bind" and mount["source"].startswith("/sys"))
