"""Jobs as BPM runs them: in a container of a runc that runs inside the VM.

The specs are BPM's, without what only places a job's files. The runc is the host's own, whose
programs the VM gets as a mount. Source: bpm-release 2d75618, runc/specbuilder and runc/adapter.
"""

import json
import platform
import subprocess
from dataclasses import dataclass
from typing import Any

from runtimes.containerd import seccomp
from tests.support.containerd.machine import VM

PROGRAMS = {"host": "/usr", "vm": "/mnt/host-usr"}  # a mount in cloud_properties

_PRIVILEGED = """
AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID
IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN
NET_BIND_SERVICE NET_BROADCAST NET_RAW SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT
SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG
WAKE_ALARM
"""
PRIVILEGED_CAPABILITIES = tuple(f"CAP_{name}" for name in _PRIVILEGED.split())

# What a VM may call and a job may not, among others.
_DENIED = {"mount", "umount2", "unshare", "setns", "pivot_root", "keyctl", "add_key", "ptrace"}

_MASKED = ("kcore", "latency_stats", "sched_debug", "timer_list", "timer_stats")
_READ_ONLY = ("asound", "bus", "fs", "irq", "sys", "sysrq-trigger")
_PTS = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5")


@dataclass(frozen=True)
class Job:
    """What a job's bpm.yml asks for. memory: bytes."""

    script: str
    memory: int | None = None
    processes: int | None = None
    open_files: int | None = None
    privileged: bool = False
    host_pid_namespace: bool = False


def run(vm: VM, job: Job) -> "subprocess.CompletedProcess[str]":
    """Run a job in a VM that has PROGRAMS, to its end."""
    name = "bpm-job"
    systemd = has_systemd(vm)
    # BPM places a job beside its own cgroup, which is monit's, or gives it to systemd.
    spec = json.dumps(_spec(job, f"system.slice:tests:{name}" if systemd else f"/{name}"))
    manager = "--systemd-cgroup" if systemd else ""
    return in_vm(
        vm,
        f"mkdir -p /var/vcap/data/bpm/rootfs /var/vcap/data/tmp; cd /var/vcap/data/bpm\n"
        f"chown 1000:1000 /var/vcap/data/tmp; cat > config.json <<'END'\n{spec}\nEND\n"
        f"exec runc --root /var/vcap/data/runc {manager} run {name}",
    )


def has_systemd(vm: VM) -> bool:
    """Tell whether a VM's init is systemd, as BPM does."""
    return in_vm(vm, "test -d /run/systemd/system").returncode == 0


def in_vm(vm: VM, script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in a VM, with the host's programs as its own."""
    around = 'mount --rbind /mnt/host-usr /usr && exec sh -c "$0"'
    words = ("unshare", "--mount", "sh", "-c", around, script)
    return vm.machine.bosh_cpi("exec", "--no-terminal", vm.cid, "--", *words, check=False)


def _spec(job: Job, cgroup: str) -> dict[str, Any]:
    namespaces = ["ipc", "mount", "uts", *([] if job.host_pid_namespace else ["pid"])]
    capabilities = list(PRIVILEGED_CAPABILITIES if job.privileged else ())
    user = 0 if job.privileged else 1000
    limits = [] if job.open_files is None else [_rlimit(job.open_files)]
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "args": ["/bin/sh", "-c", job.script],
            "env": ["PATH=/usr/bin:/usr/sbin:/bin:/sbin", "TMPDIR=/tmp"],
            "cwd": "/",
            "user": {"uid": user, "gid": user},
            "capabilities": dict.fromkeys(
                ("ambient", "bounding", "inheritable", "permitted"), capabilities
            ),
            "noNewPrivileges": not job.privileged,
            "rlimits": limits,
        },
        "mounts": _mounts(job.privileged),
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": name} for name in namespaces],
            "resources": _resources(job),
            "rootfsPropagation": "private",
        },
    }
    if not job.privileged:
        spec["linux"]["seccomp"] = _seccomp()
        spec["linux"]["maskedPaths"] = [*(f"/proc/{name}" for name in _MASKED), "/sys/firmware"]
        spec["linux"]["readonlyPaths"] = [f"/proc/{name}" for name in _READ_ONLY]
    return spec


def _rlimit(files: int) -> dict[str, Any]:
    return {"type": "RLIMIT_NOFILE", "hard": files, "soft": files}


def _resources(job: Job) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if job.memory is not None:
        resources["memory"] = {"limit": job.memory}
    if job.processes is not None:
        resources["pids"] = {"limit": job.processes}
    return resources


def _seccomp() -> dict[str, Any]:
    profile = seccomp.profile(platform.machine())
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in _DENIED]
    return profile


def _mounts(privileged: bool) -> list[dict[str, Any]]:
    system = [
        _mount("/proc", "proc", "proc"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "mode=755"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", *_PTS),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777"),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        *(
            _mount(path, "bind", path, "bind", "exec", "nosuid", "nodev", "ro")
            for path in ("/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr")
        ),
        _mount("/tmp", "bind", "/var/vcap/data/tmp", "rbind", "noexec", "nosuid", "nodev", "rw"),
    ]
    if privileged:
        for mount in system:
            mount["options"] = [word for word in mount["options"] if word != "nosuid"]
    return system


def _mount(destination: str, type_: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": type_, "source": source, "options": list(options)}
