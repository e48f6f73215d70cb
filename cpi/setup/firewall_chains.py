"""The chains that CNI's plugins share and never delete: they go when nobody has a rule in them."""

import shlex
from collections.abc import Iterator, Sequence
from functools import partial

from cpi.host.process import CommandFailed, run
from cpi.setup.steps import Step

# By table: the chains, as the firewall and portmap plugins make them.
CHAINS = {
    "filter": ("CNI-FORWARD", "CNI-ADMIN"),
    "nat": ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"),
}
# What the plugins themselves put there for no VM in particular.
_COMMON = ("-j CNI-ADMIN", "-j MARK --set-xmark", "-j MASQUERADE")
_WAIT = ("--wait", "5")


def removal(*, with_vms: bool) -> Iterator[Step]:
    """Yield the steps that delete chains, of IPv4 and IPv6.

    with_vms: there are VMs, whose rules are gone when the steps are done.
    """
    for program in ("iptables", "ip6tables"):
        for table, names in CHAINS.items():
            try:
                rules = run([program, *_WAIT, "-t", table, "-S"]).decode().splitlines()
            except CommandFailed:
                continue  # there is no such program, or no such table
            there = [name for name in names if f"-N {name}" in rules]
            if there and (with_vms or not _used(rules, there)):
                title = f"delete the chains {', '.join(there)} ({program})"
                yield Step(title, partial(_delete, program, table, there))


def _used(rules: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether a container has a rule in these chains, ours or another CNI user's."""
    return any(
        rule.startswith(tuple(f"-A {name} " for name in names))
        and not any(common in rule for common in _COMMON)
        for rule in rules
    )


def _delete(program: str, table: str, names: Sequence[str]) -> None:
    """Delete unused chains, and the rules that lead to them. Raises CommandFailed."""
    base = [program, *_WAIT, "-t", table]
    rules = run([*base, "-S"]).decode().splitlines()
    if _used(rules, names):
        print(f"the chains {', '.join(names)} stay: containers of others use them")
        return
    for rule in rules:
        words = shlex.split(rule)
        if words[0] == "-A" and words[-2] == "-j" and words[-1] in names:
            run([*base, "-D", *words[1:]])
    for name in names:
        run([*base, "-F", name])
    for name in names:
        run([*base, "-X", name])
