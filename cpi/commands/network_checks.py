"""The checks of `bosh-cpi doctor` for a host's network. A check is one function."""

import json
import shlex
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path

from cpi.cni import host_firewalls, nameservers, nftables, overview, senders
from cpi.cni.firewall import INSTALL, Firewall
from cpi.cni.plugins import DEFAULT_PLUGIN_DIRS, Plugins
from cpi.config.config import Config
from cpi.errors import CPIError
from cpi.findings import Checks, Finding, commands, failure, ok, warning
from cpi.host import iproute
from cpi.host.iproute import Route, Subnet
from cpi.host.process import CommandFailed, run
from cpi.log import Log

PLUGINS = ("bridge", "host-local")
_SYSCTLS = Path("/proc/sys/net")
_MODULES = "modprobe -a nf_tables nft_chain_nat nft_nat nft_masq nft_fib_inet nft_ct"
_INSTALL_PLUGINS = "apt-get install containernetworking-plugins"

CHECKS = Checks[Config]()


@CHECKS.add("CNI plugins")
def _plugins(config: Config) -> Finding:
    named = config.strings("network.cni_plugin_dirs")
    plugins = Plugins(named)
    if not plugins.folders:
        existing = [path for path in DEFAULT_PLUGIN_DIRS if (Path(path) / PLUGINS[0]).exists()]
        return failure(
            f"none of {', '.join(named or DEFAULT_PLUGIN_DIRS)} is a folder",
            f'set in cpi.json: {{"network": {{"cni_plugin_dirs": {json.dumps(existing)}}}}}'
            if named and existing
            else _INSTALL_PLUGINS,
        )
    try:
        version = plugins.common_version(PLUGINS)
    except CPIError as error:
        return failure(error.message, _INSTALL_PLUGINS)
    return ok(f"{', '.join(PLUGINS)} in {', '.join(plugins.folders)} speak CNI {version}")


@CHECKS.add("nftables")
def _nftables(config: Config) -> Finding:
    firewall = _firewall_of(config)
    guest = nftables.Guest("check", "check0", ["192.0.2.1", "2001:db8::1"], masquerade=True)
    port = senders.Port("check0", "check", "02:00:00:00:00:01", guest.addresses)
    try:
        table = f"{firewall.table}-check"
        rules = nftables.adding(table, [guest]) + senders.adding(table, [port])
        run(["nft", "--check", "-f", "-"], stdin=rules.encode())
        missing = sorted(firewall.missing())
    except CommandFailed as error:
        needed = f"{error.message}; nftables 1.0.2 and Linux 5.2 or later are needed"
        return failure(needed, INSTALL if error.status is None else _MODULES)
    if missing:
        return failure(
            f"{len(missing)} VMs lack rules in the tables {firewall.table}, {missing[0]} for one: "
            "they were flushed",
            "bosh-cpi restore",
        )
    return ok(f"the tables {firewall.table} have the rules of all VMs")


@CHECKS.add("bridge")
def _bridge(config: Config) -> Finding:
    (bridge, *_) = overview.bridges(config)
    name = bridge.name
    if bridge.state == overview.MISSING:
        if bridge.vms:
            return failure(
                f"{name} is missing and {len(bridge.vms)} VMs are on it, as after a restart",
                "bosh-cpi restore",
            )
        return ok(f"{name} will be made with the first VM")
    if bridge.state == overview.FOREIGN:
        return failure(
            f"{name} is there and no bridge", 'set in cpi.json: {"network": {"bridge": "bosh9"}}'
        )
    if bridge.state == overview.DOWN:
        return failure(f"{name} is down", commands(("ip", "link", "set", name, "up")))
    addresses = " ".join(bridge.addresses) or "no address"
    return ok(f"{name} is up with {addresses}, {len(bridge.vms)} VMs")


@CHECKS.add("forwarding")
def _forwarding(config: Config) -> Finding:
    (bridge, *_) = overview.bridges(config)
    if _sysctl("ipv4/ip_forward") == "1":
        return ok("net.ipv4.ip_forward is on")
    if bridge.state == overview.UP:
        return failure(
            "net.ipv4.ip_forward is off, so VMs reach nothing outside their bridge",
            commands(("sysctl", "-w", "net.ipv4.ip_forward=1")),
        )
    return ok("net.ipv4.ip_forward is off until CNI's bridge plugin turns it on")


@CHECKS.add("rp_filter")
def _rp_filter(config: Config) -> Finding:
    """Check reverse path filters: the kernel applies the interface's or all's, the greater one."""
    strict = [
        bridge.name
        for bridge in overview.bridges(config)
        if bridge.state == overview.UP
        and max(_sysctl(f"ipv4/conf/{name}/rp_filter") for name in ("all", bridge.name)) == "1"
    ]
    if strict:
        return warning(
            f"the kernel drops what comes from VMs on {', '.join(strict)} by another network of "
            "theirs (strict reverse path filter)",
            commands(*(("sysctl", "-w", f"net.ipv4.conf.{name}.rp_filter=2") for name in strict)),
        )
    return ok("not strict on any bridge of ours")


@CHECKS.add("firewall")
def _firewall(config: Config) -> Finding:
    firewall = _firewall_of(config)
    bridges = sorted({guest.bridge for guest in firewall.guests()})
    for bridge in bridges:
        for finding in _dropping(bridge, firewall.table):
            return finding
    if not bridges:
        return ok("the host's own firewalls are told of a bridge with its first VM")
    return ok(f"the host's own firewalls let {', '.join(bridges)} through")


def _dropping(bridge: str, mark: str) -> Iterator[Finding]:
    """Yield what drops forwarded packets of a bridge."""
    within = " and between VMs" if _sysctl("bridge/bridge-nf-call-iptables") == "1" else ""
    for program in filter(host_firewalls.is_installed, host_firewalls.IPTABLES):
        if host_firewalls.lacks_iptables_rules(program, bridge, mark):
            rules = host_firewalls.iptables_rules(bridge, mark)
            yield failure(
                f"FORWARD of {program} drops packets of {bridge} to and from the outside{within}",
                " && ".join(shlex.join([program, "-I", "FORWARD", *rule]) for rule in rules),
            )
    if host_firewalls.firewalld_runs() and not host_firewalls.zone_of(bridge):
        yield failure(
            f"firewalld rejects packets of {bridge}, which is in no zone",
            host_firewalls.firewalld_fix(bridge),
        )
    for family, table, chain in host_firewalls.dropping_chains():
        rule = f"nft insert rule {family} {table} {chain}"
        yield warning(
            f"the chain {chain} of the table {family} {table} drops what it does not accept; it "
            f"may have no rules for {bridge}{within}",
            f"{rule} iifname {bridge} accept && "
            f"{rule} oifname {bridge} ct state established,related accept && "
            f"{rule} oifname {bridge} ct status dnat accept  # and in /etc/nftables.conf",
        )


def _firewall_of(config: Config) -> Firewall:
    return Firewall.of(config, Log(quiet=True))


@CHECKS.add("DNS")
def _dns(_config: Config) -> Finding:
    if servers := nameservers.of_host():
        return ok(f"VMs whose networks have no dns get {', '.join(servers)}")
    return warning(
        "the host has no nameserver that VMs can reach, for those whose networks have no dns",
        "set dns in the subnets of the cloud-config",
    )


@CHECKS.add("subnets")
def _subnets(config: Config) -> Finding:
    ours = {bridge.name for bridge in overview.bridges(config)}
    routes = [route for route in iproute.routes() if route.device not in ours]
    wanted = config.strings("network.dynamic_subnets")
    clashes = list(clashing(wanted, routes))
    if not clashes:
        return ok(f"{', '.join(wanted)} clash with no route of the host")
    subnet, route, narrower = clashes[0]
    fix = f'set in cpi.json: {{"network": {{"dynamic_subnets": ["{free_subnet(routes)}"]}}}}'
    overlap = f"{subnet} overlaps the host's route to {route.subnet} by {route.device}"
    if narrower:
        return failure(f"{overlap}, which takes VMs' addresses away", fix)
    return warning(f"{overlap}, of which VMs' addresses will hide a part", fix)


def clashing(wanted: Sequence[str], routes: Sequence[Route]) -> Iterator[tuple[str, Route, bool]]:
    """Yield subnets and routes that overlap, and whether the route wins over ours; these first."""
    clashes = [
        (subnet, route, _wins(subnet, route.subnet))
        for subnet in wanted
        for route in routes
        if _overlap(subnet, route.subnet)
    ]
    yield from sorted(clashes, key=lambda clash: not clash[2])


def _overlap(subnet: str, routed: Subnet) -> bool:
    wanted = ip_network(subnet, strict=False)
    return wanted.version == routed.version and wanted.overlaps(routed)


def _wins(subnet: str, routed: Subnet) -> bool:
    """Tell whether the route wins: the longer prefix (RFC 1812, 5.2.4.3), or the older route."""
    return routed.prefixlen >= ip_network(subnet).prefixlen


def free_subnet(routes: Sequence[Route]) -> str:
    """Return a private subnet that clashes with no route, as large as the default one."""
    candidates = [f"10.{second}.0.0/16" for second in (*range(245, 255), *range(64, 245))]
    candidates += [f"172.{second}.0.0/16" for second in range(16, 32)]
    taken = [route.subnet for route in routes]
    free = (subnet for subnet in candidates if not any(_overlap(subnet, other) for other in taken))
    return next(free, "192.168.128.0/17")


def _sysctl(name: str) -> str:
    """Return a setting of this process' network namespace, "" if the kernel has none."""
    try:
        return (_SYSCTLS / name).read_text().strip()
    except OSError:
        return ""
