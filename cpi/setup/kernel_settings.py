"""The kernel's settings and modules that VMs need, now and after each start of the host.

Files: /etc/sysctl.d and /etc/modules-load.d. A setting is only ever raised, and its former value is
kept in a comment, for `undo`.
"""

import os
import re
from collections.abc import Mapping
from functools import partial

from cpi.host.process import CommandFailed
from cpi.setup.steps import Step, System, written

SYSCTL_FILE = "/etc/sysctl.d/60-bosh-containerd-cpi.conf"
MODULES_FILE = "/etc/modules-load.d/bosh-containerd-cpi.conf"

# The last one has the setting of the table of connections, which is not there before. br_netfilter
# is left out: it sends what VMs of one bridge say to each other through the host's firewall.
MODULES = ("overlay", "loop", "bridge", "veth", "nf_tables", "nf_conntrack")

_SETTING = re.compile(r"^([a-z0-9_./-]+) = ([0-9]+)$", re.MULTILINE)
_BEFORE = re.compile(r"^# ([a-z0-9_./-]+) was ([0-9]+)$", re.MULTILINE)
_HEAD = "# Made by `bosh-cpi setup`; `bosh-cpi setup --undo` removes it.\n"


def settings(system: System, wanted: Mapping[str, int]) -> list[Step]:
    """Return the steps that raise settings which are lower than wanted."""
    text = system.text(SYSCTL_FILE)
    ours = {key: int(value) for key, value in _SETTING.findall(text)}
    before = {key: int(value) for key, value in _BEFORE.findall(text)}
    steps, lines = [], [_HEAD]
    for key, needed in wanted.items():
        present = _present(system, key)
        if present is None or (present >= needed and present != ours.get(key)):
            continue  # the kernel has none, or enough without us
        value = max(needed, present)
        if present < value:
            title = f"raise {key} from {present} to {value}"
            steps.append(Step(title, partial(_set, system, key, value)))
        lines.append(f"# {key} was {before.get(key, present)}\n{key} = {value}\n")
    if len(lines) > 1:
        steps += written(system, SYSCTL_FILE, "".join(lines))
    return steps


def undo(system: System) -> list[Step]:
    """Return the steps that give settings the values that they had, and remove the files.

    Modules stay loaded: others may use them by now.
    """
    text = system.text(SYSCTL_FILE)
    ours = dict(_SETTING.findall(text))
    steps = []
    for key, value in _BEFORE.findall(text):
        if str(_present(system, key)) == ours.get(key) != value:
            title = f"set {key} back from {ours[key]} to {value}"
            steps.append(Step(title, partial(_set, system, key, int(value))))
    for file in (SYSCTL_FILE, MODULES_FILE):
        if system.path(file).exists():
            steps.append(Step(f"remove {file}", system.path(file).unlink))
    return steps


def modules(system: System) -> list[Step]:
    """Return the steps that load modules, which the kernel does not have built in."""
    folder = f"/lib/modules/{os.uname().release}"
    loadable = _names(system.text(f"{folder}/modules.dep"))
    loaded = {line.split()[0] for line in system.text("/proc/modules").splitlines()}
    wanted = [name for name in MODULES if name in loadable]
    steps = [
        Step(f"load the module {name}", partial(_load, system, name))
        for name in wanted
        if name not in loaded
    ]
    if wanted:
        steps += written(system, MODULES_FILE, _HEAD + "".join(f"{name}\n" for name in wanted))
    return steps


def _names(modules_dep: str) -> set[str]:
    """Return the modules in a modules.dep(5)."""
    files = [line.partition(":")[0] for line in modules_dep.splitlines()]
    return {file.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for file in files}


def _load(system: System, name: str) -> None:
    """Load a module; one that cannot be loaded is not needed until a VM says so."""
    try:
        system.run("modprobe", name)
    except CommandFailed as error:
        print(f"warning: {error.message}")


def _present(system: System, key: str) -> int | None:
    words = system.text(_file(key)).split()
    return int(words[0]) if words and words[0].isdigit() else None


def _set(system: System, key: str, value: int) -> None:
    # Not atomically: it is the kernel's own.
    system.path(_file(key)).write_text(f"{value}\n")


def _file(key: str) -> str:
    return f"/proc/sys/{key.replace('.', '/')}"
