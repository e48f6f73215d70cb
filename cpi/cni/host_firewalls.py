"""The host's own firewalls, and how packets of our bridges get through them.

In nftables a packet passes only if no table drops it: our own cannot accept for another. So the
firewalls that drop forwarded packets by default are told once for each bridge, by their own
programs: iptables (Docker, ufw) and firewalld.
"""

import json
import shutil
from collections.abc import Sequence

from cpi.host.process import ENVIRONMENT, CommandFailed, run
from cpi.log import Log

IPTABLES = ("iptables", "ip6tables")
ZONE = "trusted"
_LOCK_SECONDS = "5"
_NOT_RUNNING = 252  # firewall-cmd(1), "Exit codes"


def admit(bridge: str, mark: str, log: Log) -> None:
    """Let packets of a bridge through; idempotent. mark: a comment for our rules.

    What fails is logged: the host may filter nothing at all, and `bosh-cpi doctor` tells.
    """
    for program in IPTABLES:
        if is_installed(program):
            try:
                _admit_in_iptables(program, bridge, mark)
            except CommandFailed as error:
                log.warn(f"{bridge}: forwarded packets may be dropped: {error.message}")
    if firewalld_runs():
        try:
            _admit_in_firewalld(bridge)
        except CommandFailed as error:
            log.warn(f"{bridge}: firewalld may drop its packets: {error.message}")


def forget(bridge: str, mark: str) -> None:
    """Undo `admit`. Raises CommandFailed."""
    for program in filter(is_installed, IPTABLES):
        for rule in iptables_rules(bridge, mark):
            while _succeeds([*_iptables(program), "-C", "FORWARD", *rule]):
                run([*_iptables(program), "-D", "FORWARD", *rule])
    if firewalld_runs() and zone_of(bridge) == ZONE:
        for words in _in_both_configurations("--remove-interface", bridge):
            run(words)


def is_installed(program: str) -> bool:
    """Tell whether a program is where `run` finds it."""
    return shutil.which(program, path=ENVIRONMENT["PATH"]) is not None


# iptables


def iptables_rules(bridge: str, mark: str) -> list[list[str]]:
    """Return the rules of a bridge in FORWARD.

    All that VMs send passes, also to each other: with br_netfilter, frames within a bridge are
    forwarded packets. To VMs passes what they asked for and what their published ports get.
    """
    comment = ["-m", "comment", "--comment", mark]
    states = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT"]
    return [
        ["-i", bridge, *comment, "-j", "ACCEPT"],
        ["-o", bridge, *states, *comment, "-j", "ACCEPT"],
    ]


def lacks_iptables_rules(program: str, bridge: str, mark: str) -> bool:
    """Tell whether iptables drops forwarded packets of a bridge. Raises CommandFailed."""
    lines = run([*_iptables(program), "-S", "FORWARD"]).decode().splitlines()
    drops = any(line.startswith("-P FORWARD DROP") or _ends_all(line.split()) for line in lines)
    return drops and not all(
        _succeeds([*_iptables(program), "-C", "FORWARD", *rule])
        for rule in iptables_rules(bridge, mark)
    )


def _ends_all(words: Sequence[str]) -> bool:
    """Tell whether a rule, as iptables -S prints it, drops or rejects every packet."""
    return list(words[:3]) in (["-A", "FORWARD", "-j"],) and words[3] in ("DROP", "REJECT")


def _admit_in_iptables(program: str, bridge: str, mark: str) -> None:
    # Whether FORWARD drops now does not matter: Docker may start later, and sets that then.
    for rule in iptables_rules(bridge, mark):
        if not _succeeds([*_iptables(program), "-C", "FORWARD", *rule]):
            run([*_iptables(program), "-I", "FORWARD", *rule])


def _iptables(program: str) -> list[str]:
    return [program, "--wait", _LOCK_SECONDS]


def _succeeds(words: list[str]) -> bool:
    try:
        run(words, timeout=30)
    except CommandFailed:
        return False
    return True


# firewalld


def firewalld_runs() -> bool:
    """Tell whether firewalld runs, or may run as it cannot be asked."""
    if not is_installed("firewall-cmd"):
        return False
    try:
        run(["firewall-cmd", "--state"], timeout=30)
    except CommandFailed as error:
        return error.status != _NOT_RUNNING
    return True


def zone_of(bridge: str) -> str:
    """Return the zone that a bridge was put in, or ""."""
    try:
        return (
            run(["firewall-cmd", f"--get-zone-of-interface={bridge}"], timeout=30).decode().strip()
        )
    except CommandFailed:
        return ""


def _admit_in_firewalld(bridge: str) -> None:
    if not zone_of(bridge):  # an administrator's choice stays
        for words in _in_both_configurations("--add-interface", bridge):
            run(words, timeout=30)


def _in_both_configurations(option: str, bridge: str) -> list[list[str]]:
    """Return the commands for the permanent and the running configuration: no reload is needed,
    which would forget what others have changed at run time."""
    words = ["firewall-cmd", f"--zone={ZONE}", f"{option}={bridge}"]
    return [[words[0], "--permanent", *words[1:]], words]


def firewalld_fix(bridge: str) -> str:
    """Return the commands by which an administrator admits a bridge."""
    return " && ".join(
        " ".join(words) for words in _in_both_configurations("--add-interface", bridge)
    )


# Others in nftables


def dropping_chains() -> list[tuple[str, str, str]]:
    """Return family, table and chain of what drops forwarded packets by its policy.

    Without the chains of iptables, which it must change itself. Raises CommandFailed.
    """
    listed = json.loads(run(["nft", "--json", "list", "chains"], timeout=30))
    chains = [item["chain"] for item in listed.get("nftables", []) if "chain" in item]
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in chains
        if chain.get("hook") == "forward" and chain.get("policy") == "drop"
        if (chain["table"], chain["name"]) != ("filter", "FORWARD")
        if chain["family"] in ("ip", "ip6", "inet", "bridge")
    ]
