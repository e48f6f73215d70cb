"""The facts of a stemcell's root file system that a container needs, read from its content."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stemcell_convert.inroot import Root
from stemcell_convert.stemcell_errors import StemcellError

SYSTEMD = "systemd"
RUNIT = "runit"

# BOSH's warden stemcells name this file in agent.json (stemcell builder, base_warden).
WARDEN_SETTINGS = "/var/vcap/bosh/warden-cpi-agent-env.json"
AGENT_CONFIG = "/var/vcap/bosh/agent.json"

# runit's first program in BOSH's stemcells up to jammy, and in Debian's runit package.
_RUNIT_INITS = ("/usr/sbin/runsvdir-start", "/etc/runit/2")
# e_machine of the ELF header (elf.h) -> GOARCH, which is what OCI images use.
_ELF_MACHINES = {
    0x03: "386",
    0x28: "arm",
    0x3E: "amd64",
    0xB7: "arm64",
    0x15: "ppc64le",
    0x16: "s390x",
}

_SYSTEMD = ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")
_OS_RELEASE = "/etc/os-release"
_PROGRAMS = ("/bin/sh", "/sbin/init", "/bin/bash", "/bin/busybox")
_BEHIND_LINKS = ("/bin", "/sbin", "/lib", "/lib64", "/bin/dash", "/usr/lib/os-release")

# All that read_facts may read, wherever /bin and /lib point.
FACT_PATHS = tuple(
    dict.fromkeys(
        prefix + path
        for path in (
            AGENT_CONFIG,
            _OS_RELEASE,
            *_SYSTEMD,
            *_RUNIT_INITS,
            *_PROGRAMS,
            *_BEHIND_LINKS,
        )
        for prefix in ("", *(["/usr"] if not path.startswith(("/usr", "/etc", "/var")) else []))
    )
)


@dataclass(frozen=True)
class RootfsFacts:
    """init: systemd or runit, with the command that starts it; settings: the agent's file.

    for_containers: whether its agent.json is a container's, as in a warden stemcell; else it was
    made for a machine. architecture: OCI's name (amd64, arm64), from a program's ELF header.
    agent: its agent.json. runit: whether runit's first program is there, which then supervises
    monit, whatever init is.
    """

    init: str
    command: tuple[str, ...]
    settings: str
    for_containers: bool
    architecture: str
    os_release: dict[str, str]
    agent: Mapping[str, Any] = field(default_factory=dict)
    runit: bool = False


def read_facts(root: Root, name: str) -> RootfsFacts:
    """Read the facts of a root file system; `name` is what an error calls the stemcell.

    Raises StemcellError when nothing in it can be PID 1.
    """
    agent = _parse(_read(root, AGENT_CONFIG), name)
    for_containers = _platform(agent).get("BindMountPersistentDisk") is True
    runit = next((path for path in _RUNIT_INITS if root.exists(path)), None)
    init, command = _init(root, agent, runit, for_containers, name)
    return RootfsFacts(
        init=init,
        command=command,
        settings=_settings_path(agent) if for_containers else WARDEN_SETTINGS,
        for_containers=for_containers,
        architecture=_architecture(root, name),
        os_release=_os_release(_read(root, _OS_RELEASE) or b""),
        agent=agent,
        runit=runit is not None,
    )


def _read(root: Root, path: str) -> bytes | None:
    try:
        return root.read(path)
    except OSError:
        return None


def _parse(document: bytes | None, name: str) -> dict[str, object]:
    if document is None:
        return {}
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise StemcellError(f"{name}: {AGENT_CONFIG} in it is not JSON: {error}") from None
    return parsed if isinstance(parsed, dict) else {}


def _init(
    root: Root, agent: dict[str, object], runit: str | None, for_containers: bool, name: str
) -> tuple[str, tuple[str, ...]]:
    """Return the init of agent.json (ServiceManager, Noble and newer), else of the programs.

    Jammy has both. In its warden stemcells runit is the first process and has all services. In
    those for machines systemd is: it starts sshd, rsyslog and cron, and runit as one of its units
    (stemcell builder, stages base_warden and base_ubuntu_packages).
    """
    systemd = next((path for path in _SYSTEMD if root.exists(path)), None)
    named = _platform(agent).get("ServiceManager") == SYSTEMD
    if systemd and (named or not runit or not for_containers):
        return SYSTEMD, ("/sbin/init",) if root.exists("/sbin/init") else (systemd,)
    if runit:
        return RUNIT, (runit,)
    raise StemcellError(
        f"{name}: found neither systemd nor runit in it ({', '.join(_SYSTEMD + _RUNIT_INITS)}), "
        "so nothing can be the VM's first process; is this a BOSH stemcell?"
    )


def _architecture(root: Root, name: str) -> str:
    for path in _PROGRAMS:
        try:
            header = root.read(path, 20)
        except OSError:
            continue
        if len(header) == 20 and header.startswith(b"\x7fELF"):
            order: Literal["little", "big"] = "little" if header[5] == 1 else "big"
            machine = int.from_bytes(header[18:20], order)
            if machine in _ELF_MACHINES:
                return _ELF_MACHINES[machine]
            raise StemcellError(f"{name}: {path} in it is for an unknown machine (ELF {machine})")
    raise StemcellError(f"{name}: found no program in it that tells its architecture")


def _platform(agent: dict[str, object]) -> dict[str, object]:
    platform = agent.get("Platform")
    linux = platform.get("Linux") if isinstance(platform, dict) else None
    return linux if isinstance(linux, dict) else {}


def _settings_path(agent: dict[str, object]) -> str:
    """Return the first File source of agent.json (bosh-agent, settings_source.go)."""
    infrastructure = agent.get("Infrastructure")
    settings = infrastructure.get("Settings") if isinstance(infrastructure, dict) else None
    sources = settings.get("Sources") if isinstance(settings, dict) else None
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and source.get("Type") == "File":
            path = source.get("SettingsPath")
            if isinstance(path, str) and path.startswith("/var/vcap/") and ".." not in path:
                return path
    return WARDEN_SETTINGS


def _os_release(document: bytes) -> dict[str, str]:
    pairs = (line.partition("=") for line in document.decode(errors="replace").splitlines())
    return {key: value.strip("\"'") for key, equals, value in pairs if equals}
